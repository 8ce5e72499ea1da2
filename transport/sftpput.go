package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// checkpoint is how many bytes may travel before what has arrived is made durable, and so need not be compared again
// when the line is cut. It also keeps the last fsync short.
const checkpoint = 64 << 20

// Put implements Target. Many writes are under way at once and may be carried out in any order, so after a cut, or when
// this process or the server died, the temporary file may have holes, or zeros where a power failure took what was not
// durable yet. Nothing is taken on trust: what is there is read back and compared with content, up to the first
// difference, and cut off there. Only what this very call has sent, and the server has made durable since, is not read
// back.
//
// The file gets its name by Publish alone, when all writes were answered, the size was checked and, where the server
// can, all was made durable.
func (t *sftpTarget) Put(ctx context.Context, name string, content io.ReaderAt, size int64, progress incremental.Progress) (int64, error) {
	p := &put{t: t, name: name, content: content, size: size, progress: progress}
	err := t.doing(ctx, func(s *session, _ int, forward *atomic.Int64) error {
		p.forward = forward
		return p.attempt(ctx, s)
	})
	var local *contentError
	if errors.Is(err, fs.ErrNotExist) && !errors.As(err, &local) { // a new file can be made wherever there is a directory
		return p.sent, t.explainDir(err)
	}
	return p.sent, t.explain(ctx, err)
}

// put is a file on its way, over several connections perhaps.
type put struct {
	t        *sftpTarget
	name     string
	content  io.ReaderAt
	size     int64
	progress incremental.Progress
	forward  *atomic.Int64

	sent     int64 // that had to travel, the same bytes perhaps twice
	safe     int64 // up to here all is as it should be, durably: what was read back may still be lost with the power
	reported int64 // to progress
}

// contentError is a failure of what is sent.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

func (p *put) attempt(ctx context.Context, s *session) error {
	f, err := p.openTemp(ctx, s)
	if err != nil {
		return err
	}
	defer func() {
		if f != nil {
			go func() { _ = s.ask(context.Background(), f.Close) }()
		}
	}()
	var fi os.FileInfo
	stat := func() error { return s.ask(ctx, func() (err error) { fi, err = f.Stat(); return err }) }
	asked := time.Now()
	if err := stat(); err != nil {
		return err
	}
	s.answered(asked)
	there := fi.Size()
	if there < p.safe {
		p.safe = 0 // somebody has cut it
	}
	done := p.safe
	if there > done {
		if done, err = p.compare(ctx, s, f, done, min(there, p.size)); err != nil {
			return err
		}
	}
	if there > done {
		if err := s.ask(ctx, func() error { return f.Truncate(done) }); err != nil {
			return err
		}
	}
	if err := p.send(ctx, s, f, done); err != nil {
		return err
	}
	if s.fsync {
		if err := s.sync(ctx, f); err != nil {
			return err
		}
	} else {
		p.t.undurable.Store(true)
	}
	if err := stat(); err != nil {
		return err
	}
	if fi.Size() != p.size {
		return fmt.Errorf("%s: %d bytes arrived, should be %d", p.t.temp(p.name), fi.Size(), p.size)
	}
	closing := f
	f = nil
	if err := s.ask(ctx, closing.Close); err != nil {
		return err
	}
	p.t.puts.Store(p.name, putState{p.size, fi.ModTime()})
	return nil
}

// openTemp opens the temporary file. What is no regular file was not made by an earlier Put and is left alone. SFTP
// cannot refuse to follow a link in the same step, so a new file is made exclusively.
func (p *put) openTemp(ctx context.Context, s *session) (f *sftp.File, err error) {
	path := p.t.temp(p.name)
	flags := os.O_RDWR
	fi, err := s.lstat(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		flags |= os.O_CREATE | os.O_EXCL
	case err != nil:
		return nil, err
	case !fi.Mode().IsRegular():
		return nil, fault.New(fault.Unverified, "%s is not a regular file", p.t.String()+"/"+p.name+".tmp").
			Keeping("it was not touched").Remedy("remove it, then ship again")
	}
	err = s.ask(ctx, func() (err error) { f, err = s.client.OpenFile(path, flags); return err })
	return f, err
}

// compare returns up to where the file has the same bytes as content, from off on and at most up to end.
func (p *put) compare(ctx context.Context, s *session, f *sftp.File, off, end int64) (int64, error) {
	a := newReadAhead(ctx, s, f, off, end)
	defer a.stop()
	x, y := make([]byte, minPacket), make([]byte, minPacket)
	for off < end {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n, err := a.read(x)
		if err == io.ErrUnexpectedEOF {
			return off, nil
		}
		if err != nil {
			return 0, err
		}
		m, err := p.content.ReadAt(y[:n], off)
		if err != nil && err != io.EOF {
			return 0, &contentError{fmt.Errorf("comparing %s with %s: %w", p.t.temp(p.name), p.name, err)}
		}
		n = min(n, m)
		if !bytes.Equal(x[:n], y[:n]) {
			for i := range n {
				if x[i] != y[i] {
					return off + int64(i), nil
				}
			}
		}
		if n == 0 {
			return off, nil
		}
		off += int64(n)
		p.forward.Store(time.Now().UnixNano())
	}
	return off, nil
}

