package filestorage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestTransactionsAreThoseThatWereWritten(t *testing.T) {
	for seed := range uint64(20) {
		b := randomFile(seed, 60)
		f := b.file(t)
		s := scan(f, MagicSize)
		require.NoError(t, s.err)
		var ends []int64
		for _, tr := range s.txns {
			ends = append(ends, tr.End())
		}
		require.Equal(t, b.ends, ends)
		index := map[OID]int64{}
		for _, r := range s.recs {
			index[r.OID] = r.Pos
		}
		require.Equal(t, b.index, index)

		e := committed(t, f, MagicSize)
		require.Equal(t, Extent{Start: MagicSize, End: int64(len(b.b)), First: s.txns[0].TID, Last: s.txns[59].TID,
			Transactions: 60, Reason: "clean"}, e)
	}
}

func TestAScanMayBeginAtAnyBoundaryAndEndAnywhere(t *testing.T) {
	b := sample()
	f := b.file(t)
	for i, from := range append([]int64{MagicSize}, b.ends...) {
		e := committed(t, f, from)
		require.Equal(t, int64(len(b.ends)-i), e.Transactions)
		require.Equal(t, b.ends[len(b.ends)-1], e.End)
	}
	for tr, err := range f.Transactions(MagicSize) {
		require.NoError(t, err)
		for rec, err := range tr.Records() {
			require.NoError(t, err)
			require.Equal(t, tr.TID, rec.TID)
			break
		}
		break
	}
}

// What stands after the last committed transaction, for every place where a write may have stopped.
func TestTails(t *testing.T) {
	whole := sample()
	good := int64(len(whole.b))
	before := whole.ends[len(whole.ends)-2]
	voted := sample()
	voted.txn(StatusVoted, "user", obj{oid: 3, data: make([]byte, 500)}, obj{oid: 4, data: []byte("more")})

	for n := good; n <= int64(len(voted.b)); n++ {
		e := committed(t, whole.of(t, voted.b[:n]), MagicSize)
		want := TailInFlight
		if n == good {
			want = TailClean
		}
		require.Equal(t, want, e.Tail, "%d bytes of a voted transaction: %s", n-good, e.Reason)
		require.Equal(t, good, e.End)
		require.Equal(t, n-good, e.InFlight)
	}
	// Committed, yet cut: FileStorage never leaves that; a crash of the host may.
	for n := before + TxnHeaderSize; n < good; n++ {
		e := committed(t, whole.of(t, whole.b[:n]), MagicSize)
		require.Equal(t, TailTorn, e.Tail, e.Reason)
		require.Equal(t, before, e.End)
	}
	rubbish := []byte("this is not a transaction of any kind")
	for _, c := range []struct {
		name string
		tail []byte
		want TailState
	}{
		{"zeros that a crash left are torn", make([]byte, 1000), TailTorn},
		{"a few zeros may become a header", make([]byte, 22), TailInFlight},
		{"a voted transaction with more behind it is torn", append(slices.Clone(voted.b[good:]), make([]byte, 50)...), TailTorn},
		{"a voted header with a length that is nonsense is in flight", TxnHeader{TID: 9, Status: 'c', Length: 1 << 60}.Append(nil), TailInFlight},
		{"a committed header with a length that is nonsense is torn", TxnHeader{TID: 9, Status: ' ', Length: 1 << 60}.Append(nil), TailTorn},
		{"text is torn", []byte("this is not a transaction of any kind, or is it?"), TailTorn},
		{"an old transaction behind rubbish is torn", slices.Concat(rubbish, whole.b[whole.ends[1]:whole.ends[2]]), TailTorn},
		{"half a new transaction behind rubbish is torn", slices.Concat(rubbish, TxnHeader{TID: 1 << 62, Status: ' ', Length: 23}.Append(nil), u64(22)), TailTorn},
		{"two voted transactions are torn", append(slices.Clone(voted.b[good:]), voted.b[good:]...), TailTorn},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := committed(t, whole.of(t, append(slices.Clone(whole.b), c.tail...)), MagicSize)
			require.Equal(t, c.want, e.Tail, e.Reason)
			require.Equal(t, good, e.End)
			require.EqualValues(t, len(c.tail), e.InFlight)
			require.NotEmpty(t, e.Reason)
		})
	}
}

func TestDamageInTheMiddleIsCorruption(t *testing.T) {
	b := sample()
	at := b.ends[0] // the second of six
	length := b.ends[1] - at - trailerSize
	for _, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"a status that does not exist", patched(b.b, at+16, 'x'), "invalid transaction status"},
		{"a status of a voted transaction", patched(b.b, at+16, 'c'), "never committed"},
		{"a length that leads beyond the file", patched(b.b, at+8, u64(1<<40)...), "beyond the file"},
		{"a length beyond all files", patched(b.b, at+8, u64(1<<63)...), "beyond what"},
		{"a length shorter than the header", patched(b.b, at+8, u64(5)...), "less than its header"},
		{"a length one too long", patched(b.b, at+8, u64(uint64(length)+1)...), "is not the one in its header"},
		{"another length at the end", patched(b.b, at+length, u64(uint64(length)-1)...), "is not the one in its header"},
		{"zeros for the header", patched(b.b, at, make([]byte, TxnHeaderSize)...), "invalid transaction status"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := b.of(t, c.bytes)
			_, err := f.Committed(context.Background(), MagicSize)
			var corrupt *CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, at, corrupt.Pos)
			require.Equal(t, "Data.fs", corrupt.File)
			require.Contains(t, corrupt.Cause, c.want)
			require.Contains(t, corrupt.Cause, "committed transaction follows")
			require.ErrorIs(t, err, fault.Unverified)
			require.Equal(t, 4, fault.ExitCode(err))

			s := scan(f, MagicSize)
			require.ErrorAs(t, s.err, &corrupt)
			require.Equal(t, at, corrupt.Pos)
			require.Len(t, s.txns, 1, "what stands before the damage is seen")
		})
	}
}

