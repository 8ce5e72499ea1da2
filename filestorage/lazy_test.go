package filestorage

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// counting counts what is read through it.
type counting struct {
	Reader
	bytes, reads atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Reader.ReadAt(p, off)
	c.bytes.Add(int64(n))
	c.reads.Add(1)
	return n, err
}

// sparse makes a file of n transactions, each with one record of size bytes that are holes.
func sparse(t testing.TB, n int, size int64) (*os.File, int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "Data.fs"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	put := func(b []byte, off int64) {
		_, err := f.WriteAt(b, off)
		require.NoError(t, err)
	}
	put([]byte("FS30"), 0)
	pos := int64(MagicSize)
	for i := range n {
		h := TxnHeader{TID: TID(i + 1), Status: ' ', Length: uint64(TxnHeaderSize + DataHeaderSize + size)}
		d := DataHeader{OID: OID(i), TID: h.TID, TxnPos: uint64(pos), DataLen: uint64(size)}
		put(d.Append(h.Append(nil)), pos)
		put(binary.BigEndian.AppendUint64(nil, h.Length), pos+int64(h.Length))
		pos += h.RecordLen()
	}
	return f, pos
}

func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestScanningReadsHeadersOnly(t *testing.T) {
	osf, end := sparse(t, 1100, 1<<20)
	require.Greater(t, end, int64(1<<30))
	c := &counting{Reader: OSFile{osf}}
	f, err := NewFile(c, "Data.fs")
	require.NoError(t, err)

	memory := allocated(func() {
		e := committed(t, f, MagicSize)
		require.Equal(t, end, e.End)
		require.EqualValues(t, 1100, e.Transactions)
	})
	require.Less(t, c.bytes.Load(), end/50, "transactions: less than 2% of the bytes")
	require.Less(t, memory, uint64(1<<20), "no transaction is loaded whole")

	c.bytes.Store(0)
	memory = allocated(func() {
		s := scan(f, MagicSize)
		require.NoError(t, s.err)
		require.Len(t, s.recs, 1100)
	})
	require.Less(t, c.bytes.Load(), end/50, "transactions and records: less than 2% of the bytes")
	require.Less(t, memory, uint64(16<<20))
}

func TestOneEnormousTransactionIsNotLoaded(t *testing.T) {
	osf, end := sparse(t, 1, 1<<34)
	c := &counting{Reader: OSFile{osf}}
	f, err := NewFile(c, "Data.fs")
	require.NoError(t, err)
	memory := allocated(func() {
		require.Equal(t, end, committed(t, f, MagicSize).End)
		last, ok, err := f.LastBefore(end)
		require.NoError(t, err)
		require.True(t, ok)
		require.EqualValues(t, MagicSize, last.Pos)
	})
	require.Less(t, c.bytes.Load(), int64(64<<10))
	require.Less(t, memory, uint64(256<<10))
}

func TestTheCostOfTheEndIsThatOfWhatIsNew(t *testing.T) {
	osf, end := sparse(t, 2000, 1000)
	c := &counting{Reader: OSFile{osf}}
	f, err := NewFile(c, "Data.fs")
	require.NoError(t, err)
	c.bytes.Store(0)
	e, err := f.Committed(context.Background(), end)
	require.NoError(t, err)
	require.Equal(t, Extent{Start: end, End: end, Reason: "clean"}, e)
	require.LessOrEqual(t, c.bytes.Load(), int64(windowMin))
}

func TestDataOfRecordsIsSkippedByTheChecker(t *testing.T) {
	c := NewChecker("Data.fs", MagicSize)
	h := TxnHeader{TID: 1, Status: ' ', Length: TxnHeaderSize + DataHeaderSize + 1<<30}
	_, err := c.Write(DataHeader{TxnPos: MagicSize, DataLen: 1 << 30}.Append(h.Append(nil)))
	require.NoError(t, err)
	zeros := make([]byte, 1<<20)
	memory := allocated(func() {
		for range 1 << 10 {
			_, err = c.Write(zeros)
		}
	})
	require.NoError(t, err)
	require.Less(t, memory, uint64(64<<10))
	_, err = c.Write(u64(h.Length))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.EqualValues(t, MagicSize+h.RecordLen(), c.Extent().End)
}
