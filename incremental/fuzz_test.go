package incremental

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures/fixturetest"
)

func FuzzParseManifest(f *testing.F) {
	for _, kind := range []Kind{Full, Delta} {
		b := encode(f, goodManifest(kind), goodBlobs...)
		f.Add(string(goodManifest(kind).Stamp), b)
		f.Add("2024-01-01-00-00-00", b[:len(b)/2])
		f.Add(string(goodManifest(kind).Stamp), bytes.Replace(b, []byte("2024-05-06-07-08-09.fsz"), []byte("../../etc/passwd"), 1))
	}
	f.Add("", []byte("{}"))
	f.Add("2024-05-06-07-08-09", []byte(`{"format":1,"blobs":[null]}`))
	f.Fuzz(func(t *testing.T, stamp string, b []byte) {
		var blobs []BlobRef
		m, err := parseManifest(stamp+manifestExt, bytes.NewReader(b), func(ref BlobRef) { blobs = append(blobs, ref) })
		if err != nil {
			return
		}
		require.NoError(t, m.Validate())
		require.Equal(t, stamp, string(m.Stamp))
		require.NotContains(t, m.File, "/")
		inc, err := m.Increment()
		require.NoError(t, err)
		require.Positive(t, inc.End-inc.Start)
		again := encode(t, m, blobs...)
		m2, err := parseManifest(stamp+manifestExt, bytes.NewReader(again), counted)
		require.NoError(t, err)
		require.Equal(t, string(again), string(encode(t, m2, blobs...)))
	})
}

func FuzzParseDat(f *testing.F) {
	sum := strings.Repeat("0f", 16)
	f.Add([]byte("2024-05-06-07-08-09.fsz 0 10 " + sum + "\n2024-05-06-07-08-10.deltafsz 10 20 " + sum + "\n"))
	f.Add([]byte("/a b/x 0 10 " + sum))
	f.Add([]byte("x 0 10 " + sum + "\ny 1"))
	f.Add([]byte("\n\n"))
	f.Add([]byte(" 0 0 0 " + sum + "\n"))
	f.Add([]byte("1 1 1 " + sum + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, _, err := parseDat(b)
		if err != nil {
			return
		}
		for _, l := range lines {
			require.NotEmpty(t, l.file)
			require.True(t, l.file == "/" || !strings.Contains(l.file, "/"))
			require.True(t, 0 <= l.start && l.start <= l.end)
			require.Len(t, l.md5, 32)
		}
		again, torn, err := parseDat(formatDat(lines))
		require.NoError(t, err)
		require.False(t, torn)
		require.Equal(t, len(lines), len(again))
		for i := range lines {
			require.Equal(t, lines[i].start, again[i].start)
			require.Equal(t, lines[i].end, again[i].end)
		}
	})
}

// Whatever is stored, no more than the increment's size and a byte comes out, and only the right bytes without error;
// and all of it reads as with the plain reader.
func FuzzDecodeGzip(f *testing.F) {
	for _, n := range []int{0, 1, 5000} {
		f.Add(stored(f, gzipCodec{}, text(n), 1000), int64(n))
	}
	two := append(stored(f, gzipCodec{}, text(10), 10), stored(f, gzipCodec{}, text(20), 20)...)
	f.Add(two, int64(30))
	f.Add(two[:len(two)-3], int64(30))
	f.Add(append(bytes.Clone(two), 0), int64(30))
	f.Add(stored(f, gzipCodec{}, make([]byte, 1<<20), 1<<20), int64(10))
	for _, claim := range []int{0, 30, len(two), maxStored} {
		f.Add(append(claiming(text(10), claim), two...), int64(40))
		f.Add(append(bytes.Clone(two), claiming(text(10), claim)...), int64(40))
	}
	f.Add(slices.Concat(two, foreign(text(10), gzip.Header{Name: "x"}), two), int64(70))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		size &= 1<<20 - 1
		sum := md5.Sum(text(int(size)))
		inc := Increment{File: "x.fsz", End: size, MD5: hex.EncodeToString(sum[:]), codec: gzipCodec{}}
		var out bytes.Buffer
		err := inc.decode(context.Background(), "repository", bytes.NewReader(b), &out, 0)
		require.LessOrEqual(t, int64(out.Len()), size+1)
		if err == nil {
			require.Equal(t, string(text(int(size))), out.String())
		}
		sameAsPlain(t, func() io.Reader { return bytes.NewReader(b) }, 4*memberSize, "")
	})
}