// written is what became of a write.
type written struct {
	off  int64
	buf  []byte
	lane *lane
	n    int
	err  error
}

// send writes content from off on. When it fails, what was answered without a hole stays.
func (p *put) send(ctx context.Context, s *session, f *sftp.File, off int64) error {
	var (
		next    = off // to be read and sent
		acked   = off // answered, without a hole
		behind  = make(map[int64]int)
		answers = make(chan written, maxLanes*window)
		free    [][]byte
		flying  int
		failed  error
		flush   = &flusher{p: p, s: s}
		lanes   = p.lanes(ctx, s, f, p.size-off)
	)
	defer flush.wait()
	defer lanes.close()
	for {
		for failed == nil && next < p.size && next-acked < int64(len(lanes.all)*window*s.packet()) {
			lane := lanes.free()
			if lane == nil {
				break
			}
			if failed = ctx.Err(); failed != nil {
				break
			}
			var buf []byte
			if n := len(free); n > 0 {
				buf, free = free[n-1], free[:n-1]
			} else {
				buf = make([]byte, s.packet())
			}
			n, err := p.content.ReadAt(buf[:min(int64(len(buf)), p.size-next)], next)
			if n == 0 {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				failed = &contentError{fmt.Errorf("reading %s to ship it: %w", p.name, err)}
				break
			}
			go func(off int64) {
				a := written{off: off, buf: buf, lane: lane}
				a.err = s.ask(ctx, func() (err error) { a.n, err = lane.f.WriteAt(buf[:n], off); return err })
				if a.err == nil && a.n != n {
					a.err = fmt.Errorf("%s: %d of %d bytes were written at %d", p.t.temp(p.name), a.n, n, off)
				}
				answers <- a
			}(next)
			next += int64(n)
			p.sent += int64(n)
			flying++
			lane.flying++
		}
		if flying == 0 {
			break
		}
		a := <-answers
		flying--
		a.lane.flying--
		free = append(free, a.buf)
		if a.err != nil {
			if failed == nil {
				failed = a.err
			}
			continue
		}
		behind[a.off] = a.n
		before := acked
		for n, ok := behind[acked]; ok; n, ok = behind[acked] {
			delete(behind, acked)
			acked += int64(n)
		}
		if acked > before {
			p.forward.Store(time.Now().UnixNano())
			p.report(acked)
			flush.upTo(ctx, acked)
		}
		if err := flush.failed(); err != nil && failed == nil {
			failed = err
		}
	}
	var status *sftp.StatusError
	if errors.As(failed, &status) && s.dead() == nil {
		failed = p.t.explain(ctx, failed) // before the cut makes room, and nobody knows that the disk was full
	}
	if failed != nil && len(behind) > 0 && s.dead() == nil {
		// Cut at the first hole; the next Put would find it as well.
		_ = s.ask(context.WithoutCancel(ctx), func() error { return f.Truncate(acked) })
	}
	return failed
}

// report tells progress, which must grow, also over several attempts.
func (p *put) report(done int64) {
	if p.progress != nil && done > p.reported {
		p.reported = done
		p.progress(done, p.size)
	}
}

// packet is how much goes into one request.
func (s *session) packet() int { return minPacket }

// flusher makes durable what has arrived, beside the writing, on a handle of its own: the writer's would be held up.
type flusher struct {
	p    *put
	s    *session
	f    *sftp.File
	done chan error // of the fsync under way; nil for none
	off  int64      // what it makes durable
	last int64
	err  error
}

// upTo says that all bytes up to off are answered.
func (f *flusher) upTo(ctx context.Context, off int64) {
	f.poll()
	switch {
	case !f.s.fsync:
		return // nothing is safe there
	case f.done != nil || f.err != nil || off-max(f.last, f.p.safe) < checkpoint:
		return
	}
	f.off, f.last = off, off
	f.done = make(chan error, 1)
	go func(done chan error) {
		if f.f == nil {
			if err := f.s.ask(ctx, func() (err error) { f.f, err = f.s.client.OpenFile(f.p.t.temp(f.p.name), os.O_RDWR); return err }); err != nil {
				done <- err
				return
			}
		}
		done <- f.s.sync(ctx, f.f)
	}(f.done)
}

func (f *flusher) poll() {
	if f.done == nil {
		return
	}
	select {
	case err := <-f.done:
		f.ended(err)
	default:
	}
}

func (f *flusher) ended(err error) {
	f.done = nil
	if f.err = err; err == nil {
		f.p.safe = f.off
	}
}

func (f *flusher) failed() error { f.poll(); return f.err }

// wait ends it.
func (f *flusher) wait() {
	if f.done != nil {
		f.ended(<-f.done)
	}
	if f.f != nil {
		h, s := f.f, f.s
		go func() { _ = s.ask(context.Background(), h.Close) }()
	}
}
