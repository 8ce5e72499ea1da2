package filestorage

import (
	"context"
	"fmt"
	"io"
)

// Extent is a run of committed transactions.
type Extent struct {
	Start, End   int64 // positions
	First, Last  TID   // 0 when there is no transaction
	Transactions int64

	Tail     TailState // what follows End
	Reason   string    // of Tail, for people
	InFlight int64     // bytes after End when the file's size was last read
}

// Committed scans the headers from the commit boundary from to the last one, and says what follows. The cost
// depends on the number of transactions after from, not on the size of the file.
//
// A transaction counts when its status is committed, it lies wholly within the file and its length is repeated
// at its end. What follows the last such transaction is in flight: normal. Damage with committed transactions
// behind it is a *CorruptError; a file that ends before from is a *ShrunkError.
func (f *File) Committed(ctx context.Context, from int64) (Extent, error) {
	e := Extent{Start: from, End: from}
	s := scanner{file: f, win: window{r: f.r}, pos: from}
	for {
		t, err := s.next()
		if err == errTail {
			e.End, e.Tail, e.Reason, e.InFlight = s.pos, s.tail, s.reason, max(0, s.size-s.pos)
			return e, nil
		}
		if err != nil {
			return e, err
		}
		if e.Transactions == 0 {
			e.First = t.TID
		}
		e.Last = t.TID
		e.Transactions++
		if e.Transactions%1024 == 0 && ctx.Err() != nil {
			return e, ctx.Err()
		}
	}
}

// findCommitted looks for a committed transaction with a tid after last anywhere from pos to size. It reads all
// of that, so it is for when something is already wrong.
func (f *File) findCommitted(pos int64, last TID, size int64) (Transaction, bool, error) {
	const chunk = 1 << 20
	buf := make([]byte, chunk+TxnHeaderSize)
	for ; pos+TxnHeaderSize+trailerSize <= size; pos += chunk {
		n, err := readAt(f.r, buf[:min(int64(len(buf)), size-pos)], pos)
		if err != nil && err != io.ErrUnexpectedEOF {
			return Transaction{}, false, fmt.Errorf("%s: at %d: %w", f.name, pos, err)
		}
		for i := 0; i < chunk && i+TxnHeaderSize <= n; i++ {
			if !committedStatus(buf[i+16]) {
				continue
			}
			t := Transaction{Pos: pos + int64(i), file: f}
			t.Decode(buf[i:])
			if t.TID <= last || t.Validate() != nil {
				continue
			}
			if ok, err := f.whole(t, size); ok || err != nil {
				return t, ok, err
			}
		}
	}
	return Transaction{}, false, nil
}

func committedStatus(b byte) bool {
	return b == StatusCommitted || b == StatusPacked || b == StatusUndone
}

// whole says whether t, which may be any bytes, is a transaction from its first byte to its last.
func (f *File) whole(t Transaction, size int64) (bool, error) {
	var b [trailerSize]byte
	if t.End() > size {
		return false, nil
	}
	if err := f.readFull(b[:], t.End()-trailerSize); err != nil || be64(b[:]) != t.Length {
		return false, err
	}
	for _, err := range t.Records() {
		if isCorrupt(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// LastBefore returns the transaction that ends at the commit boundary end, found through its repeated length in
// constant time. ok is false when end is the first boundary that is here, or no transaction ends there.
func (f *File) LastBefore(end int64) (t Transaction, ok bool, err error) {
	if end < f.first+TxnHeaderSize+trailerSize {
		return t, false, nil
	}
	var b [TxnHeaderSize]byte
	if _, err := readAt(f.r, b[:trailerSize], end-trailerSize); err != nil {
		return t, false, f.eofIsAbsent(err, end)
	}
	n := be64(b[:])
	if n > maxLength || int64(n) > end-trailerSize-f.first {
		return t, false, nil
	}
	t = Transaction{Pos: end - trailerSize - int64(n), file: f}
	if _, err := readAt(f.r, b[:], t.Pos); err != nil {
		return t, false, f.eofIsAbsent(err, end)
	}
	t.Decode(b[:])
	return t, t.Length == n && t.Validate() == nil, nil
}

func (f *File) eofIsAbsent(err error, end int64) error {
	if err == io.ErrUnexpectedEOF {
		return nil
	}
	return fmt.Errorf("%s: transaction that ends at %d: %w", f.name, end, err)
}
