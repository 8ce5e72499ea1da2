package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// Side is one of two histories that are compared. Close it.
type Side struct {
	name, kind string
	lineage    string
	epoch      int
	ext        filestorage.Extent // End, and what follows it

	file *filestorage.File
	kept *Diverged // the head of a file of diverged bytes

	repo  *incremental.Repository
	chain incremental.Chain

	last   filestorage.TID
	closer io.Closer
}

// OpenFileSide opens a Data.fs, or a file of diverged bytes, to be compared.
func OpenFileSide(ctx context.Context, path string) (*Side, error) {
	f, kept, closer, err := OpenData(path)
	if err != nil {
		return nil, err
	}
	s := &Side{name: path, kind: "data.fs", file: f, kept: kept, closer: closer}
	if kept != nil {
		s.kind, s.lineage, s.epoch, s.last = "diverged", kept.Lineage, kept.Epoch, kept.LastTID
	}
	if s.ext, err = f.LastCommit(ctx); err == nil && s.ext.End > f.First() {
		var t filestorage.Transaction
		t, _, err = f.LastBefore(s.ext.End)
		s.last = t.TID
	}
	if err != nil {
		closer.Close()
		return nil, err
	}
	return s, nil
}

// OpenRepositorySide takes the newest chain of a repository, that of the newest epoch, to be compared.
func OpenRepositorySide(ctx context.Context, src incremental.Source) (*Side, error) {
	repo, err := incremental.Open(ctx, src)
	if err != nil {
		return nil, err
	}
	chains, others, err := repo.Chains(ctx)
	if err != nil {
		return nil, err
	}
	s := &Side{name: src.String(), kind: "repository", repo: repo, epoch: -1}
	for _, c := range chains {
		lineage, epoch := "", 0
		if m := c.Last().Manifest; m != nil {
			lineage, epoch = m.Lineage, m.Epoch
		}
		if epoch >= s.epoch {
			s.chain, s.lineage, s.epoch = c, lineage, epoch
		}
	}
	if len(s.chain.Increments) == 0 {
		e := fault.New(fault.Gap, "%s holds no chain to compare", src).Remedy("check the path; zodbrepl list and zodbrepl verify tell what is there")
		if len(others) > 0 {
			e = e.Because(others[0])
		}
		return nil, e
	}
	for _, p := range s.chain.Problems {
		if errors.Is(p, fault.Gap) || errors.Is(p, fault.Unverified) {
			return nil, fault.New(fault.Gap, "%s: the chain %s is broken behind position %d", src, s.chain.Stamp, s.chain.End()).Because(p).
				Remedy("zodbrepl verify -r %s tells all that is wrong; bring the increment from another copy of the repository", src)
		}
	}
	last := s.chain.Last()
	s.ext = filestorage.Extent{End: last.End}
	if last.Manifest != nil {
		s.last = last.Manifest.LastTID
	}
	return s, nil
}

// Close ends the reading.
func (s *Side) Close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer.Close()
}

// AlsoClose makes Close close the source of a repository.
func (s *Side) AlsoClose(c io.Closer) { s.closer = c }

func (s *Side) result() SideResult {
	return SideResult{Name: s.name, Kind: s.kind, Lineage: s.lineage, Epoch: max(s.epoch, 0), Last: markAt(s.ext.End, s.last), InFlight: s.ext.InFlight}
}

// first is where the side begins: a part of a Data.fs begins behind its common position.
func (s *Side) first() Mark {
	if s.kept != nil {
		return markAt(s.kept.Position, s.kept.LastTID)
	}
	return markAt(filestorage.MagicSize, 0)
}

// marks iterates over the commit boundaries that the side can tell apart, up to a position, the newest first. Those of a
// file have no proof yet.
func (s *Side) marks(limit int64) iter.Seq2[Applied, error] {
	if s.repo != nil {
		return func(yield func(Applied, error) bool) {
			for _, inc := range slices.Backward(s.chain.Increments) {
				m := inc.Manifest
				if m != nil && m.End <= limit && !yield(Applied{Position: m.End, LastTID: m.LastTID, Tail: m.Tail}, nil) {
					return
				}
			}
		}
	}
	return func(yield func(Applied, error) bool) {
		for t, err := range s.file.Backwards(s.ext.End) {
			if err != nil {
				yield(Applied{}, err)
				return
			}
			if t.End() <= limit && !yield(Applied{Position: t.End(), LastTID: t.TID}, nil) {
				return
			}
		}
		if first := s.first(); s.kept != nil && first.Position <= limit {
			yield(Applied{Position: first.Position, LastTID: first.LastTID}, nil)
		}
	}
}

