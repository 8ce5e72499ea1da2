package restore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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

	index      *filestorage.Index // of Data.fs up to the position; nil when not needed yet
	indexSaved bool               // Data.fs.index is as good

	log   *slog.Logger
	now   func() time.Time
	crash func(point string) // in tests
}

func (s *standby) at(point string) {
	if s.crash != nil {
		s.crash(point)
	}
}

// openStandby takes the lock of Data.fs and brings it to what its state says: it finishes or takes back what a run
// that died had begun. A Data.fs without a state is adopted when it is a verified prefix of the chain in repo; repo
// may be nil when there is a state.
func openStandby(ctx context.Context, s *standby, repo func() (*incremental.Repository, error)) (err error) {
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
	var ok bool
	if s.state, ok, err = ReadState(s.data); err != nil {
		return err
	}
	if err := durable.Remove(s.data+stageExt, statePath(s.data)+durable.TempSuffix); err != nil {
		return err
	}
	if err := s.openFile(); err != nil {
		return err
	}
	if !ok || s.state.Applied.Position == 0 {
		if s.state.Next != nil && s.state.Next.Whole && s.swapped() {
			return s.settle()
		}
		s.state.Next = nil
		return s.adopt(ctx, repo)
	}
	return s.reconcile(ctx)
}

func refusePromoted(data string) error {
	st, ok, err := ReadState(data)
	if err != nil || !ok || st.Role != Promoted {
		return err
	}
	return fault.New(fault.Refused, "%s was promoted (epoch %d, %s): this node is a master", data, st.Epoch, st.Promotion.when()).
		Keeping("nothing was applied").
		Remedy("feed the other host from here: zodbrepl backup and ship; to make this one a standby again, move %s and %s away first", data, statePath(data))
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
		file, err = filestorage.NewFile(filestorage.OSFile{File: f}, s.data)
	}
	if err != nil || file == nil {
		f.Close()
		return err
	}
	s.osf, s.file = f, file
	return nil
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
func (s *standby) swapped() bool {
	if s.file == nil {
		return false
	}
	size, err := s.file.Size()
	if err != nil || size != s.state.Next.Position {
		return false
	}
	holds, err := s.state.Next.holds(s.file)
	return err == nil && holds
}

// settle makes the intended swap the state.
func (s *standby) settle() error {
	st := s.state
	st.Applied, st.Next = *st.Next, nil
	if err := st.write(s.data); err != nil {
		return err
	}
	s.state = st
	return nil
}

// reconcile compares Data.fs with the state and finishes what a run that died had begun.
func (s *standby) reconcile(ctx context.Context) error {
	if next := s.state.Next; next != nil && next.Whole {
		if s.swapped() {
			return s.settle()
		}
		s.state.Next = nil
	}
	if s.file == nil {
		return fault.New(fault.Diverged, "%s is missing or empty, but its state says that it ends at %d", s.data, s.state.Applied.Position).
			Keeping("nothing was changed").
			Remedy("bring it back; or move %s away, and watch builds it anew from the newest full", statePath(s.data))
	}
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	holds, err := s.state.Applied.holds(s.file)
	if err != nil {
		return err
	}
	if !holds {
		return s.diverged(fmt.Sprintf("its bytes before position %d are not those that were applied", s.state.Applied.Position))
	}
	if size == s.state.Applied.Position {
		if s.state.Next == nil {
			return nil
		}
		return s.cut()
	}
	if s.state.Next == nil {
		return s.diverged(fmt.Sprintf("it has %d bytes after position %d, which nobody applied", size-s.state.Applied.Position, s.state.Applied.Position))
	}
	// A run died while it appended. What is there is its doing, unless a server has opened the file since and
	// committed to it: its transactions would be newer than the increment's.
	ext, err := s.file.Committed(ctx, s.state.Applied.Position)
	var corrupt *filestorage.CorruptError
	if err != nil && !errors.As(err, &corrupt) {
		return err
	}
	if size > s.state.Next.Position || ext.Last > s.state.Next.LastTID {
		return s.diverged(fmt.Sprintf("it has transactions up to %s after position %d, which nobody applied", ext.Last, s.state.Applied.Position))
	}
	s.log.Warn("a former run died while it applied an increment: cutting back", "storage", s.data,
		"position", s.state.Applied.Position, "bytes", size-s.state.Applied.Position)
	return s.cut()
}

func (s *standby) diverged(how string) error {
	return fault.New(fault.Diverged, "%s is not what its state says: %s", s.data, how).
		Keeping("it was not changed").
		Remedy("see what was written: zodbrepl inspect %s; keep a copy if it matters; then move it and %s away, and watch builds it anew", s.data, statePath(s.data))
}

// unchanged is the cheap check before each replay that nobody else has written to Data.fs.
func (s *standby) unchanged() error {
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	if size != s.state.Applied.Position {
		return s.diverged(fmt.Sprintf("it has %d bytes, not %d", size, s.state.Applied.Position))
	}
	onDisk, err := os.Stat(s.data)
	if err != nil {
		return s.diverged(err.Error())
	}
	if fi, err := s.osf.Stat(); err != nil || !os.SameFile(fi, onDisk) {
		return s.diverged("it was replaced by another file")
	}
	holds, err := s.state.Applied.holds(s.file)
	if err == nil && !holds {
		return s.diverged(fmt.Sprintf("its bytes before position %d are not those that were applied", s.state.Applied.Position))
	}
	return err
}

