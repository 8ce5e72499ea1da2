package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// Segment is a run of raw bytes of a master's Data.fs, from one commit boundary to another, with the proof of what
// they are. Where they come from is not the replay's business.
type Segment struct {
	Lineage string
	Epoch   int
	Applied // the place that is reached with it
	Start   int64

	// Raw writes the bytes to w and then fails unless they are the right ones. It may be called twice.
	Raw func(ctx context.Context, w io.Writer) error
	// Describes, when set, holds the transactions that were read to what was announced.
	Describes func(*filestorage.Checker) error
}

// spoolSize is how much of a verified segment is kept in memory, so that it need not be decoded again to be
// written, in bytes.
const spoolSize = 32 << 20

// checked is a segment that was read whole and found good.
type checked struct {
	entries []entry
	spool   []byte
	spooled bool // spool holds all of the bytes
}

type entry struct {
	oid filestorage.OID
	pos int64
}

// check reads the whole segment without touching Data.fs. tail has the bytes before it.
func (seg Segment) check(ctx context.Context, tail *incremental.TailKeeper, each func(entry)) (*checked, error) {
	c := &checked{spooled: true}
	check := filestorage.NewChecker(string(seg.Stamp), seg.Start)
	check.OnRecord = func(r filestorage.Record, _ []byte) error {
		each(entry{r.OID, r.Pos})
		return nil
	}
	if err := seg.Raw(ctx, io.MultiWriter(check, tail, (*spooler)(c))); err != nil {
		return nil, seg.blame(err)
	}
	err := check.Close()
	if err == nil && seg.Describes != nil {
		err = seg.Describes(check)
	}
	if err == nil && check.Extent().End != seg.Position {
		err = fmt.Errorf("ends at %d, not at %d", check.Extent().End, seg.Position)
	}
	if err == nil && tail.Proof() != seg.Tail {
		err = errors.New("the tail proof does not hold: it does not continue the bytes that are here")
	}
	if err != nil {
		return nil, fault.New(fault.Unverified, "increment %s", seg.Stamp).Because(err).
			Keeping("Data.fs is as it was").Remedy("bring the increment again from the master's repository")
	}
	return c, nil
}

func (seg Segment) blame(err error) error {
	if errors.Is(err, fault.Unverified) || errors.Is(err, fault.Gap) {
		return fault.New(nil, "increment %s", seg.Stamp).Because(err).Keeping("Data.fs is as it was")
	}
	return err
}

type spooler checked

func (s *spooler) Write(p []byte) (int, error) {
	if s.spooled && len(s.spool)+len(p) > spoolSize {
		s.spool, s.spooled = nil, false
	}
	if s.spooled {
		s.spool = append(s.spool, p...)
	}
	return len(p), nil
}

// append replays a segment that continues Data.fs. What a crash leaves at each point:
//
//	before the intent       nothing
//	after it                the state names the increment as the next; Data.fs may have any part of its bytes, and
//	                        after a power failure something else in their place: the next run cuts them off
//	after the last fsync    the state file claims the new position, or still the old one: then they are cut off and
//	                        applied again
func (s *standby) append(ctx context.Context, seg Segment) error {
	cur := s.state.Applied
	if seg.Start != cur.Position {
		return fault.New(fault.Gap, "increment %s starts at %d, Data.fs ends at %d", seg.Stamp, seg.Start, cur.Position)
	}
	if err := s.unchanged(); err != nil {
		return err
	}
	var tail incremental.TailKeeper
	if err := tail.Seed(s.file, cur.Position); err != nil {
		return err
	}
	var entries []entry
	c, err := seg.check(ctx, &tail, func(e entry) { entries = append(entries, e) })
	if err != nil {
		return err
	}
	s.at("verified")
	if err := s.intend(seg); err != nil {
		return err
	}
	s.at("intended")
	out := &crashWriter{io.NewOffsetWriter(s.osf, cur.Position), s}
	if c.spooled {
		_, err = out.Write(c.spool)
	} else {
		err = seg.Raw(ctx, out)
	}
	if err == nil {
		err = s.osf.Sync()
	}
	s.at("appended")
	if err == nil {
		var holds bool
		if holds, err = seg.holds(s.file); err == nil && !holds {
			err = errors.New("what was written cannot be read back")
		}
	}
	if err != nil {
		return errors.Join(s.unwritable(err), s.cut())
	}
	if s.index != nil {
		for _, e := range entries {
			s.index.Set(e.oid, e.pos)
		}
	}
	return s.reached(seg)
}

