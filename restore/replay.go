package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
	"zodbrepl/internal/gentle"
)

// Segment is a run of raw bytes of a master's Data.fs, from one commit boundary to another, with the proof of what
// they are. Where they come from is not the replay's business.
type Segment struct {
	Lineage string
	Epoch   int
	// Promotions led to it.
	Promotions incremental.Branch
	Applied    // the place that is reached with it
	Start      int64

	// Raw writes the bytes to w and then fails unless they are the right ones. It may be called twice.
	Raw func(ctx context.Context, w io.Writer) error
	// Describes, when set, holds the transactions that were read to what was announced.
	Describes func(*filestorage.Checker) error
}

// What is kept in memory of a verified segment.
const (
	// spoolSize: raw bytes, so that they need not be decoded again to be written.
	spoolSize = 32 << 20
	// maxEntries: places of records, so that they need not be read again to be indexed.
	maxEntries = 1 << 20
)

type entry struct {
	oid filestorage.OID
	pos int64
}

// check reads the whole segment without touching Data.fs. tail has the bytes before it; out gets the bytes, and
// its errors are the caller's to tell.
func (seg Segment) check(ctx context.Context, check *filestorage.Checker, tail *incremental.TailKeeper, out io.Writer) error {
	if err := seg.Raw(ctx, io.MultiWriter(check, tail, out)); err != nil {
		return seg.blame(ctx, err)
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
		return fault.New(fault.Unverified, "increment %s", seg.Stamp).Because(err).
			Keeping("Data.fs is as it was").Remedy(bringAgain)
	}
	return nil
}

const bringAgain = "bring the increment again from the master's repository: remove it and its manifest from the directory, and ship"

// blame tells an increment that is not good from a source that cannot be read.
func (seg Segment) blame(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := fault.New(nil, "increment %s", seg.Stamp).Because(err).Keeping("Data.fs is as it was")
	if fault.Next(err) == "" {
		e = e.Remedy(bringAgain)
	}
	if errors.Is(err, fault.Unverified) || errors.Is(err, fault.Gap) {
		return e
	}
	return unreadable(err)
}

// spooler keeps what is written to it until that is more than max bytes.
type spooler struct {
	max  int
	size int64 // how much there will be, as far as is known
	buf  []byte
	full bool // there was more; buf is empty
}

func (s *spooler) Write(p []byte) (int, error) {
	size := max(s.size, int64(len(s.buf)+len(p)))
	switch {
	case s.full || size > int64(s.max):
		s.full, s.buf = true, nil
		return len(p), nil
	case len(s.buf) == 0 && int64(cap(s.buf)) < size:
		s.buf = make([]byte, 0, size)
	}
	s.buf = append(s.buf, p...)
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
		return fault.New(fault.Gap, "increment %s starts at %d, Data.fs ends at %d", seg.Stamp, seg.Start, cur.Position).
			Keeping("Data.fs is as it was")
	}
	if err := s.unchanged(); err != nil {
		return err
	}
	var tail incremental.TailKeeper
	if err := tail.Seed(s.file, cur.Position); err != nil {
		return err
	}
	var entries []entry
	check := filestorage.NewChecker(string(seg.Stamp), seg.Start)
	check.OnRecord = func(r filestorage.Record, _ []byte) error {
		if s.index != nil && len(entries) <= maxEntries {
			entries = append(entries, entry{r.OID, r.Pos})
		}
		return nil
	}
	spool := spooler{max: s.spool, size: seg.Position - seg.Start, buf: s.spare[:0]}
	defer func() { s.spare = spool.buf }()
	if err := seg.check(ctx, check, &tail, &spool); err != nil {
		return err
	}
	s.at("verified")
	if err := s.intend(seg); err != nil {
		return err
	}
	s.at("intended")
	err := s.write(ctx, seg, &spool)
	s.at("appended")
	if err == nil {
		err = s.reached(seg)
	}
	if err != nil {
		// Also when it is only the state that could not be written: it does not claim these bytes.
		return errors.Join(err, s.cut())
	}
	return s.indexed(ctx, entries)
}

// write brings the bytes of a verified segment behind those of Data.fs, durably.
func (s *standby) write(ctx context.Context, seg Segment, spool *spooler) (err error) {
	out := &stageWriter{w: &crashWriter{io.NewOffsetWriter(s.osf, seg.Start), s}}
	if spool.full {
		err = seg.Raw(ctx, out)
	} else {
		_, err = out.Write(spool.buf)
	}
	switch {
	case out.err != nil:
		return s.unwritable(out.err)
	case err != nil: // it was good when it was read first
		return seg.blame(ctx, err)
	}
	if err := s.osf.Sync(); err != nil {
		return s.unwritable(err)
	}
	holds, err := seg.holds(s.file)
	if err == nil && !holds {
		err = errors.New("what was written cannot be read back")
	}
	if err != nil {
		return s.unwritable(err)
	}
	return nil
}

