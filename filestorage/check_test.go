package filestorage

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// checked is everything that a Checker says.
type checked struct {
	ext               Extent
	records, reversed int64
	packed            TID
	accepted          int64
	stopped           bool
	txns              []int64
	recs              []Record
	heads             []string
	metas             []string
	err               string
}

// check writes b in pieces of n bytes; 0 is all at once.
func check(b []byte, start int64, n int, stopAfter TID) (r checked) {
	c := NewChecker("Data.fs", start)
	c.StopAfter = stopAfter
	c.OnMeta = func(user, description, extension []byte) error {
		r.metas = append(r.metas, string(user)+"|"+string(description)+"|"+string(extension))
		return nil
	}
	c.OnTransaction = func(pos int64, _ TxnHeader) error { r.txns = append(r.txns, pos); return nil }
	c.OnRecord = func(rec Record, head []byte) error {
		r.recs, r.heads = append(r.recs, rec), append(r.heads, string(head))
		return nil
	}
	var err error
	if n == 0 {
		n = max(1, len(b))
	}
	for len(b) > 0 && err == nil {
		k := min(n, len(b))
		var wrote int
		if wrote, err = c.Write(b[:k]); err == nil && wrote != k {
			panic("a short write without an error")
		}
		b = b[k:]
	}
	r.accepted, r.stopped = c.Accepted(), c.Stopped()
	if err == nil {
		err = c.Close()
	}
	if err != nil {
		r.err = err.Error()
	}
	r.ext, r.records, r.reversed, r.packed = c.Extent(), c.Records(), c.Reversed(), c.LastPacked()
	return r
}

func TestCheckerSeesTheSameInPiecesOfAnySize(t *testing.T) {
	b := sample()
	files := map[string][]byte{
		"a healthy file":          b.b,
		"a random file":           randomFile(5, 40).b,
		"a file cut in a header":  b.b[:b.ends[2]+11],
		"a file cut in data":      b.b[:b.ends[0]+100],
		"a damaged header":        patched(b.b, b.ends[1]+16, 'x'),
		"a damaged record":        patched(b.b, b.ends[0]+TxnHeaderSize+12+30, 9),
		"a damaged trailer":       patched(b.b, b.ends[0]-1, 1),
		"a damaged back pointer":  patched(b.b, b.ends[4]-42-3-8-8-8, 0xff),
		"records that leave 1":    patched(b.b, MagicSize+TxnHeaderSize+34, u64(4+42+299)...),
		"another file":            []byte("#!/bin/sh"),
		"three bytes of a magic":  []byte("FS3"),
		"nothing":                 nil,
		"only the magic":          []byte("FS21"),
		"a voted transaction":     patched(b.b, b.ends[4]+16, 'c'),
		"bytes after the last":    append(bytes.Clone(b.b), 1, 2, 3),
		"a header after the last": append(bytes.Clone(b.b), b.b[4:27]...),
	}
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			whole := check(file, 0, 0, 0)
			require.Equal(t, name == "a healthy file" || name == "a random file" || name == "only the magic", whole.err == "", whole.err)
			for n := 1; n <= 100; n++ {
				got := check(file, 0, n, 0)
				if whole.err != "" {
					got.accepted = whole.accepted // tested below
				}
				require.Equal(t, whole, got, "in pieces of %d", n)
			}
		})
	}
}

func TestCheckerAgreesWithTheScan(t *testing.T) {
	for seed := range uint64(20) {
		b := randomFile(seed, 50)
		s, c := scan(b.file(t), MagicSize), check(b.b, 0, 0, 0)
		require.NoError(t, s.err)
		require.Empty(t, c.err)
		require.Equal(t, s.recs, c.recs)
		e := committed(t, b.file(t), MagicSize)
		e.Start, e.Reason = 0, ""
		require.Equal(t, e, c.ext)
		for i, r := range c.recs {
			data := b.b[r.Pos+DataHeaderSize:][:r.DataLen]
			require.Equal(t, string(data[:min(len(data), HeadSize)]), c.heads[i])
		}
		from := b.ends[10]
		part := check(b.b[from:], from, 7, 0)
		require.Empty(t, part.err, "from the middle")
		require.Equal(t, from, part.ext.Start)
		require.EqualValues(t, 39, part.ext.Transactions)
	}
}

func TestCheckerWithoutCallbacksIsAsStrict(t *testing.T) {
	b := sample()
	for i := range b.b {
		bad := patched(b.b, int64(i), b.b[i]^0x40)
		c := NewChecker("Data.fs", 0)
		_, err := c.Write(bad)
		if err == nil {
			err = c.Close()
		}
		want := check(bad, 0, 0, 0)
		require.Equal(t, want.err == "", err == nil, "byte %d", i)
		require.Equal(t, want.ext, c.Extent())
		require.Equal(t, want.records, c.Records())
	}
}

