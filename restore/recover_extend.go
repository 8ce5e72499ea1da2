package restore

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
)

// extend appends to an earlier recovery. ok is false when there is none, or it is no prefix of what is wanted.
//
// Everything is read twice, what is appended at least: first all is verified and what is there compared, and only
// when all was good is anything written.
func (r *recovery) extend(ctx context.Context) (ok bool, err error) {
	f, err := os.OpenFile(r.Output, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, nil //nolint:nilerr // there is none, or none that can be appended to: it is built anew
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return false, err
	}
	old := fi.Size()
	r.Log.Info("comparing an earlier recovery with the repository", "storage", r.Output, "bytes", old)
	index := &filestorage.Index{}
	there := &prefix{f: f, end: old}
	ext, err := r.copyTo(ctx, there, index)
	switch {
	case there.differs || err == nil && ext.End < old:
		return false, nil
	case err != nil:
		return true, err
	}
	if err := r.appendFrom(ctx, f, old, ext.End); err != nil {
		return true, errors.Join(err, f.Truncate(old), f.Sync())
	}
	r.crash("extended")
	r.took(ext)
	r.res.Appended = ext.End - old
	if err := filestorage.SaveIndex(r.Output+".index", index, ext.End); err != nil {
		return true, r.unindexed(err)
	}
	return true, nil
}

// appendFrom writes the raw bytes between two positions, from the end of f on, and makes them durable.
func (r *recovery) appendFrom(ctx context.Context, f *os.File, start, end int64) error {
	out := &window{f: f, start: start, end: end, tell: r.Progress}
	for _, inc := range r.increments {
		if inc.End <= start || inc.Start >= end {
			continue
		}
		out.pos = inc.Start
		err := r.repo.Copy(ctx, inc, out)
		if out.err != nil {
			return r.unwritable(out.err)
		}
		if err != nil {
			return r.blame(inc, err)
		}
	}
	if err := f.Sync(); err != nil {
		return r.unwritable(err)
	}
	return nil
}

// window writes to a file what of the bytes written to it lies between two positions.
type window struct {
	f          io.WriterAt
	start, end int64
	pos        int64 // of the next byte
	tell       incremental.Progress
	err        error // of f
}

func (w *window) Write(p []byte) (int, error) {
	from, to := max(w.pos, w.start), min(w.pos+int64(len(p)), w.end)
	if from < to {
		if _, w.err = w.f.WriteAt(p[from-w.pos:to-w.pos], from); w.err != nil {
			return 0, w.err
		}
		w.tell(to-w.start, w.end-w.start)
	}
	w.pos += int64(len(p))
	return len(p), nil
}

// prefix compares what is written to it with a file, as far as that goes.
type prefix struct {
	f       io.ReaderAt
	end     int64 // of the file
	pos     int64
	buf     []byte
	differs bool
}

var errDiffers = errors.New("not the beginning of what is recovered")

func (e *prefix) Write(p []byte) (int, error) {
	if there := min(int64(len(p)), e.end-e.pos); there > 0 {
		c := comparer{r: e.f, pos: e.pos, end: e.end, buf: e.buf, same: true}
		c.Write(p[:there])
		e.buf = c.buf
		if c.err != nil || !c.same {
			e.differs = true
			return 0, errDiffers
		}
	}
	e.pos += int64(len(p))
	return len(p), nil
}
