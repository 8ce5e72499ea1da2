package incremental

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// goodBlobs are those of goodManifest.
var goodBlobs = []BlobRef{{3, 7}, {4, 9}}

func goodManifest(kind Kind) *Manifest {
	hash := strings.Repeat("ab", 32)
	m := &Manifest{
		Format: ManifestFormat, Lineage: "5e0c3bf2-6d0c-4c7c-9d1d-5c0b6f7e8a90", Epoch: 1, Kind: Full, Stamp: "2024-05-06-07-08-09",
		File: "2024-05-06-07-08-09.fsz", Codec: "gzip", Start: 0, End: 100000, FirstTID: 7, LastTID: 9, Transactions: 2,
		MD5: hash[:32], StoredSize: 4000, StoredSHA256: hash, Tail: Proof{Size: TailSize, SHA256: hash},
		Chain: "2024-05-06-07-08-09", Reason: "the repository is empty", Source: SourceFile{"/srv/Data.fs", 1, 2},
		Created: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), Host: "bms1", Version: "1", Blobs: 2,
	}
	if kind == Delta {
		m.Kind, m.Stamp, m.File, m.Start = Delta, "2024-05-06-08-00-00", "2024-05-06-08-00-00.deltafsz", 5000
		m.Previous, m.Reason = "2024-05-06-07-30-00", ""
	}
	return m
}

