package filestorage

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// everything reads f in every way there is, and returns the first error and what it saw.
func everything(f *File, end int64) (scanned, Extent, map[OID]int64, error) {
	s := scan(f, MagicSize)
	if s.err != nil {
		return s, Extent{}, nil, s.err
	}
	for _, t := range s.txns {
		t.file = f
		if _, _, _, err := t.Meta(); err != nil {
			return s, Extent{}, nil, err
		}
	}
	for _, r := range s.recs {
		holder, ok, err := f.Resolve(r)
		if err != nil {
			return s, Extent{}, nil, err
		}
		if ok {
			if _, err := f.Data(holder).ReadAt(make([]byte, holder.DataLen), 0); err != nil {
				return s, Extent{}, nil, err
			}
		}
	}
	e, err := f.Committed(context.Background(), MagicSize)
	if err != nil {
		return s, e, nil, err
	}
	x := &Index{}
	_, err = f.ExtendIndex(context.Background(), x, MagicSize, end, nil)
	return s, e, maps.Collect(x.All()), err
}

func TestAnUnreadableByteIsAnErrorAndNothingElse(t *testing.T) {
	b := sample()
	end := int64(len(b.b))
	for n := range b.b {
		r := failing{b.b, int64(n)}
		f, err := NewFile(r, "Data.fs")
		if n < MagicSize {
			require.ErrorIs(t, err, errBroken)
			continue
		}
		require.NoError(t, err)
		f.pause = 0
		_, _, _, err = everything(f, end)
		require.ErrorIs(t, err, errBroken, "byte %d", n)
		require.False(t, isCorrupt(err), "a disk that fails is no damage")

		e, err := f.Committed(context.Background(), MagicSize)
		if err == nil {
			require.Equal(t, end, e.End, "an end before the unreadable byte would be wrong")
		} else {
			require.ErrorIs(t, err, errBroken)
			require.ErrorContains(t, err, "Data.fs")
		}
	}
}

func TestAnUnreadableByteBehindDamageIsAnError(t *testing.T) {
	b := sample()
	bad := patched(b.b, b.ends[0]+16, 'x')
	for n := b.ends[1]; n < int64(len(bad)); n++ {
		f := &File{r: failing{bad, n}, name: "Data.fs"}
		_, err := f.Committed(context.Background(), MagicSize)
		require.Error(t, err, "byte %d: neither a tail nor an end", n)
		require.True(t, errors.Is(err, errBroken) || isCorrupt(err))
	}
}

func TestShortReadsAreFinished(t *testing.T) {
	b := sample()
	want, wantExtent, wantIndex, err := everything(b.file(t), int64(len(b.b)))
	require.NoError(t, err)
	for n := 1; n <= 50; n++ {
		f, err := NewFile(stingy{b.b, n}, "Data.fs")
		require.NoError(t, err)
		got, extent, index, err := everything(f, int64(len(b.b)))
		if err != nil { // Data is a bare section: its readers finish reads themselves
			require.NotContains(t, err.Error(), "corrupt")
		}
		require.Equal(t, want.recs, got.recs)
		if err == nil {
			require.Equal(t, wantExtent, extent)
			require.Equal(t, wantIndex, index)
		}
		e := committed(t, f, MagicSize)
		require.Equal(t, wantExtent, e)
		x := &Index{}
		_, err = f.ExtendIndex(context.Background(), x, MagicSize, int64(len(b.b)), nil)
		require.NoError(t, err)
		require.Equal(t, wantIndex, maps.Collect(x.All()))
	}
}