func TestStopAfterEndsBeforeTheFirstLaterTransaction(t *testing.T) {
	b := sample()
	whole := check(b.b, 0, 0, 0)
	for i, begin := range whole.txns {
		var h TxnHeader
		h.Decode(b.b[begin:])
		end := b.ends[i]
		for _, tid := range []TID{h.TID, h.TID + 1} { // the tid itself, and one between it and the next
			for n := 0; n <= 60; n++ {
				got := check(b.b, 0, n, tid)
				require.Empty(t, got.err)
				require.Equal(t, end, got.ext.End)
				require.Equal(t, end, got.accepted)
				require.Equal(t, whole.txns[:i+1], got.txns, "later ones are not looked at")
				require.Equal(t, i < len(b.ends)-1, got.stopped)
			}
		}
	}
	first := check(b.b, 0, 0, b.tidAt(0)-1)
	require.True(t, first.stopped)
	require.EqualValues(t, MagicSize, first.accepted, "nothing but the magic")
	require.Empty(t, first.txns)

	bad := patched(b.b, b.ends[2]+16, 'x')
	require.Empty(t, check(bad, 0, 0, b.tidAt(2)).err, "damage after the end is not looked at")
	require.NotEmpty(t, check(bad, 0, 0, b.tidAt(3)).err)
}

// tidAt returns the tid of the transaction i.
func (b *builder) tidAt(i int) TID {
	begin := int64(MagicSize)
	if i > 0 {
		begin = b.ends[i-1]
	}
	return TID(be64(b.b[begin:]))
}

// What Accepted says after each write may be passed on at once: it never goes beyond what counts.
func TestAcceptedAfterEveryWrite(t *testing.T) {
	b := sample()
	inHeader := func(pos int64) (begin int64, is bool) {
		for _, p := range append([]int64{MagicSize}, b.ends...) {
			if p < pos && pos < p+TxnHeaderSize && p < int64(len(b.b)) {
				return p, true
			}
		}
		return 0, false
	}
	for i, stop := range append([]int64{int64(len(b.b))}, b.ends...) {
		for n := 1; n <= 80; n++ {
			c := NewChecker("Data.fs", 0)
			if i > 0 {
				c.StopAfter = b.tidAt(i - 1)
			}
			for pos := 0; pos < len(b.b); pos += n {
				_, err := c.Write(b.b[pos:min(pos+n, len(b.b))])
				require.NoError(t, err)
				want := min(int64(pos+n), stop)
				if begin, is := inHeader(want); is {
					want = begin
				} else if want < MagicSize {
					want = 0
				}
				require.Equal(t, want, c.Accepted(), "after %d bytes, stopping at %d", pos+n, stop)
				require.LessOrEqual(t, c.Extent().End, max(c.Accepted(), 0))
			}
			require.NoError(t, c.Close())
		}
	}
}

func TestACheckerKeepsItsError(t *testing.T) {
	b := sample()
	for _, n := range []int{1, 23, 24, len(b.b)} {
		c := NewChecker("Data.fs", 0)
		bad := patched(b.b, b.ends[1]+16, 'x')
		var first error
		for pos := 0; pos < len(bad) && first == nil; pos += n {
			_, first = c.Write(bad[pos:min(pos+n, len(bad))])
		}
		var corrupt *CorruptError
		require.ErrorAs(t, first, &corrupt)
		require.Equal(t, b.ends[1], corrupt.Pos)
		_, err := c.Write(b.b[4:])
		require.Equal(t, first, err, "for ever")
		require.Equal(t, first, c.Close())
		require.Equal(t, b.ends[1], c.Accepted(), "nothing of the damaged transaction")
		require.Equal(t, b.ends[1], c.Extent().End)
	}
	c := NewChecker("Data.fs", 0)
	_, err := c.Write(b.b)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	_, err = c.Write([]byte{1})
	require.Error(t, err, "a closed Checker takes nothing")
}

func TestErrorsOfCallbacksEndTheRun(t *testing.T) {
	b := sample()
	stop := errors.New("stop")
	for _, n := range []int{1, 10, len(b.b)} {
		run := func(c *Checker) error {
			for pos := 0; pos < len(b.b); pos += n {
				if _, err := c.Write(b.b[pos:min(pos+n, len(b.b))]); err != nil {
					return err
				}
			}
			return nil
		}
		c := NewChecker("Data.fs", 0)
		c.OnTransaction = func(pos int64, _ TxnHeader) error {
			if pos == b.ends[1] {
				return stop
			}
			return nil
		}
		require.Equal(t, stop, run(c))
		require.Equal(t, b.ends[1], c.Extent().End)
		require.Equal(t, b.ends[1], c.Accepted())
		c = NewChecker("Data.fs", 0)
		c.OnRecord = func(Record, []byte) error { return stop }
		require.Equal(t, stop, run(c))
		require.Equal(t, stop, c.Close())
	}
}

func TestReversedAndPackedAreReported(t *testing.T) {
	b := newBuilder()
	b.txn('p', "")
	b.txn('p', "")
	second := b.tid
	b.tid -= 1 << 20
	b.txn(' ', "") // the same tid
	b.tid -= 3 << 20
	b.txn(' ', "")
	b.txn(' ', "")
	c := check(b.b, 0, 3, 0)
	require.Empty(t, c.err)
	require.EqualValues(t, 2, c.reversed)
	require.Equal(t, second, c.packed)
}
