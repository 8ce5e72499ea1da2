package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"slices"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// search walks back from the head. at is the newest increment whose end is in Data.fs; next the one that follows it on
// the way to the head, nil when at is the head. Without at, next is the full that the way begins with.
func (r *rejoin) search() (at, next *incremental.Manifest, err error) {
	for m := r.head; ; {
		holds := m.End <= r.ext.End
		if holds {
			if holds, err = (Applied{Position: m.End, LastTID: m.LastTID, Tail: m.Tail}).holds(r.file); err != nil {
				return nil, nil, err
			}
		}
		if holds {
			return m, next, nil
		}
		if next = m; m.Kind == incremental.Full {
			return nil, m, nil
		}
		prev := r.ms[m.Previous]
		if prev == nil || prev.End != m.Start || prev.Epoch > m.Epoch {
			return nil, nil, fault.New(fault.Gap, "%s continues the increment %s at position %d, which is not here: nothing older can be compared", m.File, m.Previous, m.Start).
				Keeping("nothing was changed").Remedy("bring it from another copy of the repository, or make a new full on the new master: zodbrepl backup --full")
		}
		m = prev
	}
}

// errEnough ends the reading of an increment.
var errEnough = errors.New("enough")

// sameUntil returns the position up to which Data.fs has the bytes of an increment. It reads both no further.
func (r *rejoin) sameUntil(ctx context.Context, m *incremental.Manifest, from int64) (int64, error) {
	inc, err := m.Increment()
	if err != nil {
		return 0, err
	}
	c := &untilDifferent{r: r.file, pos: from, end: r.ext.End}
	if err := r.repo.Copy(ctx, inc, c); err != nil && !errors.Is(err, errEnough) {
		return 0, r.blame(ctx, inc, err)
	}
	return c.pos, nil
}

func (r *rejoin) blame(ctx context.Context, inc incremental.Increment, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := fault.New(nil, "comparing %s with %s", r.Data, inc.File).Because(err).Keeping("nothing was changed")
	if errors.Is(err, fault.Unverified) || errors.Is(err, fault.Gap) {
		return e.Remedy("bring the increment again from where the new master keeps it, then run it again")
	}
	return unreadable(e)
}

// untilDifferent compares what is written to it with a part of a file, up to the first byte that differs.
type untilDifferent struct {
	r        io.ReaderAt
	pos, end int64 // up to pos they are the same
	buf      []byte
}

func (u *untilDifferent) Write(p []byte) (int, error) {
	n := len(p)
	p = p[:min(int64(n), u.end-u.pos)]
	if cap(u.buf) < len(p) {
		u.buf = make([]byte, len(p))
	}
	have := u.buf[:len(p)]
	if _, err := u.r.ReadAt(have, u.pos); err != nil && !(err == io.EOF && len(p) == 0) {
		return 0, err
	}
	k := len(p)
	if !bytes.Equal(have, p) {
		for k = 0; have[k] == p[k]; k++ {
		}
	}
	if u.pos += int64(k); k < len(p) || u.pos == u.end {
		return k, errEnough
	}
	return n, nil
}

// lastCommit returns the last commit boundary of Data.fs from one on and up to a position.
func (r *rejoin) lastCommit(ctx context.Context, from Mark, limit int64) (Mark, error) {
	last := from
	for t, err := range r.file.Transactions(from.Position) {
		if err == nil {
			err = ctx.Err()
		}
		if errors.As(err, new(*filestorage.CorruptError)) {
			break
		}
		if err != nil {
			return last, err
		}
		if t.End() > limit {
			break
		}
		last = markAt(t.End(), t.TID)
	}
	return last, nil
}

// merge finds the last transaction that is in Data.fs and on the way to the head, by tids: a pack keeps them, though
// not all, and moves everything else. It reads the way, and of Data.fs the headers.
func (r *rejoin) merge(ctx context.Context) error {
	var path []*incremental.Manifest
	for m := r.head; m != nil; m = r.ms[m.Previous] {
		path = append(path, m)
	}
	next, stop := iter.Pull2(r.file.Transactions(filestorage.MagicSize))
	defer stop()
	here, err, more := next()
	common, packed := markAt(filestorage.MagicSize, 0), filestorage.TID(0)
	meet := func(_ int64, h filestorage.TxnHeader) error {
		if h.Status == filestorage.StatusPacked {
			packed = h.TID
		}
		for more && err == nil && here.TID < h.TID {
			here, err, more = next()
		}
		if !more || err != nil {
			return errEnough
		}
		if here.TID == h.TID {
			common = markAt(here.End(), here.TID)
		}
		return nil
	}
	for _, m := range slices.Backward(path) {
		inc, ierr := m.Increment()
		if ierr != nil {
			return ierr
		}
		check := filestorage.NewChecker(m.File, m.Start)
		check.OnTransaction = meet
		if cerr := r.repo.Copy(ctx, inc, check); errors.Is(cerr, errEnough) {
			break
		} else if cerr != nil {
			return r.blame(ctx, inc, cerr)
		}
	}
	if err != nil && !errors.As(err, new(*filestorage.CorruptError)) {
		return err
	}
	r.res.Common, r.res.Only.Packed = common, packed > common.LastTID
	return nil
}
