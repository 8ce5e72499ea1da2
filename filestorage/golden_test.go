package filestorage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures/fixturetest"
)

func open(t testing.TB, name string) *filestorage.File {
	t.Helper()
	f, closer, err := filestorage.Open(fixturetest.Path(t, name))
	require.NoError(t, err)
	t.Cleanup(func() { closer.Close() })
	return f
}

// healthy returns the files with which the real ZODB has no trouble up to their end.
func healthy(t testing.TB) (names []string) {
	for _, name := range fixturetest.Names(t) {
		if g := fixturetest.Facts(t, name); g.End != nil && *g.End == g.GoodTo && !strings.HasPrefix(name, "bad-") {
			names = append(names, name)
		}
	}
	require.Greater(t, len(names), 12)
	return names
}

func TestGoldenTransactionsAndRecords(t *testing.T) {
	for _, name := range healthy(t) {
		t.Run(name, func(t *testing.T) {
			g, f := fixturetest.Facts(t, name), open(t, name)
			i := 0
			for tr, err := range f.Transactions(filestorage.MagicSize) {
				require.NoError(t, err)
				require.Less(t, i, len(g.Transactions))
				compareTransaction(t, g.Transactions[i], tr, f)
				i++
			}
			require.Len(t, g.Transactions, i)
		})
	}
}

func compareTransaction(t *testing.T, want fixturetest.Transaction, tr filestorage.Transaction, f *filestorage.File) {
	t.Helper()
	require.Equal(t, want.TID, tr.TID)
	require.Equal(t, want.Pos, tr.Pos)
	require.Equal(t, want.Length, tr.Length)
	require.Equal(t, want.Status, string(tr.Status))
	near(t, want.Time, tr.TID.Time())
	user, description, extension, err := tr.Meta()
	require.NoError(t, err)
	require.Equal(t, want.User, fixturetest.Hex(user))
	require.Equal(t, want.Description, fixturetest.Hex(description))
	require.Equal(t, want.Extension, fixturetest.Hex(extension))

	var records []fixturetest.Record
	for rec, err := range tr.Records() {
		require.NoError(t, err)
		r := fixturetest.Record{OID: rec.OID, TID: rec.TID, Pos: rec.Pos, Prev: rec.Prev, TxnPos: rec.TxnPos, DataLen: rec.DataLen}
		if rec.DataLen == 0 {
			r.Back = &rec.Back
		}
		at, err := f.RecordAt(rec.Pos)
		require.NoError(t, err)
		require.Equal(t, rec, at)
		holder, ok, err := f.Resolve(rec)
		require.NoError(t, err)
		if ok {
			data, err := io.ReadAll(f.Data(holder))
			require.NoError(t, err)
			sum := sha256.Sum256(data)
			digits := hex.EncodeToString(sum[:])
			r.DataSHA256 = &digits
			r.IsBlob = filestorage.IsBlob(data)
			require.Equal(t, r.IsBlob, filestorage.IsBlob(data[:min(len(data), filestorage.HeadSize)]))
		}
		records = append(records, r)
	}
	require.Equal(t, len(want.Records), len(records))
	for i := range records {
		require.Equal(t, want.Records[i], records[i])
	}
}

// near compares with a time that TimeStamp rounded to a microsecond.
func near(t *testing.T, want string, got time.Time) {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, want)
	if strings.Contains(want, ":60.") { // rounded up, and not carried into the minute
		at, err = time.Parse(time.RFC3339Nano, strings.Replace(want, ":60.", ":59.", 1))
		at = at.Add(time.Second)
	}
	require.NoError(t, err)
	require.LessOrEqual(t, at.Sub(got).Abs(), time.Microsecond, "%s, not %s", got, want)
}

