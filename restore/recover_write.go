package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
	"zodbrepl/internal/gentle"
)

// copyTo decodes the increments from the first on, up to the moment, into out, and checks all that it reads.
func (r *recovery) copyTo(ctx context.Context, out io.Writer, index *filestorage.Index) (filestorage.Extent, error) {
	total := r.increments[len(r.increments)-1].End
	check := filestorage.NewChecker(r.Source.String(), 0)
	check.StopAfter = r.At.TID
	first := filestorage.TID(0) // of the increment
	check.OnTransaction = func(_ int64, h filestorage.TxnHeader) error {
		if first == 0 {
			first = h.TID
		}
		return nil
	}
	check.OnRecord = func(rec filestorage.Record, _ []byte) error {
		index.Set(rec.OID, rec.Pos)
		return nil
	}
	cut := &cutter{check: check, out: out, tell: r.Progress, total: total}
	for _, inc := range r.increments {
		before := check.Extent()
		first = 0
		err := r.repo.Copy(ctx, inc, cut)
		switch {
		case cut.err != nil:
			return check.Extent(), cut.err
		case err == nil && !check.Stopped():
			err = asTold(inc, check.Extent(), before, first)
		}
		if err != nil {
			return check.Extent(), r.blame(inc, err)
		}
	}
	if err := check.Close(); err != nil {
		return check.Extent(), r.blame(r.increments[len(r.increments)-1], err)
	}
	return check.Extent(), nil
}

// asTold holds an increment to its manifest, by which it was chosen. first is its first transaction, before and
// after are what had been read before and after it.
func asTold(inc incremental.Increment, after, before filestorage.Extent, first filestorage.TID) error {
	m := inc.Manifest
	if m == nil {
		return nil
	}
	if n := after.Transactions - before.Transactions; after.End != m.End || n != m.Transactions || first != m.FirstTID || n > 0 && after.Last != m.LastTID {
		return fault.New(fault.Unverified, "the manifest of %s tells of %d transactions from %s to %s, up to position %d; there are %d from %s to %s, up to %d",
			m.File, m.Transactions, m.FirstTID, m.LastTID, m.End, n, first, after.Last, after.End).
			Remedy("bring the manifest again from another copy of the repository")
	}
	return nil
}

// blame makes what is no Data.fs a fault of the increment that it was read from.
func (r *recovery) blame(inc incremental.Increment, err error) error {
	e := fault.New(nil, "recover").Because(err).Keeping("the output is as it was")
	var corrupt *filestorage.CorruptError
	if errors.As(err, &corrupt) || errors.Is(err, filestorage.ErrNotFileStorage) {
		e.Kind, e.What = fault.Unverified, fmt.Sprintf("recover: increment %s", inc.File)
		e = e.Remedy("bring the file again from another copy of the repository; until then what was backed up before it can be recovered with --at")
	}
	return e
}

// cutter passes on only what belongs to transactions up to the moment.
type cutter struct {
	check *filestorage.Checker
	out   io.Writer
	held  []byte // the start of a transaction's header, whose tid is not known yet
	pos   int64  // of the next byte to pass on
	tell  incremental.Progress
	read  int64
	total int64
	err   error // of out
}

func (c *cutter) Write(p []byte) (int, error) {
	if _, err := c.check.Write(p); err != nil {
		return 0, err
	}
	c.read += int64(len(p))
	c.tell(c.read, c.total)
	known := p
	if len(c.held) > 0 {
		known = append(c.held, p...)
	}
	n := max(0, min(int64(len(known)), c.check.Accepted()-c.pos))
	if _, err := c.out.Write(known[:n]); err != nil {
		c.err = err
		return 0, err
	}
	c.pos += n
	c.held = nil
	if !c.check.Stopped() {
		c.held = append(c.held, known[n:]...)
	}
	return len(p), nil
}

func (r *recovery) took(ext filestorage.Extent) {
	r.res.Size, r.res.Transactions = ext.End, ext.Transactions
	r.res.LastTID = ext.Last
	if ext.Last != 0 {
		r.res.LastTime = ext.Last.Time()
	}
}

func (r *recovery) stream(ctx context.Context) error {
	ext, err := r.copyTo(ctx, r.Stdout, &filestorage.Index{})
	r.took(ext)
	if err != nil {
		return fault.New(nil, "what was written to the standard output is not whole").Because(err).Remedy("throw it away")
	}
	return nil
}

// file makes or extends the output. What a crash leaves at each point:
//
//	while it is built       <output>.tmp, and the old output
//	before the last rename  the same, the old output without its index
//	after it                the new output; its index perhaps as <output>.index.tmp only: FileStorage scans then
//
// When an earlier recovery is appended to, a crash leaves it with a part of what was to come behind it, verified
// before: FileStorage cuts that to whole transactions, and the next recovery goes on from it.
func (r *recovery) file(ctx context.Context) error {
	if err := r.refuseOutput(); err != nil {
		return err
	}
	lock, err := filestorage.AcquireLock(r.Output)
	if err != nil {
		var locked *filestorage.LockedError
		if errors.As(err, &locked) {
			return fault.New(fault.Busy, "%s is locked by process %d: a server is running on it", r.Output, locked.PID).Because(err).
				Keeping("it was not touched").Remedy("stop that server, or recover to another name")
		}
		return fault.New(nil, "output %s", r.Output).Because(err).Keeping("nothing was written").
			Remedy("give the path of a Data.fs in a directory that exists and that this user may write to")
	}
	defer lock.Release()
	if err := r.removeLeftovers(); err != nil {
		return err
	}
	if ok, err := r.extend(ctx); ok || err != nil {
		return err
	}
	return r.build(ctx)
}

