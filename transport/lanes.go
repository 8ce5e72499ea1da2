package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// A server takes 2 MiB on an SSH channel before it has to say that it took them. On a long line that is all that a round
// trip carries, however much the line could. So a large file is written through several channels of the one connection.
// Near by it would only cost.
const (
	maxLanes = 3
	wideFrom = 8 << 20              // bytes that make it worthwhile
	farAway  = 5 * time.Millisecond // for a round trip
)

// sftpPipe starts SFTP on a new channel of a connection.
func sftpPipe(c *ssh.Client) (io.Reader, io.WriteCloser, error) {
	ch, err := c.NewSession()
	if err != nil {
		return nil, nil, fmt.Errorf("opening a session: %w", err)
	}
	w, err1 := ch.StdinPipe()
	r, err2 := ch.StdoutPipe()
	if err := errors.Join(err1, err2, ch.RequestSubsystem("sftp")); err != nil {
		ch.Close()
		return nil, nil, err
	}
	return r, w, nil
}

// wider are the clients on further channels of a session. They end with it.
type wider struct {
	sync.Mutex
	pipe    func() (io.Reader, io.WriteCloser, error) // opens a channel; nil where there can be only one
	clients []*sftp.Client
}

// more returns the clients on further channels, opened when they are not yet. A server may allow fewer or none.
func (s *session) more(ctx context.Context) []*sftp.Client {
	s.wider.Lock()
	defer s.wider.Unlock()
	for s.wider.pipe != nil && len(s.wider.clients) < maxLanes-1 {
		var c *sftp.Client
		err := s.ask(ctx, func() error {
			r, w, err := s.wider.pipe()
			if err == nil {
				c, err = sftp.NewClientPipe(pipeReader{s, r}, pipeWriter{s, w}, sftp.MaxPacketUnchecked(maxPacket))
			}
			return err
		})
		if err != nil {
			s.wider.pipe = nil // MaxSessions, most likely
			break
		}
		s.wider.clients = append(s.wider.clients, c)
	}
	return s.wider.clients
}

// lane is a file opened on one of the channels.
type lane struct {
	f      *sftp.File
	flying int // writes that are not answered yet
}

// lanes are those of a put. The first is there from the beginning, the others come when they are opened.
type lanes struct {
	s     *session
	all   []*lane
	ready chan *lane
	stop  context.CancelFunc
	ended chan struct{}
}

// answered says when something was asked that has just been answered, with nothing else under way. The quickest answer
// is what the line needs; the others waited for a busy machine as well.
func (s *session) answered(asked time.Time) {
	if took := int64(time.Since(asked)); took < s.roundTrip.Load() || s.roundTrip.Load() == 0 {
		s.roundTrip.Store(took)
	}
}

// lanes begins to open the file on more channels if n bytes are worth it, at that distance.
func (p *put) lanes(ctx context.Context, s *session, f *sftp.File, n int64) *lanes {
	l := &lanes{s: s, all: []*lane{{f: f}}, ready: make(chan *lane, maxLanes), ended: make(chan struct{})}
	ctx, l.stop = context.WithCancel(ctx)
	if n < wideFrom || s.roundTrip.Load() < int64(farAway) || s.out != nil {
		close(l.ended)
		return l
	}
	go func() {
		defer close(l.ended)
		for _, c := range s.more(context.WithoutCancel(ctx)) {
			if ctx.Err() != nil {
				return
			}
			var f *sftp.File
			err := s.ask(context.WithoutCancel(ctx), func() (err error) { f, err = c.OpenFile(p.t.temp(p.name), os.O_RDWR); return err })
			if err != nil {
				return // the first lane is enough, and tells what is wrong
			}
			l.ready <- &lane{f: f}
		}
	}()
	return l
}

// free returns the lane with the fewest writes under way, nil when each has as many as it may have.
func (l *lanes) free() *lane {
	select {
	case more := <-l.ready:
		l.all = append(l.all, more)
	default:
	}
	best := l.all[0]
	for _, o := range l.all[1:] {
		if o.flying < best.flying {
			best = o
		}
	}
	if best.flying >= window {
		return nil
	}
	return best
}

// close gives the handles back, but the first.
func (l *lanes) close() {
	l.stop()
	go func() {
		<-l.ended
		close(l.ready)
		for more := range l.ready {
			l.all = append(l.all, more)
		}
		for _, o := range l.all[1:] {
			_ = l.s.ask(context.Background(), o.f.Close)
		}
	}()
}
