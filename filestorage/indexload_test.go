package filestorage

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestExtendIndex(t *testing.T) {
	for seed := range uint64(10) {
		b := randomFile(seed, 60)
		f := b.file(t)
		x := &Index{}
		n, err := f.ExtendIndex(context.Background(), x, MagicSize, b.ends[20], nil)
		require.NoError(t, err)
		require.Zero(t, n)
		var told []int64
		n, err = f.ExtendIndex(context.Background(), x, b.ends[20], b.ends[59], func(pos int64) { told = append(told, pos) })
		require.NoError(t, err)
		require.Zero(t, n)
		require.Equal(t, []int64{b.ends[59]}, told)
		requireSame(t, b.index, x)
	}
	b := sample()
	_, err := b.file(t).ExtendIndex(context.Background(), &Index{}, MagicSize, b.ends[2]-1, nil)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt, "an end that is no boundary")
	_, err = b.file(t).ExtendIndex(context.Background(), &Index{}, MagicSize, b.ends[5]+40, nil)
	var shrunk *ShrunkError
	require.ErrorAs(t, err, &shrunk, "an end beyond the file")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = b.file(t).ExtendIndex(ctx, &Index{}, MagicSize, b.ends[5], nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestExtendIndexCountsPreviousRecordsThatAreNot(t *testing.T) {
	b := newBuilder()
	b.txn('p', "", obj{oid: 1, data: []byte("x")})
	b.index[1] = 0
	b.txn('p', "", obj{oid: 1, data: []byte("a pack drops these pointers")})
	b.index[1] = 0
	b.txn(' ', "", obj{oid: 1, data: []byte("nothing else may")})
	b.index[1] = 30
	b.txn(' ', "", obj{oid: 1, data: []byte("nor mistake them")})
	b.txn('p', "", obj{oid: 1, data: []byte("fine")}, obj{oid: 2, data: []byte("fine")})
	n, err := b.file(t).ExtendIndex(context.Background(), &Index{}, MagicSize, b.ends[4], nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, n)
}

// After an error the index holds whole transactions only, up to where progress said.
func TestExtendIndexStopsOnABoundary(t *testing.T) {
	b := sample()
	for i, end := range b.ends[:5] {
		for what, bad := range map[string][]byte{
			"header":  patched(b.b, end+16, 'x'),
			"record":  patched(b.b, end+TxnHeaderSize+33, 1),
			"trailer": patched(b.b, b.ends[i+1]-1, 0xfe),
		} {
			if !errors.As(scan(b.of(t, bad), MagicSize).err, new(*CorruptError)) {
				continue // the last one is a tail, and some have no records
			}
			x, at := &Index{}, int64(0)
			_, err := b.of(t, bad).ExtendIndex(context.Background(), x, MagicSize, b.ends[5], func(pos int64) { at = pos })
			require.Error(t, err)
			require.Equal(t, end, at, what)
			want := &Index{}
			_, err = b.file(t).ExtendIndex(context.Background(), want, MagicSize, end, nil)
			require.NoError(t, err)
			requireSame(t, maps.Collect(want.All()), x)
		}
	}
}

func TestLoadIndex(t *testing.T) {
	b := randomFile(3, 80)
	f := b.file(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs.index")
	at := func(end int64) *Index {
		x := &Index{}
		_, err := f.ExtendIndex(context.Background(), x, MagicSize, end, nil)
		require.NoError(t, err)
		return x
	}
	for i, end := range b.ends {
		require.NoError(t, SaveIndex(path, at(end), end))
		x, pos, err := f.LoadIndex(path)
		if x0 := at(end); x0.Len() == 0 {
			require.ErrorIs(t, err, ErrStaleIndex)
			continue
		}
		require.NoError(t, err, "an index of transaction %d", i)
		require.Equal(t, end, pos)
		_, err = f.ExtendIndex(context.Background(), x, pos, b.ends[79], nil)
		require.NoError(t, err)
		requireSame(t, b.index, x)
	}
	end := b.ends[79]
	change := func(do func(x *Index)) *Index { x := at(end); do(x); return x }
	var last Record
	for _, r := range scan(f, MagicSize).recs {
		last = r
	}
	without := &Index{}
	for oid, pos := range at(end).All() {
		if oid != last.OID {
			without.Set(oid, pos)
		}
	}
	other := randomFile(4, 80)
	for name, c := range map[string]struct {
		x    *Index
		pos  int64
		want string
	}{
		"saved at no boundary":                  {at(end), end - 1, "no committed transaction ends"},
		"saved beyond the file":                 {at(end), end + 1, "the file has"},
		"saved at the first boundary":           {&Index{}, MagicSize, "no record"},
		"of an empty index":                     {&Index{}, end, "is not in it"},
		"without the last object":               {without, end, "is not in it"},
		"with an older record of it":            {change(func(x *Index) { x.Set(last.OID, MagicSize) }), end, "is not in it"},
		"with another object's record":          {change(func(x *Index) { x.Set(50000, last.Pos) }), end, "has oid"},
		"with a position that is no record":     {change(func(x *Index) { x.Set(50000, last.Pos+3) }), end, ""},
		"with a later record that is another's": {change(func(x *Index) { x.Set(scan(f, MagicSize).recs[0].OID, last.Pos+1) }), end, ""},
		"of another file":                       {at(end), other.ends[79], ""},
	} {
		t.Run("an index "+name+" is stale", func(t *testing.T) {
			require.NoError(t, SaveIndex(path, c.x, max(c.pos, 5)))
			if c.pos == MagicSize {
				require.NoError(t, os.WriteFile(path, []byte("\x80\x03K\x04."+goodEnd), 0o600))
			}
			_, _, err := f.LoadIndex(path)
			require.ErrorIs(t, err, ErrStaleIndex)
			require.ErrorContains(t, err, c.want)
			require.NotEmpty(t, fault.Next(err))
		})
	}
	require.NoError(t, os.WriteFile(path, []byte("rubbish"), 0o600))
	_, _, err := f.LoadIndex(path)
	require.ErrorIs(t, err, ErrBadIndex)
	_, _, err = f.LoadIndex(filepath.Join(dir, "nothing"))
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, SaveIndex(path, at(end), end))
	broken := &File{r: failing{b.b, last.Pos + 2}, name: "Data.fs"}
	_, _, err = broken.LoadIndex(path)
	require.ErrorIs(t, err, errBroken)
	require.NotErrorIs(t, err, ErrStaleIndex, "a disk that fails does not make an index stale")
	_, _, err = other.file(t).LoadIndex(path)
	require.ErrorIs(t, err, ErrStaleIndex, "the index of another file")
}

func TestTheLastTransactionIsCheckedRecordByRecord(t *testing.T) {
	var objs []obj
	for i := range 4 * saneSamples {
		objs = append(objs, obj{oid: OID(i), data: []byte("x")})
	}
	b := newBuilder()
	b.txn(' ', "", objs...)
	path := filepath.Join(t.TempDir(), "Data.fs.index")
	for i := range objs[:len(objs)-1] {
		x := &Index{}
		for oid, pos := range b.index {
			x.Set(oid, pos)
		}
		x.Set(OID(i), b.index[OID(i+1)])
		require.NoError(t, SaveIndex(path, x, b.ends[0]))
		_, _, err := b.file(t).LoadIndex(path)
		require.ErrorIs(t, err, ErrStaleIndex, "oid %d", i)
	}
}

func TestAnIndexOfATransactionThatUndoesTwiceFits(t *testing.T) {
	b := newBuilder()
	b.txn(' ', "", obj{oid: 1, data: []byte("x")})
	b.txn(' ', "", obj{oid: 1, back: b.index[1]}, obj{oid: 1, data: []byte("the same object again")})
	path := filepath.Join(t.TempDir(), "Data.fs.index")
	x := &Index{}
	_, err := b.file(t).ExtendIndex(context.Background(), x, MagicSize, b.ends[1], nil)
	require.NoError(t, err)
	require.NoError(t, SaveIndex(path, x, b.ends[1]))
	_, _, err = b.file(t).LoadIndex(path)
	require.NoError(t, err)
}