func TestGoldenEnds(t *testing.T) {
	tails := map[string]filestorage.TailState{
		"tail-voted.fs":           filestorage.TailInFlight,
		"tail-short-c.fs":         filestorage.TailInFlight,
		"tail-short-header.fs":    filestorage.TailInFlight,
		"tail-short-committed.fs": filestorage.TailTorn,
		"tail-zeros.fs":           filestorage.TailTorn,
		"tail-garbage.fs":         filestorage.TailTorn,
		"tail-garbage-status.fs":  filestorage.TailTorn, // ZODB cannot open it; fstest calls it a damaged tail
	}
	seen := 0
	for _, name := range append(healthy(t), "tail-garbage-status.fs", "tid-reduction.fs") {
		t.Run(name, func(t *testing.T) {
			g, f := fixturetest.Facts(t, name), open(t, name)
			e, err := f.Committed(context.Background(), filestorage.MagicSize)
			require.NoError(t, err)
			end := g.GoodTo
			if g.End != nil {
				end = *g.End
			}
			require.Equal(t, end, e.End)
			require.Equal(t, g.LastTID, e.Last)
			require.Len(t, g.Transactions, int(e.Transactions))
			require.Equal(t, tails[name], e.Tail, e.Reason)
			require.Equal(t, g.Size-end, e.InFlight)
			if g.Opened.Error == nil {
				require.Equal(t, g.Opened.Size, e.End, "that is where ZODB cuts the file")
			}
			if len(g.Transactions) > 0 {
				last, ok, err := f.LastBefore(e.End)
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, g.LastTID, last.TID)
			}
		})
		if _, ok := tails[name]; ok {
			seen++
		}
	}
	require.Equal(t, len(tails), seen, "every kind of tail is there")
}

func TestGoldenCorruption(t *testing.T) {
	const at = 1437 // of the transaction that fixtures/make.py damages
	for _, name := range []string{"bad-middle-checkpoint.fs", "bad-middle-length.fs", "bad-middle-status.fs", "bad-trailing.fs", "bad-tloc.fs"} {
		t.Run(name, func(t *testing.T) {
			g, f := fixturetest.Facts(t, name), open(t, name)
			require.EqualValues(t, at, g.GoodTo)
			var corrupt *filestorage.CorruptError
			_, err := f.Committed(context.Background(), filestorage.MagicSize)
			if name == "bad-tloc.fs" { // within the transaction: only who reads its records sees it
				require.NoError(t, err)
			} else {
				require.ErrorAs(t, err, &corrupt)
				require.EqualValues(t, g.GoodTo, corrupt.Pos)
			}

			corrupt = nil
			for tr, terr := range f.Transactions(filestorage.MagicSize) {
				if err = terr; err != nil {
					break
				}
				for _, rerr := range tr.Records() {
					err = rerr
				}
				if err != nil {
					break
				}
			}
			require.ErrorAs(t, err, &corrupt)
			if name == "bad-tloc.fs" {
				require.EqualValues(t, 1557, corrupt.Pos, "as fstest says")
			} else {
				require.EqualValues(t, g.GoodTo, corrupt.Pos)
			}

			raw, err := os.ReadFile(fixturetest.Path(t, name))
			require.NoError(t, err)
			c := filestorage.NewChecker(name, 0)
			if _, err = c.Write(raw); err == nil {
				err = c.Close()
			}
			require.ErrorAs(t, err, &corrupt)
			require.EqualValues(t, g.GoodTo, c.Extent().End)
			_, err = f.ExtendIndex(context.Background(), &filestorage.Index{}, filestorage.MagicSize, g.Size, nil)
			require.ErrorAs(t, err, &corrupt)
		})
	}
}

func TestGoldenReversedTID(t *testing.T) {
	for name, want := range map[string]int64{"tid-reduction.fs": 1, "plain.fs": 0} {
		raw, err := os.ReadFile(fixturetest.Path(t, name))
		require.NoError(t, err)
		c := filestorage.NewChecker(name, 0)
		_, err = c.Write(raw)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.Equal(t, want, c.Reversed())
	}
	require.Contains(t, fixturetest.Facts(t, "tid-reduction.fs").Fstest, "time-stamp reduction")
}

func TestGoldenChecker(t *testing.T) {
	for _, name := range healthy(t) {
		t.Run(name, func(t *testing.T) {
			g := fixturetest.Facts(t, name)
			raw, err := os.ReadFile(fixturetest.Path(t, name))
			require.NoError(t, err)
			c := filestorage.NewChecker(name, 0)
			blobs, packed, records := map[fixturetest.Entry]bool{}, filestorage.TID(0), int64(0)
			c.OnRecord = func(r filestorage.Record, head []byte) error {
				if filestorage.IsBlob(head) {
					blobs[fixturetest.Entry{OID: r.OID, Pos: r.Pos}] = true
				}
				return nil
			}
			_, err = c.Write(raw[:*g.End])
			require.NoError(t, err)
			require.NoError(t, c.Close())
			for _, tr := range g.Transactions {
				if tr.Status == "p" {
					packed = tr.TID
				}
				if tr.Status == "u" {
					continue
				}
				for _, r := range tr.Records {
					records++
					require.Equal(t, r.IsBlob && r.Back == nil, blobs[fixturetest.Entry{OID: r.OID, Pos: r.Pos}])
				}
			}
			require.Equal(t, packed, c.LastPacked())
			require.Equal(t, records, c.Records())
			require.Equal(t, g.LastTID, c.Extent().Last)
			require.Zero(t, c.Reversed())
		})
	}
}