func TestManifestsReadAsTheyWereWritten(t *testing.T) {
	for _, kind := range []Kind{Full, Delta} {
		m := goodManifest(kind)
		b := encode(t, m, goodBlobs...)
		require.Contains(t, string(b), `"0000000000000003/0000000000000007"`)
		got, err := parseManifest(ManifestName(m.Stamp), bytes.NewReader(b), counted)
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
}

// Every refusal of Validate.
func TestManifestsThatContradictThemselves(t *testing.T) {
	for _, tt := range []struct {
		name   string
		kind   Kind
		change func(*Manifest)
		want   string
	}{
		{"a stamp that is none", Full, func(m *Manifest) { m.Stamp = "yesterday" }, `"yesterday" is no stamp`},
		{"a day that is none", Full, func(m *Manifest) { m.Stamp = "2024-02-30-00-00-00" }, "is no stamp"},
		{"a chain that is none", Full, func(m *Manifest) { m.Chain = "x" }, "chain:"},
		{"a previous that is none", Delta, func(m *Manifest) { m.Previous = "2024-05-06-07-30-00x" }, "previous:"},
		{"a promotion of another epoch", Delta, func(m *Manifest) {
			m.Promotions = Branch{{Epoch: 2, ID: "a", Stamp: m.Chain}}
		}, "epoch 1, but 1 promotions up to epoch 2"},
		{"promotions out of order", Delta, func(m *Manifest) {
			m.Epoch, m.Promotions = 2, Branch{{Epoch: 3, ID: "a", Stamp: m.Chain}, {Epoch: 2, ID: "b", Stamp: m.Chain}}
		}, `promotion "b" to epoch 2`},
		{"a promotion without a name", Delta, func(m *Manifest) {
			m.Epoch, m.Promotions = 2, Branch{{Epoch: 2, Stamp: m.Chain}}
		}, `promotion "" to epoch 2`},
		{"an unknown codec", Full, func(m *Manifest) { m.Codec = "lzma" }, `codec "lzma" is not known`},
		{"no codec", Full, func(m *Manifest) { m.Codec = "" }, `codec "" is not known`},
		{"a file of another stamp", Full, func(m *Manifest) { m.File = "2024-05-06-07-08-10.fsz" }, "is called"},
		{"a file of another codec", Full, func(m *Manifest) { m.File = "2024-05-06-07-08-09.fs" }, "is called"},
		{"a file of the other kind", Full, func(m *Manifest) { m.File = "2024-05-06-07-08-09.deltafsz" }, "is called"},
		{"a file above", Full, func(m *Manifest) { m.File = "../2024-05-06-07-08-09.fsz" }, "is called"},
		{"a file below", Full, func(m *Manifest) { m.File = "x/2024-05-06-07-08-09.fsz" }, "is called"},
		{"an absolute file", Full, func(m *Manifest) { m.File = "/etc/passwd" }, "is called"},
		{"no file", Full, func(m *Manifest) { m.File = "" }, "is called"},
		{"no lineage", Full, func(m *Manifest) { m.Lineage = "" }, "no lineage"},
		{"epoch 0", Full, func(m *Manifest) { m.Epoch = 0 }, "epoch 0: epochs count from 1"},
		{"a full that starts later", Full, func(m *Manifest) { m.Start = 4 }, "a full starts at 0"},
		{"a full in another chain", Full, func(m *Manifest) { m.Chain = "2024-05-06-07-08-08" }, "a full starts at 0"},
		{"a full after another increment", Full, func(m *Manifest) { m.Previous = "2024-05-06-07-08-08" }, "a full starts at 0"},
		{"a delta from 0", Delta, func(m *Manifest) { m.Start = 0 }, "a delta follows"},
		{"a delta from below 0", Delta, func(m *Manifest) { m.Start = -5 }, "a delta follows"},
		{"a delta from within the magic", Delta, func(m *Manifest) { m.Start = 3 }, "a delta follows"},
		{"a delta that is its own chain", Delta, func(m *Manifest) { m.Chain = m.Stamp; m.Previous = m.Stamp }, "a delta follows"},
		{"a delta before its chain", Delta, func(m *Manifest) { m.Chain = "2025-01-01-00-00-00" }, "a delta follows"},
		{"a delta before its previous", Delta, func(m *Manifest) { m.Previous = "2025-01-01-00-00-00" }, "a delta follows"},
		{"a delta that is its own previous", Delta, func(m *Manifest) { m.Previous = m.Stamp }, "a delta follows"},
		{"a previous before the chain", Delta, func(m *Manifest) { m.Previous = "2023-01-01-00-00-00" }, "a delta follows"},
		{"a delta without a previous", Delta, func(m *Manifest) { m.Previous = "" }, "a delta follows"},
		{"an unknown kind", Delta, func(m *Manifest) { m.Kind = "half" }, `kind "half" is neither`},
		{"no kind", Delta, func(m *Manifest) { m.Kind = "" }, "is neither"},
		{"an end at the start", Delta, func(m *Manifest) { m.End = m.Start }, "does not lie after start"},
		{"an end before the start", Delta, func(m *Manifest) { m.End = 10 }, "does not lie after start"},
		{"an end that no FileStorage reaches", Delta, func(m *Manifest) { m.End = 1<<48 + 1 }, "does not lie after start"},
		{"transactions below 0", Full, func(m *Manifest) { m.Transactions = -1 }, "-1 transactions"},
		{"transactions, and no first tid", Full, func(m *Manifest) { m.FirstTID = 0 }, "2 transactions from"},
		{"a first tid, and no transactions", Full, func(m *Manifest) { m.Transactions = 0 }, "0 transactions from"},
		{"transactions, and no last tid", Full, func(m *Manifest) { m.LastTID = 0 }, "2 transactions from"},
		{"a last tid, and no transactions", Full, func(m *Manifest) { m.Transactions, m.FirstTID = 0, 0 }, "0 transactions from"},
		{"a delta of nothing", Delta, func(m *Manifest) { m.Transactions, m.FirstTID, m.LastTID = 0, 0, 0 }, "0 transactions from"},
		{"a stored file of nothing", Full, func(m *Manifest) { m.StoredSize = 0 }, "stored size 0"},
		{"a stored size below 0", Full, func(m *Manifest) { m.StoredSize = -1 }, "stored size -1"},
		{"an md5 that is too short", Full, func(m *Manifest) { m.MD5 = m.MD5[2:] }, "md5"},
		{"an md5 that is none", Full, func(m *Manifest) { m.MD5 = "x" + m.MD5[1:] }, "md5"},
		{"a SHA-256 that is too short", Full, func(m *Manifest) { m.StoredSHA256 = m.MD5 }, "stored_sha256"},
		{"a tail proof of another size", Full, func(m *Manifest) { m.Tail.Size-- }, "tail proof of 65535 bytes"},
		{"a tail proof longer than the file", Full, func(m *Manifest) { m.End = 100 }, "tail proof of 65536 bytes"},
		{"a tail proof that is none", Full, func(m *Manifest) { m.Tail.SHA256 = "" }, "tail proof"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := goodManifest(tt.kind)
			require.NoError(t, m.Validate())
			tt.change(m)
			require.ErrorContains(t, m.Validate(), tt.want)
			require.ErrorContains(t, m.Write(io.Discard, slices.Values(goodBlobs)), tt.want, "nor is it written")
			b, err := json.Marshal(m)
			require.NoError(t, err)
			_, err = parseManifest(ManifestName(m.Stamp), bytes.NewReader(b), counted)
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestWhatIsNoManifest(t *testing.T) {
	good := encode(t, goodManifest(Full), goodBlobs...)
	name := ManifestName(goodManifest(Full).Stamp)
	field := func(old, new string) []byte {
		b := bytes.Replace(good, []byte(old), []byte(new), 1)
		require.NotEqual(t, good, b)
		return b
	}
	for _, tt := range []struct {
		name, file string
		b          []byte
		want       string
	}{
		{"nothing", name, nil, "not a manifest"},
		{"no JSON", name, []byte("<manifest/>"), "not a manifest"},
		{"half of it", name, good[:len(good)/2], "not a manifest"},
		{"something behind it", name, append(bytes.Clone(good), '}'), "not a manifest"},
		{"a second manifest behind it", name, append(bytes.Clone(good), good...), "not a manifest: { follows it"},
		{"a newer format", name, field(`"format": 1`, `"format": 2, "compression": "best"`), "manifest of format 2, this program knows 1"},
		{"no format", name, []byte("{}"), "manifest of format 0"},
		{"an unknown field", name, field(`"epoch": 1`, `"epoch": 1, "extra": true`), `unknown field "extra"`},
		{"a number that is none", name, field(`"end": 100000`, `"end": "much"`), "not a manifest"},
		{"a number that is too large", name, field(`"end": 100000`, `"end": 99999999999999999999`), "not a manifest"},
		{"two lists of blobs", name, field(`"epoch": 1`, `"blobs": [], "epoch": 1`), "a second list"},
		{"blobs that are no list", name, field(`"blobs": [`, `"blobs": 2, "x": [`), "blobs: 2 stands where [ is expected"},
		{"a list that does not end", name, field("\n  ]\n}\n", ""), "unexpected EOF"},
		{"a blob that is a number", name, field(`"0000000000000003/0000000000000007"`, "3"), "not a manifest"},
		{"a blob that is none", name, field("0000000000000003/", ""), "want oid/tid"},
		{"the name of another", "2024-05-06-07-08-10.manifest", good, "says that it is of 2024-05-06-07-08-09"},
		{"a path", "../" + name, good, "says that it is of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseManifest(tt.file, bytes.NewReader(tt.b), counted)
			require.ErrorContains(t, err, tt.want)
			require.ErrorContains(t, err, tt.file)
		})
	}
}

// A manifest that was read does not have its blobs any more, so it cannot be written by mistake without them.
func TestAManifestIsNotWrittenWithoutItsBlobs(t *testing.T) {
	require.ErrorContains(t, goodManifest(Full).Write(io.Discard, slices.Values(goodBlobs[1:])), "1 blobs, not 2")
}

// The list of blobs may stand anywhere.
func TestTheListOfBlobsMayComeFirst(t *testing.T) {
	m := goodManifest(Full)
	b := encode(t, m, goodBlobs...)
	i := bytes.Index(b, []byte(",\n  \"blobs\""))
	list := bytes.TrimSuffix(b[i+1:], []byte("\n}\n"))
	moved := slices.Concat([]byte("{"), list, []byte(","), b[1:i], []byte("\n}\n"))
	got, err := parseManifest(ManifestName(m.Stamp), bytes.NewReader(moved), counted)
	require.NoError(t, err)
	require.Equal(t, m, got)
}

// Nothing but the number of the blobs stays in memory.
func TestManyBlobsDoNotStayInMemory(t *testing.T) {
	const many = 200_000
	m := goodManifest(Full)
	m.Blobs = many
	dir := Dir(t.TempDir())
	require.NoError(t, durable.Write(dir.Path(ManifestName(m.Stamp)), 0o644, func(w io.Writer) error {
		return m.Write(w, func(yield func(BlobRef) bool) {
			for i := range many {
				yield(BlobRef{filestorage.OID(i), 1})
			}
		})
	}))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	base, most := heap(), uint64(0)
	_, err := ReadManifest(t.Context(), dir, m.Stamp)
	require.NoError(t, err)
	n := 0
	require.NoError(t, ReadBlobs(t.Context(), dir, m.Stamp, func(ref BlobRef) {
		require.EqualValues(t, n, ref.OID)
		if n++; n%(many/10) == 0 {
			most = max(most, heap())
		}
	}))
	require.Equal(t, many, n)
	require.Less(t, most, base+1<<20)
}

// A manifest in a repository that lies about its increment, consistently with itself.
func TestManifestsThatLie(t *testing.T) {
	hash := func(n int) string { return strings.Repeat("cd", n) }
	for _, tt := range []struct {
		name   string
		change func(m *Manifest)
		quick  bool // seen by the quick check
		want   string
	}{
		{"the stored size", func(m *Manifest) { m.StoredSize++ }, true, "bytes long, the manifest says"},
		{"the stored hash", func(m *Manifest) { m.StoredSHA256 = hash(32) }, true, "has SHA-256"},
		{"the md5", func(m *Manifest) { m.MD5 = hash(16) }, true, "contradict each other"},
		{"the end", func(m *Manifest) { m.End += 100 }, true, "contradict each other"},
		{"the start", func(m *Manifest) { m.Start -= 10 }, true, "contradict each other"},
		{"the tail proof", func(m *Manifest) { m.Tail.SHA256 = hash(32) }, false, "the tail proof in the manifest is not that"},
		{"the number of transactions", func(m *Manifest) { m.Transactions++ }, false, "the manifest tells of"},
		{"the first tid", func(m *Manifest) { m.FirstTID-- }, false, "the manifest tells of"},
		{"the last tid", func(m *Manifest) { m.LastTID++ }, false, "the manifest tells of"},
		{"the pack", func(m *Manifest) { m.PackedTo = m.LastTID }, false, "the manifest tells of"},
		{"the lineage", func(m *Manifest) { m.Lineage = "another" }, true, "of lineage another, the chain is of"},
		{"the previous", func(m *Manifest) { m.Previous = m.Chain; m.Chain = m.Previous }, true, "continues the increment"},
		{"the chain", func(m *Manifest) { m.Chain = "2001-01-01-00-00-00" }, true, "whose full is not here"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			for range 3 {
				w.growBy(40 << 10)
				w.backup()
			}
			ms := manifestsOf(t, w.repo)
			m := ms[2]
			tt.change(m)
			writeFile(t, w.repo.Path(ManifestName(m.Stamp)), string(encode(t, m)))
			before := contents(t, w.repo)
			_, err := Verify(t.Context(), w.repo, VerifyOptions{})
			require.Error(t, err)
			require.NotEqual(t, 1, fault.ExitCode(err), "of a kind: %v", err)
			require.ErrorContains(t, err, tt.want)
			require.ErrorContains(t, err, m.File)
			_, err = Verify(t.Context(), w.repo, VerifyOptions{Quick: true})
			require.Equal(t, tt.quick, err != nil, "%v", err)
			require.Equal(t, before, contents(t, w.repo))
		})
	}
}

func TestManifestsThatCannotBeRead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, w *world, name string)
		want   string
	}{
		{"a newer format", func(t *testing.T, w *world, name string) {
			b, err := os.ReadFile(w.repo.Path(name))
			require.NoError(t, err)
			writeFile(t, w.repo.Path(name), strings.Replace(string(b), `"format": 1`, `"format": 9`, 1))
		}, "manifest of format 9"},
		{"half a manifest", func(t *testing.T, w *world, name string) { require.NoError(t, os.Truncate(w.repo.Path(name), 100)) }, "not a manifest"},
		{"an empty manifest", func(t *testing.T, w *world, name string) { require.NoError(t, os.Truncate(w.repo.Path(name), 0)) }, "not a manifest"},
		{"the manifest of another", func(t *testing.T, w *world, name string) {
			b, err := os.ReadFile(w.repo.Path(names(t, w.repo, manifestExt)[0]))
			require.NoError(t, err)
			writeFile(t, w.repo.Path(name), string(b))
		}, "the manifest says that it is of"},
		{"a link", func(t *testing.T, w *world, name string) {
			require.NoError(t, os.Rename(w.repo.Path(name), w.repo.Path("elsewhere")))
			require.NoError(t, os.Symlink("elsewhere", w.repo.Path(name)))
		}, "is a symbolic link"},
		{"a directory", func(t *testing.T, w *world, name string) {
			require.NoError(t, os.Remove(w.repo.Path(name)))
			require.NoError(t, os.Mkdir(w.repo.Path(name), 0o755))
		}, "is not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.grow(2)
			first := w.backup()
			w.grow(1)
			w.backup()
			name := names(t, w.repo, manifestExt)[1]
			tt.damage(t, w, name)
			before := contents(t, w.repo)
			for _, do := range []func() error{
				func() error { _, err := Verify(t.Context(), w.repo, VerifyOptions{}); return err },
				func() error { _, err := Verify(t.Context(), w.repo, VerifyOptions{Quick: true}); return err },
				func() error { w.grow(1); _, err := w.try(); return err },
			} {
				err := do()
				require.ErrorIs(t, err, fault.Unverified)
				require.ErrorContains(t, err, tt.want)
				require.NotEmpty(t, fault.Next(err))
				require.Equal(t, before, contents(t, w.repo))
			}
			l, err := List(t.Context(), w.repo)
			require.NoError(t, err)
			require.NotEmpty(t, l.Problems)
			res := w.backup(full)
			require.Equal(t, first.Lineage, res.Lineage, "a readable manifest tells it")
			same(t, w.committed(), lastChain(t, w.repo))
		})
	}
}

