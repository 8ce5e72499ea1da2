package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
)

// lineError is a failure of the line or of the peer's process, not of what was asked for: worth another attempt.
type lineError struct{ err error }

func (e *lineError) Error() string { return "the line failed: " + e.err.Error() }
func (e *lineError) Unwrap() error { return e.err }

// plain leaves out of a network error the addresses of this end: they change with each attempt, and a message that
// stays the same is told once.
func plain(err error) error {
	var op *net.OpError
	var sys *os.SyscallError
	switch {
	case errors.As(err, &op) && errors.As(op.Err, &sys):
		return sys.Err
	case errors.As(err, &op):
		return op.Err
	case errors.Is(err, sftp.ErrSSHFxConnectionLost), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return errors.New("the connection was closed")
	}
	return err
}

// session is a running SFTP client and the line below. pkg/sftp waits for ever; the session closes the line when the
// peer is silent, which ends every call.
type session struct {
	timing
	client *sftp.Client
	// what the server can
	posixRename, fsync, statVFS bool

	close func() // ends the line at once
	in    *limiter
	out   *limiter

	ctx    context.Context // done when the session is
	cancel context.CancelCauseFunc

	waiting  atomic.Int64 // calls that wait for an answer
	flushing atomic.Int64 // those that may take longer
	moved    atomic.Int64 // when a byte came, or was taken by the line
	dir      handle       // on the directory, to make names durable
	wider    wider        // more channels, for large files

	roundTrip atomic.Int64 // the quickest there was, in nanoseconds
}

// handle is the directory opened as a file, which OpenSSH allows.
type handle struct {
	sync.Mutex
	f      *sftp.File
	broken bool // the server cannot do that
}

func newSession(t timing, limit int64, closeLine func()) *session {
	s := &session{timing: t, close: closeLine, in: newLimiter(limit), out: newLimiter(limit)}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.touch()
	return s
}

func (s *session) touch() { s.moved.Store(time.Now().UnixNano()) }

// kill ends the session and everything that waits in it. The first cause counts.
func (s *session) kill(cause error) {
	s.cancel(cause)
	s.close()
}

// dead returns why the session ended, nil while it lives.
func (s *session) dead() error {
	if s.ctx.Err() == nil {
		return nil
	}
	return context.Cause(s.ctx)
}

// failed ends a session that did not come up, and says so.
func (s *session) failed(what string, err error) error {
	if cause := s.dead(); cause != nil {
		err = cause
	}
	s.kill(err)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &lineError{fmt.Errorf("%s: %w", what, plain(err))}
}

// maxPacket is the most that OpenSSH takes at once; it says so with limits@openssh.com, which it has had since 8.5. All
// servers take minPacket.
const (
	maxPacket = 255 << 10
	minPacket = 32 << 10
)

// start begins SFTP on the pipes.
func (s *session) start(r io.Reader, w io.WriteCloser) error {
	s.waiting.Add(1)
	defer s.waiting.Add(-1)
	go s.watchdog()
	c, err := sftp.NewClientPipe(pipeReader{s, r}, pipeWriter{s, w}, sftp.MaxPacketUnchecked(maxPacket))
	if err != nil {
		return err
	}
	s.client = c
	has := func(name string) bool { _, ok := c.HasExtension(name); return ok }
	s.posixRename, s.fsync, s.statVFS = has("posix-rename@openssh.com"), has("fsync@openssh.com"), has("statvfs@openssh.com")
	go func() {
		_ = c.Wait()
		s.kill(errors.New("the connection was closed"))
	}()
	return nil
}

// watchdog ends the session when the peer owes an answer and nothing moves.
func (s *session) watchdog() {
	tick := time.NewTicker(max(s.stall/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		limit := s.stall
		if s.flushing.Load() > 0 {
			limit = s.flush
		}
		if s.waiting.Load() > 0 && time.Since(time.Unix(0, s.moved.Load())) > limit {
			s.kill(fmt.Errorf("no answer within %s", limit))
			return
		}
	}
}

// ask runs one request, or several at once, and returns its error; one of the line as a lineError. When ctx is done
// the request has the grace to end, then the line is closed.
func (s *session) ask(ctx context.Context, request func() error) error {
	if s.waiting.Add(1) == 1 {
		s.touch()
	}
	defer s.waiting.Add(-1)
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(s.grace):
			s.kill(ctx.Err())
		case <-ended:
		case <-s.ctx.Done():
		}
	})()
	return s.line(request())
}

// line makes an error that the line is to blame for a lineError. io.EOF is one of these: pkg/sftp returns it for the end
// of a file and for that of the line, so who reads a file has to tell them apart.
func (s *session) line(err error) error {
	var status *sftp.StatusError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sftp.ErrSSHFxConnectionLost), s.dead() != nil:
	case errors.As(err, &status), errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return err
	}
	if cause := s.dead(); cause != nil {
		err = cause
	}
	return &lineError{plain(err)}
}

// pipeReader and pipeWriter stand between pkg/sftp and the line.
type pipeReader struct {
	s *session
	r io.Reader
}

func (p pipeReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b[:p.s.in.piece(len(b))])
	if n > 0 {
		p.s.touch()
		if err := p.s.in.wait(p.s.ctx, n); err != nil {
			return 0, err
		}
		p.s.touch()
	}
	return n, err
}

type pipeWriter struct {
	s *session
	w io.WriteCloser
}

func (p pipeWriter) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		piece := p.s.out.piece(len(b) - n)
		if err = p.s.out.wait(p.s.ctx, piece); err != nil {
			return n, err
		}
		p.s.touch()
		var m int
		m, err = p.w.Write(b[n : n+piece])
		n += m
		p.s.touch()
	}
	return n, err
}

func (p pipeWriter) Close() error { return p.w.Close() }

// end closes the session in good order, or at once when that takes too long.
func (s *session) end() {
	timer := time.AfterFunc(s.grace, func() { s.kill(net.ErrClosed) })
	defer timer.Stop()
	s.client.Close()
	s.kill(net.ErrClosed)
}
