package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/pkg/sftp"

	"zodbrepl/internal/fault"
)

// window is how many requests of one file are under way at once. What is in flight fills a line of 100 MB/s with 40 ms,
// or what SSH's own window of 2 MiB lets through.
const window = 128

// Open implements incremental.Source. The reader asks for what comes next before it is wanted, and goes on behind a cut
// of the line.
func (t *sftpTarget) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r := t.openSmall(ctx, name); r != nil {
		return r, nil
	}
	r := &remoteFile{t: t, name: name}
	err := t.do(ctx, func(ctx context.Context, s *session) error { return r.open(ctx, s) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fs.PathError{Op: "open", Path: t.name(name), Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, t.explainRead(ctx, name, err)
	}
	r.ctx = ctx
	return r, nil
}

func (t *sftpTarget) explainRead(ctx context.Context, name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(nil, "%s cannot be read", t.name(name)).Because(err).Keeping("nothing was changed").
			Remedy("give that account the right to read it")
	}
	return t.explain(ctx, err)
}

// remoteFile reads a file from its beginning.
type remoteFile struct {
	t    *sftpTarget
	name string
	ctx  context.Context

	f     *sftp.File
	s     *session
	info  os.FileInfo
	off   int64 // of the next byte that Read returns
	ahead *readAhead
}

// open opens the file, which must be the one of the first time. The look at what it is travels with the request to open
// it: a symbolic link is opened for nothing then, and not read.
func (r *remoteFile) open(ctx context.Context, s *session) error {
	path := r.t.at(r.name)
	type looked struct {
		fi  os.FileInfo
		err error
	}
	look := make(chan looked, 1)
	go func() {
		fi, err := s.lstat(ctx, path)
		look <- looked{fi, err}
	}()
	var f *sftp.File
	err := s.ask(ctx, func() (err error) { f, err = s.client.OpenFile(path, os.O_RDONLY); return err })
	l := <-look
	if l.err == nil && !l.fi.Mode().IsRegular() {
		err = fault.New(fault.Unverified, "%s is not a regular file", r.t.name(r.name)).Remedy("put the file itself in its place")
	}
	if err == nil {
		err = l.err
	}
	if err == nil && r.info != nil && (l.fi.Size() != r.info.Size() || !l.fi.ModTime().Equal(r.info.ModTime())) {
		err = fmt.Errorf("%s was replaced while it was read", r.t.name(r.name))
	}
	if err != nil {
		if f != nil {
			go f.Close()
		}
		return err
	}
	r.f, r.s, r.info = f, s, l.fi
	r.ahead = newReadAhead(ctx, s, f, r.off, l.fi.Size())
	return nil
}

// Read implements io.Reader.
func (r *remoteFile) Read(p []byte) (n int, err error) {
	if r.off >= r.info.Size() {
		return 0, io.EOF
	}
	n, err = r.ahead.read(p)
	var line *lineError
	if errors.As(err, &line) && n == 0 {
		r.s.kill(err)
		err = r.t.doing(r.ctx, func(s *session, _ int, forward *atomic.Int64) error {
			r.close()
			if err := r.open(r.ctx, s); err != nil {
				return err
			}
			n, err = r.ahead.read(p)
			return err
		})
	}
	r.off += int64(n)
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, r.t.explainRead(r.ctx, r.name, err)
}

// close gives the handle back, without waiting.
func (r *remoteFile) close() {
	if r.ahead != nil {
		r.ahead.stop()
		f, s := r.f, r.s
		go func() { _ = s.ask(context.Background(), f.Close) }()
		r.ahead = nil
	}
}

// Close implements io.Closer.
func (r *remoteFile) Close() error {
	r.close()
	return nil
}

// readAhead reads from off to size, in order, with a window of requests under way.
type readAhead struct {
	pieces chan *piece
	cancel context.CancelFunc
	now    *piece
}

// piece is a request for a part of a file, and what came.
type piece struct {
	done chan struct{}
	b    []byte
	err  error
}

func newReadAhead(ctx context.Context, s *session, f *sftp.File, off, size int64) *readAhead {
	// Only the asking stops: to cancel what is under way would cost the connection.
	more, cancel := context.WithCancel(ctx)
	a := &readAhead{pieces: make(chan *piece, window), cancel: cancel}
	ask := func(off, n int64) *piece {
		p := &piece{done: make(chan struct{})}
		go func() {
			defer close(p.done)
			p.b, p.err = s.readAt(ctx, f, off, n)
		}()
		return p
	}
	go func() {
		defer close(a.pieces)
		for off < size {
			n := min(minPacket, size-off)
			if more.Err() != nil {
				return
			}
			select {
			case a.pieces <- ask(off, n):
			case <-more.Done():
				return
			}
			off += n
		}
	}()
	return a
}

// readAt reads exactly n bytes. Fewer are an error: pkg/sftp says io.EOF when the file ends and when the line does.
func (s *session) readAt(ctx context.Context, f *sftp.File, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	var m int
	var rerr error
	err := s.ask(ctx, func() error { m, rerr = f.ReadAt(b, off); return rerr })
	if int64(m) == n {
		return b, nil
	}
	if rerr == io.EOF && s.dead() == nil {
		var fi os.FileInfo
		if err := s.ask(ctx, func() (err error) { fi, err = f.Stat(); return err }); err != nil {
			return b[:m], err
		}
		if fi.Size() <= off+int64(m) {
			return b[:m], io.ErrUnexpectedEOF
		}
	}
	return b[:m], err
}

// read returns some of what comes next; io.EOF behind the last.
func (a *readAhead) read(p []byte) (int, error) {
	if a.now == nil {
		next, ok := <-a.pieces
		if !ok {
			return 0, io.EOF
		}
		a.now = next
	}
	<-a.now.done
	n := copy(p, a.now.b)
	a.now.b = a.now.b[n:]
	if len(a.now.b) > 0 {
		return n, nil
	}
	err := a.now.err
	if err == nil {
		a.now = nil
	}
	if n > 0 {
		return n, nil
	}
	if err == nil && len(p) > 0 {
		return a.read(p)
	}
	return 0, err
}

// stop ends it; requests that are under way come to nothing.
func (a *readAhead) stop() {
	a.cancel()
	go func() {
		for range a.pieces {
		}
	}()
}