func TestProofs(t *testing.T) {
	raw := text(3*TailSize + 11)
	for _, end := range []int64{0, 1, 4, TailSize - 1, TailSize, TailSize + 1, 2*TailSize + 5, int64(len(raw))} {
		p, err := ProveTail(bytes.NewReader(raw), end)
		require.NoError(t, err)
		require.Equal(t, min(end, TailSize), p.Size)
		for _, piece := range []int{1, 1000, TailSize, TailSize + 1, len(raw)} {
			if piece == 1 && end > 2*TailSize {
				continue
			}
			var k TailKeeper
			for rest := raw[:end]; len(rest) > 0; {
				n := min(piece, len(rest))
				_, err := k.Write(rest[:n])
				require.NoError(t, err)
				rest = rest[n:]
			}
			require.Equal(t, p, k.Proof(), "end %d in pieces of %d", end, piece)
		}
		ok, err := p.Holds(bytes.NewReader(raw), end)
		require.NoError(t, err)
		require.True(t, ok)
		if end > 0 {
			ok, err = p.Holds(bytes.NewReader(raw[:end-1]), end)
			require.NoError(t, err)
			require.False(t, ok, "a file that is too short")
			changed := bytes.Clone(raw)
			changed[end-1] ^= 1
			ok, err = p.Holds(bytes.NewReader(changed), end)
			require.NoError(t, err)
			require.False(t, ok)
		}
		_, err = p.Holds(failing{filestorageReader(raw), end - 1}, end)
		require.Equal(t, end > 0, err != nil, "a disk that fails is no other history")
	}
}

func TestStamps(t *testing.T) {
	for _, s := range []string{"", "2024-01-01", "2024-01-01-00-00-0", "2024-1-01-00-00-00", "2024-01-01-24-00-00", "2024-01-01-00-00-60",
		"2024-01-01T00-00-00", " 2024-01-01-00-00-00", "2024-01-01-00-00-00 ", "12024-01-01-00-00-00", "2023-02-29-00-00-00", "2024-01-01-00-00-0٣",
		"2024-01-01-00-00-00.5", "+024-01-01-00-00-00"} {
		_, err := ParseStamp(s)
		require.Error(t, err, "%q", s)
	}
	s, err := ParseStamp("2024-02-29-23-59-59")
	require.NoError(t, err)
	require.Equal(t, Stamp("2024-03-01-00-00-00"), s.next(time.Unix(0, 0)))
	require.Equal(t, s, StampAt(s.Time()))
	require.Equal(t, fmt.Sprint(s), string(s))
}

type filestorageReader []byte

func (b filestorageReader) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(b).ReadAt(p, off)
}
func (b filestorageReader) Size() (int64, error) { return int64(len(b)), nil }

var _ filestorage.Reader = filestorageReader(nil)
