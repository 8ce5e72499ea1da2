package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// standby is a Data.fs that follows a repository, while its lock is held.
type standby struct {
	data  string
	state State
	lock  *filestorage.Lock
	osf   *os.File // nil when there is no Data.fs yet
	file  *filestorage.File
	// offers: where it stands, the source was last seen to hold an offer to hand over.
	offers bool
	// strays are a stale master's increments that were seen there, in the listing strayed.
	strays  []*incremental.Manifest
	strayed *incremental.Repository
	found   int64 // size of a Data.fs of which only a part of a full is known, in bytes

	index      *filestorage.Index // of Data.fs up to the position; nil when not needed yet
	indexSaved bool               // Data.fs.index is as good

	promoting bool // the Data.fs may be a master's that has lost its state file

	spool int    // bytes of a segment that are kept in memory
	spare []byte // of the segment before, for the next one

	// allowed, when set, is asked before each replay.
	allowed func() error

	log    *slog.Logger
	health *Health // nil: nobody asks
	now    func() time.Time
	crash  func(point string) // in tests
}

func (s *standby) at(point string) {
	if s.crash != nil {
		s.crash(point)
	}
}

// openStandby takes the lock of Data.fs and brings it to what its state says: it finishes or takes back what a run
// that died had begun. src, which may be nil, tells what that was. A Data.fs without a state is left to catchUp.
func openStandby(ctx context.Context, s *standby, src incremental.Source) (err error) {
	if s.spool == 0 {
		s.spool = spoolSize
	}
	if err := refusePromoted(s.data); err != nil {
		return err
	}
	if s.lock, err = filestorage.AcquireLock(s.data); err != nil {
		return lockRefusal(s.data, err)
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// A promotion may have come between.
	if err := refusePromoted(s.data); err != nil {
		return err
	}
	if s.state, _, err = ReadState(s.data); err != nil {
		return err
	}
	if err := s.state.Rejoin.unfinished(s.data); err != nil {
		return err
	}
	if err := durable.Remove(s.data+stageExt, statePath(s.data)+durable.TempSuffix); err != nil {
		return err
	}
	if err := s.openFile(); err != nil {
		return s.notOurs(err)
	}
	return s.reconcile(ctx, src)
}

// notOurs makes a divergence of a Data.fs that cannot even be one.
func (s *standby) notOurs(err error) error {
	if s.state.Applied.Position > 0 && errors.Is(err, filestorage.ErrNotFileStorage) {
		return s.diverged(err.Error())
	}
	return err
}

func refusePromoted(data string) error {
	st, ok, err := ReadState(data)
	if err != nil || !ok || st.Role != Promoted {
		return err
	}
	return fault.New(fault.Refused, "%s was promoted (epoch %d, %s): this node is a master", data, st.Epoch, st.Promotion.when()).
		Keeping("nothing was applied").
		Remedy("feed the other host from here: zodbrepl backup and ship; to make this one a standby of another host that was promoted since: zodbrepl rejoin --data %s --from DIR", data)
}

func (p *Promotion) when() string {
	if p == nil {
		return "time not known"
	}
	return p.Time.UTC().Format(time.RFC3339)
}

func lockRefusal(data string, err error) error {
	var locked *filestorage.LockedError
	if !errors.As(err, &locked) {
		return fmt.Errorf("lock of %s: %w", data, err)
	}
	return fault.New(fault.Refused, "%s is in use by process %d: a ZEO server is writing to it (this node is active), or another watch follows with it", data, locked.PID).
		Because(err).Keeping("nothing was applied").
		Remedy("see what it is: ps -p %d; a standby's ZEO server must be stopped", locked.PID)
}

// openFile opens Data.fs for writing when it is there.
func (s *standby) openFile() error {
	f, err := os.OpenFile(s.data, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", s.data)
	}
	var file *filestorage.File
	if err == nil && fi.Size() > 0 { // FileStorage takes an empty file for a new one
		file, err = filestorage.NewFile(s.health.file(filestorage.OSFile{File: f}), s.data)
	}
	if err != nil || file == nil {
		f.Close()
		return err
	}
	s.osf, s.file = f, file
	return nil
}

// resume goes on after a look at the source that ended between an intent and what was intended.
func (s *standby) resume(ctx context.Context, src incremental.Source) error {
	s.closeFile()
	if err := s.openFile(); err != nil {
		return s.notOurs(err)
	}
	return s.reconcile(ctx, src)
}

func (s *standby) closeFile() {
	if s.osf != nil {
		s.osf.Close()
		s.osf, s.file = nil, nil
	}
}

// close gives the lock back. The index should be saved before.
func (s *standby) close() error {
	s.closeFile()
	if s.lock == nil {
		return nil
	}
	return s.lock.Release()
}

// swapped says whether the new full that the state intended is in its place.
func (s *standby) swapped() (bool, error) {
	if s.state.Next == nil || !s.state.Next.Whole || s.file == nil {
		return false, nil
	}
	size, err := s.file.Size()
	if err != nil || size != s.state.Next.Position {
		return false, err
	}
	return s.state.Next.holds(s.file)
}

// reconcile compares Data.fs with the state and finishes what a run that died had begun.
func (s *standby) reconcile(ctx context.Context, src incremental.Source) error {
	swapped, err := s.swapped()
	if err != nil {
		return err
	}
	if swapped {
		st := s.state
		st.Applied, st.Next = *st.Next, nil
		if err := st.write(s.data); err != nil {
			return s.unwritable(err)
		}
		s.state = st
		return nil
	}
	at := s.state.Applied
	if next := s.state.Next; next != nil && next.Whole {
		s.state.Next = nil
	}
	if at.Position == 0 {
		return nil
	}
	if s.file == nil {
		return s.diverged(fmt.Sprintf("it is missing or empty, and should have %d bytes", at.Position))
	}
	size, err := s.sound(ctx, src)
	switch {
	case err != nil || size == at.Position && s.state.Next == nil:
		return err
	case size == at.Position:
		return s.cut()
	}
	s.log.Warn("a former run died while it applied an increment: cutting back", "storage", s.data,
		"position", at.Position, "bytes", size-at.Position)
	return s.cut()
}

// sound refuses a Data.fs that is not what the state says, or may become so again by cutting it. It changes nothing.
func (s *standby) sound(ctx context.Context, src incremental.Source) (size int64, err error) {
	at := s.state.Applied
	if size, err = s.file.Size(); err != nil {
		return 0, err
	}
	if err := s.diverges(size); err != nil || size == at.Position {
		return size, err
	}
	if s.state.Next == nil {
		return size, s.diverged(fmt.Sprintf("it has %d bytes after position %d, which nobody applied", size-at.Position, at.Position))
	}
	return size, s.foreignTail(ctx, src, size)
}

// foreignTail refuses when what follows the position is not the doing of a run that died while it appended, but of
// a server that has opened the file since and committed to it.
func (s *standby) foreignTail(ctx context.Context, src incremental.Source, size int64) error {
	at, next := s.state.Applied, s.state.Next
	ext, err := s.file.Committed(ctx, at.Position)
	var corrupt *filestorage.CorruptError
	if err != nil && !errors.As(err, &corrupt) {
		return err
	}
	if size > next.Position {
		return s.diverged(fmt.Sprintf("it has %d bytes, an increment that was being applied ends at %d", size, next.Position))
	}
	if ext.Last > next.LastTID {
		return s.committed(ext.Last)
	}
	// The server's clock may be behind the master's. Not the bytes are compared, but the tids: after a power failure
	// a transaction may have its header and its end, and a hole between.
	ours := s.tidsOf(ctx, src, *next)
	if ours == nil {
		return ctx.Err()
	}
	for t, err := range s.file.Transactions(at.Position) {
		if err != nil {
			break // torn
		}
		if !ours[t.TID] {
			return s.committed(t.TID)
		}
	}
	return nil
}

func (s *standby) committed(tid filestorage.TID) error {
	return s.diverged(fmt.Sprintf("it has transaction %s (%s) after position %d, which nobody applied", tid, stamp(tid), s.state.Applied.Position))
}

// tidsOf returns the tids of an increment, nil when it cannot be had.
func (s *standby) tidsOf(ctx context.Context, src incremental.Source, a Applied) map[filestorage.TID]bool {
	if src == nil || a.Stamp == "" {
		return nil
	}
	repo, err := incremental.Open(ctx, src)
	if err != nil {
		return nil
	}
	m, err := incremental.ReadManifest(ctx, src, a.Stamp)
	if err != nil || m.End != a.Position || m.Tail != a.Tail {
		return nil
	}
	seg, err := segmentOf(repo, m)
	if err != nil {
		return nil
	}
	tids := make(map[filestorage.TID]bool)
	check := filestorage.NewChecker(m.File, m.Start)
	check.OnTransaction = func(_ int64, h filestorage.TxnHeader) error {
		tids[h.TID] = true
		return nil
	}
	if err := seg.Raw(ctx, check); err != nil {
		return nil
	}
	return tids
}

func (s *standby) diverged(how string) error {
	return fault.New(fault.Diverged, "%s is not what its state says: %s", s.data, how).
		Keeping("it was not changed").
		Remedy("see what was written: zodbrepl inspect %s; %s", s.data, s.anew())
}

func (s *standby) anew() string {
	from := s.state.Source
	if from == "" {
		from = "DIR"
	}
	return fmt.Sprintf("then make it a standby again, which keeps what only this host has: zodbrepl rejoin --data %s --from %s", s.data, from)
}

// diverges refuses a Data.fs of so many bytes that does not have at the position what was applied.
func (s *standby) diverges(size int64) error {
	at := s.state.Applied
	if size < at.Position {
		return s.diverged(fmt.Sprintf("it has only %d bytes, not %d", size, at.Position))
	}
	holds, err := at.holds(s.file)
	if err == nil && !holds {
		return s.diverged(fmt.Sprintf("its bytes before position %d are not those that were applied", at.Position))
	}
	return err
}

// unchanged is the cheap check before each replay that nobody else has written to Data.fs.
func (s *standby) unchanged() error {
	onDisk, err := os.Stat(s.data)
	if s.osf == nil {
		if err == nil && onDisk.Size() > 0 {
			return s.diverged("it was missing or empty, and somebody else has made it since")
		}
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return s.diverged("it is gone")
	}
	if err != nil {
		return err
	}
	fi, err := s.osf.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(fi, onDisk) {
		return s.diverged("it was replaced by another file")
	}
	position := s.state.Applied.Position
	if position == 0 {
		position = s.found
	}
	if fi.Size() > position {
		return s.diverged(fmt.Sprintf("it has %d bytes, not %d: somebody else wrote to it", fi.Size(), position))
	}
	if s.state.Applied.Position == 0 && fi.Size() == position {
		return nil
	}
	return s.diverges(fi.Size())
}

// cut brings Data.fs back to the recorded position.
func (s *standby) cut() error {
	if err := s.osf.Truncate(s.state.Applied.Position); err != nil {
		return s.unwritable(err)
	}
	if err := s.osf.Sync(); err != nil {
		return s.unwritable(err)
	}
	st := s.state
	st.Next = nil
	if err := st.write(s.data); err != nil {
		return s.unwritable(err)
	}
	s.state = st
	return nil
}