// A file that shrinks was cut or replaced in place. Whatever is seen of it, it is no corruption and no panic, and
// what ends up as the end is a boundary.
func TestAFileThatShrinks(t *testing.T) {
	b := sample()
	boundaries := map[int64]bool{MagicSize: true}
	for _, end := range b.ends {
		boundaries[end] = true
	}
	var shrunk *ShrunkError
	seen := 0
	for reads := 1; reads < 8; reads++ {
		for size := int64(0); size < int64(len(b.b)); size += 13 {
			left := reads
			f := &File{r: shrinking{b.b, &left, size}, name: "Data.fs"}
			e, err := f.Committed(context.Background(), MagicSize)
			if err == nil {
				require.True(t, boundaries[e.End])
			} else {
				require.ErrorAs(t, err, &shrunk)
				seen++
			}
			left = reads
			if _, err := f.ExtendIndex(context.Background(), &Index{}, MagicSize, int64(len(b.b)), nil); err != nil {
				require.ErrorAs(t, err, &shrunk)
				require.Equal(t, size, shrunk.Size)
				seen++
			}
		}
	}
	require.Positive(t, seen)

	f := b.of(t, b.b[:b.ends[2]])
	_, err := f.Committed(context.Background(), b.ends[3])
	require.ErrorAs(t, err, &shrunk, "a file that ends before the place to start from")
	require.Equal(t, ShrunkError{File: "Data.fs", Pos: b.ends[3], Size: b.ends[2]}, *shrunk)

	for tr, err := range b.file(t).Transactions(MagicSize) {
		require.NoError(t, err)
		f := b.of(t, b.b[:tr.Pos+30])
		tr.file = f
		for _, err := range tr.Records() {
			require.ErrorAs(t, err, &shrunk)
		}
	}
}

// Every byte of the structure counts: when one flips, the Checker says so, or what it reports is different. Flips
// that no reader can see are those in data, user, description and extension.
func TestFlippedBits(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "fixtures", "data", "undo.fs"))
	require.NoError(t, err)
	f := &File{r: memory(raw), name: "Data.fs"}
	whole := check(raw, 0, 0, 0)
	require.Empty(t, whole.err)
	opaque := map[int64]bool{}
	for _, tr := range scan(f, MagicSize).txns {
		for p := tr.Pos + TxnHeaderSize; p < tr.Pos+tr.HeaderLen(); p++ {
			opaque[p] = true
		}
	}
	for _, r := range whole.recs {
		for p := r.Pos + DataHeaderSize; p < r.Pos+DataHeaderSize+int64(r.DataLen); p++ {
			opaque[p] = true
		}
	}
	for i := range raw {
		for bit := range 8 {
			bad := patched(raw, int64(i), raw[i]^1<<bit)
			got := check(bad, 0, 0, 0)
			if opaque[int64(i)] {
				require.Empty(t, got.err)
				require.Equal(t, whole.recs, got.recs)
				continue
			}
			if got.err != "" {
				continue
			}
			// Not refused: an id, a pointer that is still possible, a status, or lengths of texts; seen by who compares.
			require.NotEqual(t, [2]any{whole.recs, headers(f, whole.txns)}, [2]any{got.recs, headers(&File{r: memory(bad)}, got.txns)},
				"byte %d, bit %d", i, bit)
		}
	}
}

func headers(f *File, positions []int64) (hs []TxnHeader) {
	for _, pos := range positions {
		var b [TxnHeaderSize]byte
		f.r.ReadAt(b[:], pos)
		var h TxnHeader
		h.Decode(b[:])
		hs = append(hs, h)
	}
	return hs
}

// The readers with random access must not panic, nor take a changed length for an end.
func TestFlippedBytesAndTheScan(t *testing.T) {
	b := newBuilder()
	b.txn(' ', "u", obj{oid: 1, data: []byte("data")})
	b.txn(' ', "u", obj{oid: 1, back: b.index[1]}, obj{oid: 2, data: []byte("more")})
	b.txn(' ', "u", obj{oid: 1, data: []byte("last")})
	for i := MagicSize; i < len(b.b); i++ {
		f := b.of(t, patched(b.b, int64(i), b.b[i]^0x81))
		_, e, _, err := everything(f, int64(len(b.b)))
		field := int64(i)
		for _, end := range append([]int64{MagicSize}, b.ends...) {
			if end <= int64(i) {
				field = int64(i) - end
			}
		}
		isLength := field >= 8 && field < 17 // and the status
		if isLength && int64(i) < b.ends[1] {
			require.Error(t, err, "byte %d", i)
		}
		if isLength && int64(i) >= b.ends[1] {
			require.Equal(t, TailTorn, committed(t, f, MagicSize).Tail, "damage of the last one is a torn tail")
			require.Equal(t, b.ends[1], committed(t, f, MagicSize).End)
		}
		_ = e
	}
}
