//go:build unix

package filestorage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// Lock is the lock that a FileStorage takes when it opens a Data.fs for writing (Python: zc.lockfile): an flock
// on the file beside it with ".lock" appended, which holds " <pid>\n" and is never removed. Whoever holds it is the
// only writer; readers take none. The system frees it when the process ends, however it ends.
type Lock struct {
	mu sync.Mutex
	f  *os.File // nil when released
}

// LockedError says that another process has a Data.fs open for writing. It is of the kind fault.Busy.
type LockedError struct {
	Path string // of the lock file
	PID  int    // what the holder wrote there; 0 when it has not
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is locked by another process", e.Path)
	}
	return fmt.Sprintf("%s is locked by process %d", e.Path, e.PID)
}

// Unwrap makes a LockedError match fault.Busy, and tells what to do.
func (e *LockedError) Unwrap() error {
	return (&fault.Error{Kind: fault.Busy}).Keeping("everything").
		Remedy("stop the process that has the Data.fs open for writing, or wait for it; do not remove the lock file")
}

// AcquireLock takes the lock of the Data.fs at dataPath, without waiting. It fails with a *LockedError when another
// process, or this one, has it already.
func AcquireLock(dataPath string) (*Lock, error) {
	path := dataPath + ".lock"
	// Not truncated: until the flock is ours the content is the holder's. os closes it when a child is started.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &LockedError{Path: path, PID: readPID(f)}
		}
		return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	content := fmt.Appendf(nil, " %d\n", os.Getpid())
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Truncate(int64(len(content)))
	}
	if err == nil {
		err = durable.OwnLike(f, dataPath, filepath.Dir(dataPath))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Lock{f: f}, nil
}

// Release frees the lock; the file stays, as zc.lockfile leaves it. Releasing twice does nothing.
func (l *Lock) Release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	// A child of ours might have the descriptor for a moment between fork and exec; unlocking frees it there too.
	err := flock(l.f, unix.LOCK_UN)
	if cerr := l.f.Close(); err == nil {
		err = cerr
	}
	l.f = nil
	return err
}

// LockHolder says whether a process, this one included, holds the lock of the Data.fs at dataPath, and which one by
// what it wrote there (0 when it has not). It changes nothing and creates nothing.
//
// To ask, it holds a shared lock for some microseconds: a FileStorage that is opened for writing just then fails to
// lock. So ask once before a decision, not in a tight loop.
func LockHolder(dataPath string) (pid int, held bool, err error) {
	path := dataPath + ".lock"
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	switch err := flock(f, unix.LOCK_SH|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return readPID(f), true, nil
	case err != nil:
		return 0, false, &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	return 0, false, flock(f, unix.LOCK_UN)
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

// readPID returns the number that the lock file begins with, 0 for none.
func readPID(f *os.File) int {
	var b [32]byte
	n, _ := f.ReadAt(b[:], 0)
	fields := bytes.FieldsFunc(b[:n], func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(string(fields[0]))
	if err != nil {
		return 0
	}
	return pid
}