// Whatever is stored, only the right bytes come out without error, and never more than there should be.
func FuzzDecodeZstd(f *testing.F) {
	for _, n := range []int{0, 1, 5000} {
		f.Add(stored(f, zstdCodec{}, text(n), 1000), int64(n))
	}
	two := [][]byte{frame(text(10)), frame(text(20))}
	f.Add(tabled(two, 10, 20), int64(30))
	f.Add(tabled(two, 20, 10), int64(30))
	f.Add(append(tabled(two, 10, 20), 0), int64(30))
	f.Add(slices.Concat(two...), int64(30))
	f.Add(tabled([][]byte{frame(make([]byte, 1<<20))}, 1<<20), int64(10))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		size &= 1<<20 - 1
		sum := md5.Sum(text(int(size)))
		inc := Increment{File: "x.fszst", End: size, MD5: hex.EncodeToString(sum[:]), codec: zstdCodec{}}
		var out bytes.Buffer
		err := inc.decode(context.Background(), "repository", bytes.NewReader(b), &out, 2)
		require.LessOrEqual(t, int64(out.Len()), size+1)
		if err == nil {
			require.Equal(t, string(text(int(size))), out.String())
		}
		// What is read without error is what any zstd reads.
		got := readWith(ourZstd, bytes.NewReader(b), 4*frameSize)
		if got.err == nil && len(got.raw) < 4*frameSize {
			d, err := zstd.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			defer d.Close()
			plain, err := io.ReadAll(d)
			require.NoError(t, err)
			same(t, plain, got.raw)
		}
	})
}

// memory is a repository of files in memory.
type memory fstest.MapFS

func (m memory) String() string { return "memory" }

func (m memory) List(context.Context) ([]fs.DirEntry, error) { return fstest.MapFS(m).ReadDir(".") }

func (m memory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return fstest.MapFS(m).Open(name)
}

// A listing of any names, each with one of some contents, is read without a panic, and what is in a chain is whole.
func FuzzListing(f *testing.F) {
	dir := Dir(fixturetest.Path(f, "repozo/mixed"))
	entries, err := dir.List(context.Background())
	require.NoError(f, err)
	var contents [][]byte
	listing := ""
	for i, e := range entries {
		b, err := readSmall(context.Background(), dir, e.Name(), 1<<20)
		require.NoError(f, err)
		contents = append(contents, b)
		listing += e.Name() + "\t" + string(rune('a'+i)) + "\n"
	}
	for _, kind := range []Kind{Full, Delta} {
		b := encode(f, goodManifest(kind), goodBlobs...)
		contents = append(contents, b)
		listing += ManifestName(goodManifest(kind).Stamp) + "\t" + string(rune('a'+len(contents)-1)) + "\n"
	}
	f.Add(listing)
	f.Add("2024-05-06-07-08-09.fsz\ta\n2024-05-06-07-08-09.fs\tb\n2024-05-06-07-08-09.manifest\tz\n")
	f.Add("2024-05-06-07-08-09.deltafs\ta\n2024-05-06-07-08-09.manifest\ti\n2024-05-06-08-00-00.deltafsz\tb\n")
	f.Add("9999-12-31-23-59-59.fs\ta\n.dat\tb\n2024-05-06-07-08-09.fsz.unpublished\tc\n2024-05-06-07-08-09.fsz.tmp\tc\n")
	f.Fuzz(func(t *testing.T, listing string) {
		repo := memory{}
		for line := range strings.Lines(listing) {
			name, which, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			if !fs.ValidPath(name) || strings.Contains(name, "/") || name == "." {
				continue
			}
			content := []byte(which)
			if len(which) == 1 && int(which[0])-'a' < len(contents) && which[0] >= 'a' {
				content = contents[which[0]-'a']
			}
			file := &fstest.MapFile{Data: content}
			if which == "dir" {
				file = &fstest.MapFile{Mode: fs.ModeDir}
			}
			repo[name] = file
		}
		ctx := context.Background()
		r, err := Open(ctx, repo)
		require.NoError(t, err)
		chains, _, err := r.Chains(ctx)
		require.NoError(t, err)
		for _, c := range chains {
			end := int64(0)
			for i, inc := range c.Increments {
				require.Equal(t, i == 0, inc.Kind == Full)
				require.Equal(t, end, inc.Start)
				require.Greater(t, inc.End, inc.Start)
				end = inc.End
			}
		}
		_, _ = r.Unpublished(ctx)
		_, _ = r.last(ctx)
		_, err = List(ctx, repo)
		require.NoError(t, err)
		for _, quick := range []bool{true, false} {
			res, err := Verify(ctx, repo, VerifyOptions{Quick: quick})
			require.Equal(t, err == nil, res.OK)
		}
	})
}
