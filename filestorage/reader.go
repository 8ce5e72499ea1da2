package filestorage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"zodbrepl/internal/fault"
)

// Reader is random access to the bytes of a Data.fs, which may be growing.
type Reader interface {
	io.ReaderAt
	// Size returns the bytes that there are now.
	Size() (int64, error)
}

// File is a Data.fs being read. It holds no position: several goroutines may scan it at once.
type File struct {
	r     Reader
	name  string
	pause time.Duration // before what looks wrong is read again
	first int64         // position of the first transaction that is there
}

// NewFile checks the magic and returns a File that reads from r. The name stands in errors.
// It fails with ErrNotFileStorage when r holds something else or nothing.
func NewFile(r Reader, name string) (*File, error) {
	var magic [MagicSize]byte
	n, err := readAt(r, magic[:], 0)
	switch {
	case err != nil && err != io.ErrUnexpectedEOF:
		return nil, fmt.Errorf("%s: %w", name, err)
	case n == 0:
		return nil, notFileStorage(name, "the file is empty")
	case n < MagicSize:
		return nil, notFileStorage(name, fmt.Sprintf("only %d bytes long", n))
	case !ValidMagic(magic[:]):
		return nil, notFileStorage(name, fmt.Sprintf("begins with %q, not FS30 or FS21", magic[:]))
	}
	return &File{r: r, name: name, pause: settlePause, first: MagicSize}, nil
}

// NewPart returns a File of the end of a Data.fs: its transactions from the commit boundary first on. r takes positions
// of the whole Data.fs; it need not have what stands before first, and says ErrBeforePart of what it has not.
func NewPart(r Reader, name string, first int64) *File {
	return &File{r: r, name: name, pause: settlePause, first: first}
}

func notFileStorage(name, why string) error {
	return fault.New(nil, "%s: %s", name, why).Because(ErrNotFileStorage).
		Remedy("check the path; a Data.fs begins with the four bytes FS30 (FS21 when Python 2 wrote it)")
}

// OSFile is a Reader of an open file.
type OSFile struct{ *os.File }

// Size returns the size that the file has now, in bytes.
func (f OSFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Open opens the Data.fs at path for reading, without a lock. Close it through the returned closer.
func Open(path string) (*File, io.Closer, error) {
	osf, err := OpenRegular(path)
	if err != nil {
		return nil, nil, err
	}
	f, err := NewFile(OSFile{osf}, path)
	if err != nil {
		osf.Close()
		return nil, nil, err
	}
	return f, osf, nil
}

// OpenRegular opens path for reading and refuses what is not a regular file, without blocking on a pipe.
func OpenRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|openNonblock, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: fmt.Errorf("is %s, not a regular file", kindOf(fi))}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func kindOf(fi os.FileInfo) string {
	switch m := fi.Mode(); {
	case m.IsDir():
		return "a directory"
	case m&os.ModeDevice != 0:
		return "a device"
	case m&os.ModeNamedPipe != 0:
		return "a pipe"
	case m&os.ModeSocket != 0:
		return "a socket"
	}
	return "something else"
}

// Name returns the name given to NewFile.
func (f *File) Name() string { return f.name }

// First returns the position of the first transaction: MagicSize, except for a part.
func (f *File) First() int64 { return f.first }

// ReadAt reads the raw bytes.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.r.ReadAt(p, off) }

// Size returns the bytes that there are now, the in-flight tail included.
func (f *File) Size() (int64, error) { return f.r.Size() }

// Section reads the raw bytes from start to end.
func (f *File) Section(start, end int64) *io.SectionReader {
	return io.NewSectionReader(f.r, start, end-start)
}

// readAt fills b from off. When there is less it returns how much, and io.ErrUnexpectedEOF. Unlike a bare ReadAt
// it neither fails when b ends where the file ends, nor takes a part for the whole.
func readAt(r io.ReaderAt, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		k, err := r.ReadAt(b[n:], off+int64(n))
		n += k
		switch {
		case n == len(b):
			return n, nil
		case errors.Is(err, io.EOF), err == nil && k == 0:
			return n, io.ErrUnexpectedEOF
		case err != nil:
			return n, err
		}
	}
	return n, nil
}

// readFull fills b with bytes that have been seen to be there: fewer is a *ShrunkError.
func (f *File) readFull(b []byte, off int64) error {
	_, err := readAt(f.r, b, off)
	if err == nil {
		return nil
	}
	end := off + int64(len(b))
	if err == io.ErrUnexpectedEOF {
		if size, serr := f.r.Size(); serr == nil && size < end {
			return &ShrunkError{File: f.name, Pos: end, Size: size}
		}
	}
	return fmt.Errorf("%s: reading at %d: %w", f.name, off, err)
}

func (f *File) corrupt(pos int64, tid TID, format string, args ...any) error {
	return &CorruptError{File: f.name, Pos: pos, TID: tid, Cause: fmt.Sprintf(format, args...)}
}

// A window shows parts of a file through one buffer. It reads little where the caller skips far, and more and
// more where the caller goes on from what is already there, so that headers far apart cost a page each and
// headers close together cost one read for many.
type window struct {
	r    io.ReaderAt
	off  int64
	buf  []byte // what is there, from off
	next int    // bytes to read the next time
}

const (
	windowMin = 4 << 10
	windowMax = 256 << 10
)

// view returns n bytes at off, valid until the next call. At the end of the file it returns what there is and
// io.ErrUnexpectedEOF.
func (w *window) view(off int64, n int) ([]byte, error) {
	if i := off - w.off; i >= 0 && i+int64(n) <= int64(len(w.buf)) {
		return w.buf[i : i+int64(n)], nil
	}
	if end := w.off + int64(len(w.buf)); w.next > 0 && off >= w.off && off < end+windowMin {
		w.next = min(2*w.next, windowMax)
	} else {
		w.next = windowMin
	}
	size := max(w.next, n)
	if cap(w.buf) < size {
		w.buf = make([]byte, size)
	}
	got, err := readAt(w.r, w.buf[:size], off)
	w.off, w.buf = off, w.buf[:got]
	if got >= n {
		return w.buf[:n], nil
	}
	return w.buf, err
}

// forget makes the next view read again: the file may have changed under the window.
func (w *window) forget() { w.buf = w.buf[:0] }