func (r *recovery) refuseOutput() error {
	fi, err := os.Lstat(r.Output)
	switch {
	case err == nil && !fi.Mode().IsRegular():
		return fault.New(nil, "output %s is not a regular file", r.Output).Keeping("nothing was written").Remedy("give the path of a Data.fs to make")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if dir, ok := r.Source.(interface{ Path(string) string }); ok {
		in, err1 := os.Stat(dir.Path("."))
		out, err2 := os.Stat(filepath.Dir(r.Output))
		if err1 == nil && err2 == nil && os.SameFile(in, out) {
			return fault.New(fault.Usage, "output %s lies in the repository itself", r.Output).Keeping("nothing was written").
				Remedy("recover to another directory")
		}
	}
	st, ok, err := ReadState(r.Output)
	if err != nil || !ok || st.Role == Promoted {
		return err
	}
	return fault.New(fault.Refused, "%s is a standby (%s)", r.Output, statePath(r.Output)).
		Keeping("it was not touched").Remedy("recover to another name; or move the state file away, if it is no standby any more")
}

func (r *recovery) build(ctx context.Context) (err error) {
	tmp := r.Output + durable.TempSuffix
	f, err := durable.Create(tmp, 0o666)
	if err != nil {
		return r.unwritable(err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(tmp)
			os.Remove(r.indexTemp())
		}
	}()
	index := &filestorage.Index{}
	into := gentle.Open(f).KeepingWriter()
	defer into.Close()
	out := &stageWriter{w: into}
	ext, err := r.copyTo(ctx, out, index)
	if out.err != nil {
		return r.unwritable(out.err)
	}
	if err != nil {
		return err
	}
	if err := durable.OwnLike(f, r.Output, filepath.Dir(r.Output)); err != nil {
		return r.unwritable(err)
	}
	if old, serr := os.Stat(r.Output); serr == nil {
		if err := f.Chmod(old.Mode().Perm()); err != nil {
			return r.unwritable(err)
		}
	}
	if err := into.Sync(); err != nil {
		return r.unwritable(err)
	}
	if err := r.stageIndex(index, ext.End); err != nil {
		return err
	}
	r.crash("built")
	// The old index must not meet the new file: FileStorage looks at a few records only before it trusts it.
	if err := durable.Remove(r.Output + ".index"); err != nil {
		return r.halfReplaced(err)
	}
	r.crash("unindexed")
	if err := durable.Rename(tmp, r.Output); err != nil {
		return r.halfReplaced(err)
	}
	r.crash("renamed")
	r.took(ext)
	if err := durable.Rename(r.indexTemp(), r.Output+".index"); err != nil {
		return r.unindexed(err)
	}
	return nil
}

// halfReplaced is a failure at the moment of the exchange.
func (r *recovery) halfReplaced(err error) error {
	return fault.New(nil, "replacing %s", r.Output).Because(err).
		Keeping("what stands under that name is the whole old file or the whole new one, perhaps without its index").
		Remedy("see to the disk (rights, errors), then recover again")
}

// unindexed is a failure after all else was done.
func (r *recovery) unindexed(err error) error {
	return fault.New(nil, "%s is recovered, but its index could not be written", r.Output).Because(err).
		Keeping("the file is whole: without a newer index FileStorage scans it").
		Remedy("zodbrepl index %s", r.Output)
}

// removeLeftovers removes what a recovery that was killed left: a file as large as the database, which is of use to
// nobody. FileStorage calls its own scratch file like ours; without a server, whose lock we hold, that is as useless.
// What is no regular file is not ours, and refused when its place is needed.
func (r *recovery) removeLeftovers() error {
	var dead []string
	for _, path := range []string{r.Output + durable.TempSuffix, r.indexTemp(), r.Output + ".index.index_tmp"} {
		if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() {
			dead = append(dead, path)
		}
	}
	if err := durable.Remove(dead...); err != nil {
		return r.unwritable(err)
	}
	return nil
}

func (r *recovery) indexTemp() string { return r.Output + ".index" + durable.TempSuffix }

func (r *recovery) stageIndex(index *filestorage.Index, end int64) error {
	f, err := durable.Create(r.indexTemp(), 0o666)
	if err != nil {
		return r.unwritable(err)
	}
	defer f.Close()
	if err := filestorage.WriteIndex(f, index, end); err != nil {
		return r.unwritable(err)
	}
	if err := durable.OwnLike(f, r.Output, filepath.Dir(r.Output)); err != nil {
		return r.unwritable(err)
	}
	if err := f.Sync(); err != nil {
		return r.unwritable(err)
	}
	return nil
}

func (r *recovery) unwritable(err error) error {
	return fault.New(nil, "writing %s", r.Output).Because(err).Keeping("the old output is as it was").
		Remedy("see to the disk (space, rights, errors), then recover again")
}