// cut brings Data.fs back to the recorded position.
func (s *standby) cut() error {
	if err := s.osf.Truncate(s.state.Applied.Position); err != nil {
		return err
	}
	if err := s.osf.Sync(); err != nil {
		return err
	}
	st := s.state
	st.Next = nil
	if err := st.write(s.data); err != nil {
		return err
	}
	s.state = st
	s.index, s.indexSaved = nil, false
	return nil
}

// adopt takes a Data.fs that has no state: none at all, or one that is a verified prefix of the newest chain.
func (s *standby) adopt(ctx context.Context, open func() (*incremental.Repository, error)) error {
	if s.file == nil {
		return nil // the first full builds it
	}
	repo, err := open()
	if err != nil {
		return err
	}
	chains, _, err := repo.Chains(ctx)
	if err != nil {
		return err
	}
	refuse := func(how string) error {
		return fault.New(fault.Diverged, "%s has no state file, and %s", s.data, how).
			Keeping("it was not changed").
			Remedy("if it is an old copy, move it away, and watch builds it anew; if its transactions matter, keep it")
	}
	if len(chains) == 0 || chains[len(chains)-1].Last().Manifest == nil {
		return refuse(fmt.Sprintf("%s has no chain with manifests to compare it with", repo.Source()))
	}
	chain := chains[len(chains)-1]
	ext, err := s.file.Committed(ctx, filestorage.MagicSize)
	if err != nil {
		return err
	}
	s.log.Info("comparing a Data.fs that has no state with the chain", "storage", s.data, "bytes", ext.End, "chain", chain.Stamp)
	st := State{Role: Standby, Lineage: chain.Last().Manifest.Lineage, Epoch: chain.Last().Manifest.Epoch}
	for _, inc := range chain.Increments {
		if inc.End > ext.End {
			same, err := prefixOf(ctx, s.file, ext.End, repo, inc)
			if err != nil {
				return err
			}
			if !same {
				return refuse(fmt.Sprintf("it differs from the chain %s after position %d", chain.Stamp, inc.Start))
			}
			return s.adopted(st, ext)
		}
		sum := md5.New()
		if _, err := io.Copy(sum, &ctxReader{ctx, s.file.Section(inc.Start, inc.End)}); err != nil {
			return err
		}
		if hex.EncodeToString(sum.Sum(nil)) != inc.MD5 {
			return refuse(fmt.Sprintf("it differs from the chain %s between positions %d and %d", chain.Stamp, inc.Start, inc.End))
		}
		m := inc.Manifest
		st.Epoch = m.Epoch
		st.Applied = Applied{Chain: m.Chain, Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID, Tail: m.Tail, Time: s.now().UTC()}
	}
	if ext.End > chain.End() {
		return refuse(fmt.Sprintf("it has transactions up to %s, but the chain %s ends at %s: it is ahead of the repository", ext.Last, chain.Stamp, st.Applied.LastTID))
	}
	return s.adopted(st, ext)
}

// adopted records the state of an adopted Data.fs and cuts off what belongs to an increment that is not whole here.
func (s *standby) adopted(st State, ext filestorage.Extent) error {
	s.state = st
	if st.Applied.Position == 0 {
		return nil // a prefix of the full only: the full will replace it
	}
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	if size > st.Applied.Position {
		s.state.Next = &Applied{Position: size, LastTID: ext.Last, Tail: st.Applied.Tail}
	}
	if err := s.state.write(s.data); err != nil {
		return err
	}
	s.log.Info("adopted", "storage", s.data, "position", st.Applied.Position, "tid", st.Applied.LastTID)
	if s.state.Next != nil {
		return s.cut()
	}
	return nil
}

// prefixOf says whether the bytes of f from inc.Start to end are those that inc begins with.
func prefixOf(ctx context.Context, f *filestorage.File, end int64, repo *incremental.Repository, inc incremental.Increment) (bool, error) {
	c := &comparer{r: f, pos: inc.Start, end: end, same: true}
	err := repo.Copy(ctx, inc, c)
	return c.same && c.err == nil, errors.Join(err, c.err)
}

// comparer compares what is written to it with a part of a file.
type comparer struct {
	r        io.ReaderAt
	pos, end int64
	buf      []byte
	same     bool
	err      error
}

func (c *comparer) Write(p []byte) (int, error) {
	n := len(p)
	p = p[:min(int64(len(p)), max(0, c.end-c.pos))]
	if cap(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	if len(p) > 0 && c.same {
		if _, err := c.r.ReadAt(c.buf[:len(p)], c.pos); err != nil {
			c.err = err
		}
		c.same = bytes.Equal(c.buf[:len(p)], p)
	}
	c.pos += int64(n)
	return n, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// needIndex loads or builds the index of Data.fs as it is.
func (s *standby) needIndex(ctx context.Context) error {
	if s.index != nil || s.file == nil {
		return nil
	}
	position := s.state.Applied.Position
	index, from, err := s.file.LoadIndex(s.data + ".index")
	if err != nil || from > position {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Info("the index is built anew", "storage", s.data, "cause", err)
		}
		index, from = &filestorage.Index{}, filestorage.MagicSize
	} else {
		s.indexSaved = from == position
	}
	if _, err := s.file.ExtendIndex(ctx, index, from, position, nil); err != nil {
		return err
	}
	s.index = index
	return nil
}

// saveIndex writes Data.fs.index, so that ZEO starts at once.
func (s *standby) saveIndex(ctx context.Context) error {
	if err := s.needIndex(ctx); err != nil {
		return err
	}
	if s.index == nil || s.indexSaved {
		return nil
	}
	if err := filestorage.SaveIndex(s.data+".index", s.index, s.state.Applied.Position); err != nil {
		return fmt.Errorf("index of %s: %w", s.data, err)
	}
	s.indexSaved = true
	return nil
}
