package gentle

import (
	"math"

	"golang.org/x/sys/unix"
)

const (
	// keepWritten is how much of a file that is written stays in the cache: a delta that is sent on at once.
	keepWritten = 16 << 20
	// syncEvery is how many bytes are made durable at a time, while more comes.
	syncEvery = 8 << 20
)

// Writer writes a file from its beginning to its end, and makes durable what is there while more comes: one fsync for all of a
// large file takes as long as the writing, and stands in everybody's way meanwhile.
//
// An error of such an fsync is told once by the kernel, so the file's own Sync would not tell it again. Call the Writer's in
// its place, and Close in any case. Nothing else writes to the file.
type Writer struct {
	g    *File
	n    int64 // of the file, what is written
	skip int64 // of what comes, what the file has already
	keep int64 // of the file, how much stays in the cache

	every int64
	sync  func() error
	asked int64      // of the file, what the last fsync was begun for
	under chan error // tells how the fsync ended that is under way; nil: none is
	err   error      // of an fsync
}

func (g *File) writer(keep int64) *Writer {
	return &Writer{g: g, keep: keep, every: syncEvery, sync: g.f.Sync}
}

// Writer returns a Writer of an empty file. What goes beyond some MiB does not stay in the cache.
func (g *File) Writer() *Writer { return g.writer(keepWritten) }

// KeepingWriter returns a Writer of an empty file that is needed soon.
func (g *File) KeepingWriter() *Writer { return g.writer(math.MaxInt64) }

// WriterAfter returns a Writer of a file that has the first n bytes already: they are passed over.
func (g *File) WriterAfter(n int64) *Writer {
	w := g.writer(n + keepWritten)
	w.n, w.skip, w.asked = n, n, n
	return w
}

// Write is os.File's. It fails for ever after an fsync has failed.
func (w *Writer) Write(p []byte) (int, error) {
	w.look()
	if w.err != nil {
		return 0, w.err
	}
	k := int(min(int64(len(p)), w.skip))
	w.skip -= int64(k)
	n, err := w.write(p[k:])
	w.n += int64(n)
	if w.n-w.asked >= w.every && w.under == nil {
		w.asked, w.under = w.n, make(chan error, 1)
		go func(told chan<- error) { told <- w.sync() }(w.under)
	}
	return k + n, err
}

func (w *Writer) write(p []byte) (n int, err error) {
	for at := w.n; at >= w.keep && !w.g.unable.Load() && n < len(p); {
		k, err := w.g.try(func(fd int) (int, error) { return unix.Pwritev2(fd, [][]byte{p[n:]}, at, dontCache) })
		if refused(err) {
			w.g.unable.Store(true)
			break
		}
		if err != nil || k == 0 { // broken, or full: let it be told as usual
			break
		}
		n += k
		at += int64(k)
	}
	if n == len(p) {
		return n, nil
	}
	k, err := w.g.f.WriteAt(p[n:], w.n+int64(n))
	return n + k, err
}

// look takes note of an fsync that has ended.
func (w *Writer) look() {
	select {
	case w.err = <-w.under:
		w.under = nil
	default:
	}
}

// Sync makes all that was written durable.
func (w *Writer) Sync() error {
	if err := w.Close(); err != nil {
		return err
	}
	w.err = w.sync()
	return w.err
}

// Close waits for the fsync that is under way, and returns the error of the first that failed. The file stays open.
func (w *Writer) Close() error {
	if w.under != nil {
		w.err = <-w.under
		w.under = nil
	}
	return w.err
}
