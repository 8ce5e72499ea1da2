package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// dirTarget is a directory of this host, often a shared mount.
type dirTarget struct {
	incremental.Dir
	limit, in *limiter
}

func newDirTarget(ctx context.Context, path string, o TargetOptions) (Target, error) {
	t := dirTarget{incremental.Dir(path), newLimiter(o.LimitRate), newLimiter(o.LimitRate)}
	if _, err := t.List(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

const chunkSize = 1 << 20

func (t dirTarget) temp(name string) string { return t.Path(name) + durable.TempSuffix }

// Open implements incremental.Source.
func (t dirTarget) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := t.Dir.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	return t.in.reader(ctx, r), nil
}

// Stat implements Target.
func (t dirTarget) Stat(ctx context.Context, name string) (int64, bool, error) {
	if err := ctx.Err(); err != nil {
		return 0, false, err
	}
	fi, err := os.Lstat(t.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if !fi.Mode().IsRegular() {
		return 0, false, fault.New(fault.Unverified, "%s is not a regular file", t.Path(name)).Remedy("remove it, then ship again")
	}
	return fi.Size(), true, nil
}

// Put implements Target. A crash leaves a temporary file with a beginning of content, or with less that is wrong
// after a power failure; the next Put compares.
func (t dirTarget) Put(ctx context.Context, name string, content io.ReaderAt, size int64, progress incremental.Progress) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	f, err := t.openTemp(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	done, err := commonPrefix(ctx, f, content, size)
	if err != nil {
		return 0, fmt.Errorf("comparing %s with %s: %w", t.temp(name), name, err)
	}
	if err := f.Truncate(done); err != nil {
		return 0, t.explain(err)
	}
	sent := int64(0)
	buf := make([]byte, chunkSize)
	for done < size {
		if err := ctx.Err(); err != nil {
			return sent, err
		}
		n, err := content.ReadAt(buf[:min(chunkSize, size-done)], done)
		if n == 0 {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return sent, fmt.Errorf("reading %s to ship it: %w", name, err)
		}
		if err := t.limit.wait(ctx, n); err != nil {
			return sent, err
		}
		if _, err := f.WriteAt(buf[:n], done); err != nil {
			return sent, t.explain(err)
		}
		done += int64(n)
		sent += int64(n)
		if progress != nil {
			progress(done, size)
		}
	}
	if err := f.Sync(); err != nil {
		return sent, t.explain(err)
	}
	fi, err := f.Stat()
	if err != nil {
		return sent, t.explain(err)
	}
	if fi.Size() != size {
		return sent, fmt.Errorf("%s: %d bytes arrived, should be %d", t.temp(name), fi.Size(), size)
	}
	return sent, nil
}

// openTemp opens the temporary file. What is no regular file was not made by an earlier Put and is left alone.
func (t dirTarget) openTemp(name string) (*os.File, error) {
	f, err := os.OpenFile(t.temp(name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	regular := false
	if err == nil {
		var fi os.FileInfo
		if fi, err = f.Stat(); err == nil {
			regular = fi.Mode().IsRegular()
		}
	}
	switch {
	case err == nil && regular:
		return f, nil
	case f != nil:
		f.Close()
	}
	if err == nil || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO) {
		return nil, fault.New(fault.Unverified, "%s is not a regular file", t.temp(name)).Because(err).
			Keeping("it was not touched").Remedy("remove it, then ship again")
	}
	return nil, t.explain(err)
}

// commonPrefix returns up to where the two have the same bytes.
func commonPrefix(ctx context.Context, a, b io.ReaderAt, size int64) (int64, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := a.ReadAt(x[:min(int64(len(x)), size-off)], off)
		if err != nil && err != io.EOF {
			return 0, err
		}
		m, err := b.ReadAt(y[:n], off)
		if err != nil && err != io.EOF {
			return 0, err
		}
		if n = min(n, m); n == 0 {
			return off, nil
		}
		if !bytes.Equal(x[:n], y[:n]) {
			for i := range n {
				if x[i] != y[i] {
					return off + int64(i), nil
				}
			}
		}
		off += int64(n)
	}
	return size, nil
}

// Publish implements Target.
func (t dirTarget) Publish(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.explain(durable.Rename(t.temp(name), t.Path(name)))
}

// Rename implements Target.
func (t dirTarget) Rename(ctx context.Context, from, to string) error {
	return t.explain(t.Dir.Rename(ctx, from, to))
}

// Remove implements Target.
func (t dirTarget) Remove(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return t.explain(durable.Remove(t.Path(name), t.temp(name)))
}

// Close implements Target.
func (t dirTarget) Close() error { return nil }

func (t dirTarget) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return fault.New(nil, "target %s is full", t.Dir).Because(err).
			Keeping("what was published there is as it was; the half of a file that arrived will be gone on with").
			Remedy("make room there, then ship again")
	case errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS):
		return fault.New(nil, "target %s cannot be written", t.Dir).Because(err).
			Remedy("give this user the right to write there, or mount it read-write")
	}
	return fmt.Errorf("target %s: %w", t.Dir, err)
}