func TestGoldenIndexes(t *testing.T) {
	for _, name := range healthy(t) {
		g := fixturetest.Facts(t, name)
		x := &filestorage.Index{}
		mismatches, err := open(t, name).ExtendIndex(context.Background(), x, filestorage.MagicSize, *g.End, nil)
		require.NoError(t, err)
		requireIndex(t, g.Index.Entries, x)
		require.Zero(t, mismatches, name)
	}
}

func requireIndex(t *testing.T, want []fixturetest.Entry, x *filestorage.Index) {
	t.Helper()
	var got []fixturetest.Entry
	for oid, pos := range x.All() {
		got = append(got, fixturetest.Entry{OID: oid, Pos: pos})
	}
	require.Equal(t, len(want), x.Len())
	if len(want) > 0 {
		require.Equal(t, want, got)
	}
}

type goldenIndex struct {
	File    string              `json:"file"`
	Size    int64               `json:"size"`
	Error   *string             `json:"error"`
	Pos     int64               `json:"pos"`
	Entries []fixturetest.Entry `json:"entries"`
	Used    *bool               `json:"used"`
}

func TestGoldenIndexFilesOfAllTimes(t *testing.T) {
	for _, name := range []string{"today", "older", "large-oids", "py2-stream", "dict-plain", "dict-plain-py2", "dict-fsindex", "dict-fsindex-py2", "dict-fsindex-v0"} {
		t.Run(name, func(t *testing.T) {
			var g goldenIndex
			fixturetest.JSON(t, "index/"+name+".json", &g)
			raw, err := os.ReadFile(fixturetest.Path(t, g.File))
			require.NoError(t, err)
			x, pos, err := filestorage.ReadIndex(bytes.NewReader(raw), g.File)
			require.NoError(t, err)
			require.Equal(t, g.Pos, pos)
			requireIndex(t, g.Entries, x)

			var out bytes.Buffer
			require.NoError(t, filestorage.WriteIndex(&out, x, pos))
			if name == "today" || name == "older" || name == "large-oids" {
				require.Equal(t, raw, out.Bytes(), "byte for byte what fsIndex.save writes")
			}
			if g.Used != nil && *g.Used {
				_, pos, err := open(t, "plain.fs").LoadIndex(fixturetest.Path(t, g.File))
				require.NoError(t, err, "FileStorage uses it")
				require.Equal(t, g.Pos, pos)
			}
		})
	}
}

func TestGoldenTimes(t *testing.T) {
	var g struct {
		TIDs []struct {
			From                           string
			Given                          []float64
			TID                            filestorage.TID
			Time                           string
			Year, Month, Day, Hour, Minute int
			Second                         float64
			Later                          filestorage.TID
		} `json:"tids"`
	}
	fixturetest.JSON(t, "tids.json", &g)
	require.NotEmpty(t, g.TIDs)
	for _, c := range g.TIDs {
		at := c.TID.Time()
		seconds := time.Duration(c.Second * float64(time.Second))
		want := time.Date(c.Year, time.Month(c.Month), c.Day, c.Hour, c.Minute, 0, 0, time.UTC).Add(seconds)
		require.LessOrEqual(t, want.Sub(at).Abs(), 2*time.Nanosecond, c.TID.String())
		require.Equal(t, c.TID+1, c.Later)
		if c.Given != nil {
			nanos := time.Duration(c.Given[5]*float64(time.Second) + 0.5)
			given := time.Date(c.Year, time.Month(c.Month), c.Day, c.Hour, c.Minute, 0, 0, time.UTC).Add(nanos)
			require.LessOrEqual(t, max(filestorage.TIDFromTime(given), c.TID)-min(filestorage.TIDFromTime(given), c.TID), filestorage.TID(1), c.Time)
			if c.Given[5]*1e6 == float64(int64(c.Given[5]*1e6)) { // whole microseconds are exact in both
				require.Equal(t, c.TID, filestorage.TIDFromTime(given), c.Time)
			}
		}
	}
}