// crashWriter lets a test stop between the parts of a large write.
type crashWriter struct {
	w io.Writer
	s *standby
}

func (c *crashWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = c.w.Write(p[n:min(len(p), n+1<<20)])
		n += m
		c.s.at("writing")
	}
	return n, err
}

// replace swaps a new full in. What a crash leaves at each point:
//
//	while it is built    Data.fs.zodbrepl-full, which the next run removes
//	after the intent     either file in the place of Data.fs, each whole and durable: the state knows both
//	                     The index of the old file is gone before the new one is in its place.
func (s *standby) replace(ctx context.Context, seg Segment) error {
	cur := s.state.Applied
	if s.file != nil && cur.Position > 0 {
		if err := s.unchanged(); err != nil {
			return err
		}
	}
	if seg.LastTID < cur.LastTID {
		return fault.New(fault.Diverged, "the new full %s ends at transaction %s (%s), this standby is at %s (%s): the master has gone back",
			seg.Stamp, seg.LastTID, stamp(seg.LastTID), cur.LastTID, stamp(cur.LastTID)).
			Keeping("%s and its newer transactions are as they were", s.data).
			Remedy("if the master was put back on purpose, move %s and %s away and start watch again", s.data, statePath(s.data))
	}
	stage := s.data + stageExt
	f, err := durable.Create(stage, 0o666)
	if err != nil {
		return s.unwritable(err)
	}
	keep := false
	defer func() {
		if !keep {
			f.Close()
			os.Remove(stage)
		}
	}()
	index := &filestorage.Index{}
	var tail incremental.TailKeeper
	out := &stageWriter{w: f}
	staged := seg
	staged.Raw = func(ctx context.Context, w io.Writer) error { return seg.Raw(ctx, io.MultiWriter(w, out)) }
	if _, err := staged.check(ctx, &tail, func(e entry) { index.Set(e.oid, e.pos) }); err != nil {
		if out.err != nil {
			return s.unwritable(out.err)
		}
		return err
	}
	if err := s.likeOld(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return s.unwritable(err)
	}
	s.at("staged")
	if err := s.intend(seg); err != nil {
		return err
	}
	s.at("intended")
	if err := durable.Remove(s.data + ".index"); err != nil {
		return err
	}
	s.at("unindexed")
	if err := durable.Rename(stage, s.data); err != nil {
		return err
	}
	keep = true
	s.at("swapped")
	f.Close()
	s.closeFile()
	if err := s.openFile(); err != nil {
		return err
	}
	s.index = index
	return s.reached(seg)
}

type stageWriter struct {
	w   io.Writer
	err error
}

func (o *stageWriter) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		o.err = err
	}
	return n, err
}

// likeOld gives the new file the mode of the one that it replaces, and the owner where we may.
func (s *standby) likeOld(f *os.File) error {
	old, err := os.Stat(s.data)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	chownLike(f, old)
	return f.Chmod(old.Mode().Perm())
}

// intend records what is about to be done.
func (s *standby) intend(seg Segment) error {
	next := seg.Applied
	next.Time = s.now().UTC()
	st := s.state
	st.Next = &next
	if st.Lineage == "" {
		st.Lineage, st.Epoch, st.Role = seg.Lineage, seg.Epoch, Standby
	}
	if err := st.write(s.data); err != nil {
		return err
	}
	s.state = st
	return nil
}

// reached moves the state to what has become durable.
func (s *standby) reached(seg Segment) error {
	st := s.state
	st.Applied, st.Next = *st.Next, nil
	st.Epoch = max(st.Epoch, seg.Epoch)
	if err := st.write(s.data); err != nil {
		return err
	}
	s.state = st
	s.indexSaved = false
	s.log.Info("applied", "storage", s.data, "increment", seg.Stamp, "position", seg.Position, "tid", seg.LastTID)
	s.at("reached")
	return nil
}

func (s *standby) unwritable(err error) error {
	return fault.New(nil, "writing %s", s.data).Because(err).
		Keeping("it is at position %d as before, or will be cut back to it", s.state.Applied.Position).
		Remedy("see to the disk (space, rights, errors), then start watch again")
}

func stamp(t filestorage.TID) string { return t.Time().Format(time.RFC3339Nano) }