func TestDamagedRecordsAreCorruption(t *testing.T) {
	b := sample()
	at := b.ends[0]
	rec := at + TxnHeaderSize + 12
	for _, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"a version", patched(b.b, rec+33, 1), "version"},
		{"another transaction's position", patched(b.b, rec+24, u64(4)...), "points to a transaction at 4"},
		{"a previous record later on", patched(b.b, rec+16, u64(uint64(rec))...), "previous record"},
		{"data beyond the transaction", patched(b.b, rec+34, u64(1<<20)...), "exceeds"},
		{"data that ends before the next record", patched(b.b, rec+34, u64(5)...), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := scan(b.of(t, c.bytes), MagicSize)
			var corrupt *CorruptError
			require.ErrorAs(t, s.err, &corrupt)
			require.Contains(t, corrupt.Cause, c.want)
			require.NotZero(t, corrupt.TID)
			if c.want != "" {
				require.Equal(t, rec, corrupt.Pos)
			}
		})
	}
}

func TestARecordThatRunsOutOfItsFileIsCorruption(t *testing.T) {
	b := newBuilder()
	at := b.txn(' ', "", obj{oid: 1, data: make([]byte, 30)}) + TxnHeaderSize
	for left := 1; left < 30; left++ { // bytes for a second record that is none
		f := b.of(t, patched(b.b, at+34, u64(uint64(30-left))...))
		var corrupt *CorruptError
		require.ErrorAs(t, scan(f, MagicSize).err, &corrupt, "%d bytes are left", left)
		require.Equal(t, at+DataHeaderSize+int64(30-left), corrupt.Pos)
		require.Contains(t, check(f.r.(memory), 0, 0, 0).err, fmt.Sprintf("%d bytes are left", left))
	}
}

func TestResolve(t *testing.T) {
	b := newBuilder()
	b.txn(' ', "", obj{oid: 1, data: []byte("the data")})
	holder := b.index[1]
	b.txn(' ', "", obj{oid: 1, back: holder})
	b.txn(' ', "", obj{oid: 1, back: b.index[1]})
	twice := b.index[1]
	b.txn(' ', "", obj{oid: 1})
	deleted := b.index[1]
	b.txn(' ', "", obj{oid: 1, back: deleted})
	f := b.file(t)
	resolve := func(pos int64) (Record, bool) {
		rec, err := f.RecordAt(pos)
		require.NoError(t, err)
		holder, ok, err := f.Resolve(rec)
		require.NoError(t, err)
		return holder, ok
	}
	rec, ok := resolve(twice)
	require.True(t, ok)
	require.Equal(t, holder, rec.Pos)
	data := make([]byte, 8)
	_, err := f.Data(rec).ReadAt(data, 0)
	require.NoError(t, err)
	require.Equal(t, "the data", string(data))
	_, ok = resolve(deleted)
	require.False(t, ok, "a deleted object has no data")
	_, ok = resolve(b.index[1])
	require.False(t, ok, "nor has one that points back to its deletion")

	_, err = b.of(t, patched(b.b, twice+DataHeaderSize, u64(uint64(twice))...)).RecordAt(twice)
	require.ErrorContains(t, err, "no data record", "a record that points back to itself")
	_, err = f.RecordAt(holder + 1)
	require.Error(t, err, "what is no record is refused")
	_, err = f.RecordAt(int64(len(b.b)))
	require.Error(t, err)
}

func TestLastBefore(t *testing.T) {
	b := sample()
	f := b.file(t)
	ends := map[int64]int64{} // of each transaction, where it begins
	begin := int64(MagicSize)
	for _, end := range b.ends {
		ends[end], begin = begin, end
	}
	for end := int64(-5); end < int64(len(b.b))+20; end++ {
		tr, ok, err := f.LastBefore(end)
		require.NoError(t, err)
		if pos, is := ends[end]; is {
			require.True(t, ok, end)
			require.Equal(t, pos, tr.Pos)
			require.Equal(t, end, tr.End())
		} else {
			require.False(t, ok, "nothing ends at %d", end)
		}
	}
	f = &File{r: stingy{b.b, 3}, name: "Data.fs"}
	_, ok, err := f.LastBefore(int64(len(b.b)))
	require.NoError(t, err)
	require.True(t, ok, "EOF with the last byte is no error")
	f.r = failing{b.b, int64(len(b.b)) - 1}
	_, _, err = f.LastBefore(int64(len(b.b)))
	require.ErrorIs(t, err, errBroken)
}

func TestAScanStopsWhenItIsCancelled(t *testing.T) {
	b := newBuilder()
	for range 3000 {
		b.txn(' ', "")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := b.file(t).Committed(ctx, MagicSize)
	require.ErrorIs(t, err, context.Canceled)
}

func TestErrorsSayWhere(t *testing.T) {
	require.Equal(t, "Data.fs: corrupt at offset 7, transaction 0000000000000009: bad",
		(&CorruptError{File: "Data.fs", Pos: 7, TID: 9, Cause: "bad"}).Error())
	require.Equal(t, "Data.fs: corrupt at offset 7: bad", (&CorruptError{File: "Data.fs", Pos: 7, Cause: "bad"}).Error())
	require.Contains(t, (&ShrunkError{File: "Data.fs", Pos: 7, Size: 5}).Error(), "Data.fs: shrank")
	require.True(t, errors.Is(fmt.Errorf("x: %w", &CorruptError{}), fault.Unverified))
}