// holds says whether the side has the bytes before a mark of another.
func (s *Side) holds(mark Applied, of *Side) (bool, error) {
	if s.repo != nil {
		return slices.ContainsFunc(s.chain.Increments, func(inc incremental.Increment) bool {
			m := inc.Manifest
			return m != nil && m.End == mark.Position && m.LastTID == mark.LastTID && m.Tail == mark.Tail
		}), nil
	}
	if mark.Position > s.ext.End {
		return false, nil
	}
	if first := s.first(); mark.Position == first.Position {
		if mark.LastTID != first.LastTID {
			return false, nil
		}
	} else if t, ok, err := s.file.LastBefore(mark.Position); err != nil || !ok || t.TID != mark.LastTID {
		return false, err
	}
	if mark.Tail.Size == 0 {
		var err error
		if mark.Tail, err = incremental.ProveTail(of.file, mark.Position); err != nil {
			return false, of.unreadable(err)
		}
	}
	holds, err := mark.Tail.Holds(s.file, mark.Position)
	if errors.Is(err, filestorage.ErrBeforePart) {
		return false, nil
	}
	return holds, err
}

// boundaryBefore returns an increment's end from which a stored history need be read to meet a mark: what is before has
// lower tids. 0 is the beginning.
func (s *Side) boundaryBefore(mark Mark) (position int64) {
	for _, inc := range s.chain.Increments {
		if m := inc.Manifest; m != nil && m.End < mark.Position && m.LastTID < mark.LastTID {
			position = m.End
		}
	}
	return position
}

func (s *Side) unreadable(err error) error { return fmt.Errorf("%s: %w", s.name, err) }

// diffEvent is the beginning of a transaction, a data record of it, or its end, which only a repository tells.
type diffEvent struct {
	begins bool
	ends   bool
	sum    dataSum // at its end
	pos    int64
	header filestorage.TxnHeader
	user   string
	text   string
	record filestorage.Record
}

// events iterates over transactions and records from a boundary on: that of an increment in a repository.
func (s *Side) events(ctx context.Context, from int64) iter.Seq2[diffEvent, error] {
	if s.repo != nil {
		return s.storedEvents(ctx, from)
	}
	return func(yield func(diffEvent, error) bool) {
		for t, err := range s.file.Transactions(max(from, s.file.First())) {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && t.Pos >= s.ext.End { // committed since
				return
			}
			var user, text []byte
			if err == nil {
				user, text, _, err = t.Meta()
			}
			if !yield(diffEvent{begins: true, pos: t.Pos, header: t.TxnHeader, user: string(user), text: string(text)}, err) || err != nil {
				return
			}
			if t.Status == filestorage.StatusUndone {
				continue
			}
			for r, err := range t.Records() {
				if !yield(diffEvent{record: r}, err) || err != nil {
					return
				}
			}
		}
	}
}

func (s *Side) storedEvents(ctx context.Context, from int64) iter.Seq2[diffEvent, error] {
	return func(yield func(diffEvent, error) bool) {
		for _, inc := range s.chain.Increments {
			if inc.End <= from {
				continue
			}
			var e diffEvent
			tell := func(e diffEvent) error {
				if !yield(e, nil) {
					return errEnough
				}
				return nil
			}
			check := filestorage.NewChecker(inc.File, inc.Start)
			sums := newSummer(check, inc.Start, func(sum dataSum) error { return tell(diffEvent{ends: true, sum: sum}) })
			check.OnTransaction = func(pos int64, h filestorage.TxnHeader) error {
				sums.transaction(pos, h)
				e = diffEvent{begins: true, pos: pos, header: h}
				return nil
			}
			check.OnMeta = func(user, text, _ []byte) error {
				e.user, e.text = string(user), string(text)
				return tell(e)
			}
			check.OnRecord = func(r filestorage.Record, _ []byte) error { return tell(diffEvent{record: r}) }
			err := s.repo.Copy(ctx, inc, sums)
			if errors.Is(err, errEnough) {
				return
			}
			if err == nil {
				err = check.Close()
			}
			if err != nil {
				yield(diffEvent{}, err)
				return
			}
		}
	}
}
