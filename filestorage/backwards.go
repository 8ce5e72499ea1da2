package filestorage

import (
	"context"
	"iter"
)

// Backwards iterates over the transactions from the commit boundary end back to the first one, the newest first, by
// their repeated lengths. What does not lead to a transaction is a *CorruptError, after which the iteration is over:
// what lies before it can still be read forwards.
func (f *File) Backwards(end int64) iter.Seq2[Transaction, error] {
	return func(yield func(Transaction, error) bool) {
		for end > f.first {
			t, ok, err := f.LastBefore(end)
			if err == nil && !ok {
				err = f.corrupt(end, 0, "no committed transaction ends here")
			}
			if !yield(t, err) || err != nil {
				return
			}
			end = t.Pos
		}
	}
}

// LastCommit returns the last commit boundary and what follows it; of the Extent only End, Tail, Reason and InFlight
// are set. When the file ends with a whole transaction, whether it was committed or only voted for, the cost does not
// depend on the size of the file, and damage further up is not seen; otherwise it is that of Committed.
//
// After a *CorruptError, End is the boundary before the damage.
func (f *File) LastCommit(ctx context.Context) (Extent, error) {
	size, err := f.Size()
	if err != nil {
		return Extent{End: f.first}, err
	}
	if ok, err := f.endsAt(size, size); ok || err != nil {
		return Extent{End: size}, err
	}
	if t, _, err := f.LastBefore(size); err != nil {
		return Extent{End: f.first}, err
	} else if t.Status == StatusVoted && t.Length <= maxLength && t.End() == size {
		if ok, err := f.endsAt(t.Pos, size); ok || err != nil {
			return Extent{End: t.Pos, Tail: TailInFlight, InFlight: size - t.Pos, Reason: "a transaction is being written (status 'c')"}, err
		}
	}
	end := f.first
	for t, err := range f.Transactions(end) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return Extent{End: end}, err
		}
		end = t.End()
	}
	e, err := f.Committed(ctx, end) // more may have been committed meanwhile
	return Extent{End: e.End, Tail: e.Tail, Reason: e.Reason, InFlight: e.InFlight}, err
}

// endsAt says whether a transaction that is sound in itself ends at the position end, or the file begins there.
func (f *File) endsAt(end, size int64) (bool, error) {
	if end == f.first {
		return true, nil
	}
	t, ok, err := f.LastBefore(end)
	if !ok || err != nil {
		return false, err
	}
	return f.whole(t, size)
}
