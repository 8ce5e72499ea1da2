package filestorage

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// partReader has the bytes of a Data.fs from a position on.
type partReader struct {
	*bytes.Reader // of all of them
	from          int64
}

func (p partReader) ReadAt(b []byte, off int64) (int, error) {
	if off < p.from {
		return 0, ErrBeforePart
	}
	return p.Reader.ReadAt(b, off)
}

func (p partReader) Size() (int64, error) { return p.Reader.Size(), nil }

func TestAPartOfADataFSHasItsPositions(t *testing.T) {
	b := randomFile(7, 30)
	whole, err := NewFile(partReader{bytes.NewReader(b.b), 0}, "Data.fs")
	require.NoError(t, err)
	for _, n := range []int{0, 1, 17, 29} {
		first := b.ends[n]
		part := NewPart(partReader{bytes.NewReader(b.b), first}, "part", first)
		require.Equal(t, first, part.First())
		var want, got []Transaction
		for txn, err := range whole.Transactions(first) {
			require.NoError(t, err)
			want = append(want, txn)
		}
		for txn, err := range part.Transactions(part.First()) {
			require.NoError(t, err)
			txn.file = whole
			got = append(got, txn)
		}
		require.Equal(t, want, got)
		e, err := part.LastCommit(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, len(b.b), e.End)
		back := 0
		for _, err := range part.Backwards(e.End) {
			require.NoError(t, err)
			back++
		}
		require.Len(t, want, back, "backwards it ends where the part begins")
	}
}

func TestARecordThatPointsBackBeforeAPartSaysSo(t *testing.T) {
	b := newBuilder()
	pos := b.txn(StatusCommitted, "", obj{oid: 1, data: []byte("data")})
	rec := pos + TxnHeaderSize
	b.txn(StatusCommitted, "", obj{oid: 1, back: rec})
	part := NewPart(partReader{bytes.NewReader(b.b), b.ends[0]}, "part", b.ends[0])
	for txn, err := range part.Transactions(part.First()) {
		require.NoError(t, err)
		for r, err := range txn.Records() {
			require.NoError(t, err)
			_, _, err = part.Resolve(r)
			require.ErrorIs(t, err, ErrBeforePart)
		}
	}
}

func TestACheckerTellsTheTextsThatAFileTells(t *testing.T) {
	b := newBuilder()
	b.txn(StatusCommitted, "")
	b.txn(StatusCommitted, strings.Repeat("long ", 12000), obj{oid: 1, data: []byte("data")})
	b.txn(StatusUndone, "undone", obj{oid: 2, data: []byte("data")})
	b.txn(StatusCommitted, "x")
	f, err := NewFile(partReader{bytes.NewReader(b.b), 0}, "Data.fs")
	require.NoError(t, err)
	var want []string
	for txn, err := range f.Transactions(MagicSize) {
		require.NoError(t, err)
		u, d, e, err := txn.Meta()
		require.NoError(t, err)
		want = append(want, string(u)+"|"+string(d)+"|"+string(e))
	}
	for _, n := range []int{0, 1, 1000} {
		got := check(b.b, 0, n, 0)
		require.Empty(t, got.err)
		require.Equal(t, want, got.metas)
	}
}