// indexed brings the index in memory to the position that was reached.
func (s *standby) indexed(ctx context.Context, entries []entry) error {
	if s.index == nil {
		return nil
	}
	if len(entries) > maxEntries { // there were more than were kept
		s.index = nil
		return s.needIndex(ctx)
	}
	for _, e := range entries {
		s.index.Set(e.oid, e.pos)
	}
	return nil
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
	if err := s.unchanged(); err != nil {
		return err
	}
	if seg.LastTID < cur.LastTID {
		return fault.New(fault.Diverged, "the new full %s ends at transaction %s (%s), this standby is at %s (%s): the master has gone back",
			seg.Stamp, seg.LastTID, stamp(seg.LastTID), cur.LastTID, stamp(cur.LastTID)).
			Keeping("%s and its newer transactions are as they were", s.data).
			Remedy("see what this host has alone: zodbrepl inspect --from %s %s; if the master was put back on purpose, %s", seg.LastTID+1, s.data, s.anew())
	}
	s.log.Info("building from a full", "storage", s.data, "increment", seg.Stamp, "bytes", seg.Position)
	stage := s.data + stageExt
	f, err := durable.Create(stage, 0o666)
	if err != nil {
		return s.unwritable(err)
	}
	defer func() {
		f.Close()
		os.Remove(stage) // not there any more when it was swapped in
	}()
	into := gentle.Open(f).KeepingWriter()
	defer into.Close()
	index, err := s.build(ctx, seg, into)
	if err != nil {
		return err
	}
	if err := s.likeOld(f); err != nil {
		return err
	}
	if err := into.Sync(); err != nil {
		return s.unwritable(err)
	}
	s.at("staged")
	if err := s.unchanged(); err != nil { // it may have taken long
		return err
	}
	if err := s.intend(seg); err != nil {
		return err
	}
	s.at("intended")
	if err := durable.Remove(s.data + ".index"); err != nil {
		return s.unwritable(err)
	}
	s.indexSaved = false
	s.at("unindexed")
	s.index = nil // also after an error the new file may be in its place
	if err := durable.Rename(stage, s.data); err != nil {
		return s.unwritable(err)
	}
	s.at("swapped")
	s.closeFile()
	if err := s.openFile(); err != nil {
		return err
	}
	s.index = index
	return s.reached(seg)
}

// build writes a full while it is verified.
func (s *standby) build(ctx context.Context, seg Segment, into io.Writer) (*filestorage.Index, error) {
	index := &filestorage.Index{}
	before := s.state.Applied.LastTID
	known := before == 0
	check := filestorage.NewChecker(string(seg.Stamp), 0)
	check.OnRecord = func(r filestorage.Record, _ []byte) error {
		index.Set(r.OID, r.Pos)
		return nil
	}
	check.OnTransaction = func(_ int64, h filestorage.TxnHeader) error {
		known = known || h.TID == before || h.TID > before && h.Status == filestorage.StatusPacked
		return nil
	}
	out := &stageWriter{w: into}
	var tail incremental.TailKeeper
	err := seg.check(ctx, check, &tail, out)
	if out.err != nil {
		return nil, s.unwritable(out.err)
	}
	if err == nil && !known && seg.Epoch > s.state.Epoch {
		// In one epoch there is one writer. A pack may have taken the transaction away; then it has marked a later one.
		err = fault.New(fault.Diverged, "the full %s of epoch %d does not have transaction %s (%s), which this standby ends at: the host that was promoted never had it",
			seg.Stamp, seg.Epoch, before, stamp(before)).
			Keeping("%s was not changed", s.data).Remedy("see what this host has alone: zodbrepl inspect --tail %s; %s", s.data, s.anew())
	}
	return index, err
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

// likeOld gives the new file the mode of the one that it replaces, and as root its owner, or that of the directory.
func (s *standby) likeOld(f *os.File) error {
	if err := durable.OwnLike(f, s.data, filepath.Dir(s.data)); err != nil {
		return s.unwritable(err)
	}
	old, err := os.Stat(s.data)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Chmod(old.Mode().Perm())
}

// intend records what is about to be done.
func (s *standby) intend(seg Segment) error {
	next := seg.Applied
	next.Time = s.now().UTC()
	st := s.state
	st.Next, st.Role = &next, Standby
	if st.Lineage == "" {
		st.Lineage = seg.Lineage
	}
	// Already here: a run that finishes a swap for us knows the epoch from nowhere else.
	if seg.Epoch >= st.Epoch {
		st.Epoch, st.Promotions = seg.Epoch, seg.Promotions
	}
	if err := st.write(s.data); err != nil {
		return s.unwritable(err)
	}
	s.state = st
	return nil
}

// reached moves the state to what has become durable.
func (s *standby) reached(seg Segment) error {
	st := s.state
	st.Applied, st.Next = *st.Next, nil
	st.Applied.Time = s.now().UTC()
	if err := st.write(s.data); err != nil {
		return s.unwritable(err)
	}
	s.state = st
	s.indexSaved = false
	s.health.applied(st)
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
