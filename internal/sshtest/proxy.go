package sshtest

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy is a line to a server that is long, thin, and breaks: it stands between a client and any TCP server. What it
// does can be changed while connections are open.
type Proxy struct {
	Addr string // 127.0.0.1:PORT

	to       string
	listener net.Listener
	delay    atomic.Int64 // in nanoseconds, each way
	rate     atomic.Int64 // bytes a second each way; 0: any
	up, down atomic.Int64 // bytes that passed: to the server, from the server
	tries    atomic.Int64 // connections that were asked for

	mu      sync.Mutex
	conns   map[*pair]bool
	refuses bool
	at      int64 // connections end when up reaches it; 0: never
	silent  bool  // they do not end but fall silent
	wg      sync.WaitGroup
}

// pair is a connection with its other half.
type pair struct {
	client, server net.Conn
	mute           chan struct{}
	muted          sync.Once
}

func (p *pair) close() {
	p.client.Close()
	p.server.Close()
}

// NewProxy opens a line to a server. It ends with its test.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), to: to, listener: l, conns: make(map[*pair]bool)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.Refuse(true)
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Delay makes every byte arrive so much later, each way: a round trip takes twice that. It takes no throughput.
func (p *Proxy) Delay(d time.Duration) { p.delay.Store(int64(d)) }

// Rate lets so many bytes pass a second, each way; 0: any.
func (p *Proxy) Rate(bytes int64) { p.rate.Store(bytes) }

// Up and Down count the bytes that passed.
func (p *Proxy) Up() int64 { return p.up.Load() }

// Down counts those from the server.
func (p *Proxy) Down() int64 { return p.down.Load() }

// Tries counts the connections that were asked for, also those that were refused.
func (p *Proxy) Tries() int64 { return p.tries.Load() }

// Cut ends every open connection at once; new ones are made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.close()
	}
}

// CutAfter ends every connection when n bytes more have passed to the server, to the byte; only once.
func (p *Proxy) CutAfter(n int64) { p.arm(n, false) }

// SilentAfter lets nothing pass on any open connection when n bytes more have passed to the server, and does not end
// it: the other host lost its power.
func (p *Proxy) SilentAfter(n int64) { p.arm(n, true) }

func (p *Proxy) arm(n int64, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at, p.silent = p.up.Load()+n, silent
}

// Refuse takes no new connections, or takes them again.
func (p *Proxy) Refuse(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = yes
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.tries.Add(1)
		server, err := net.Dial("tcp", p.to)
		if err != nil {
			client.Close()
			continue
		}
		c := &pair{client: client, server: server, mute: make(chan struct{})}
		p.mu.Lock()
		if p.refuses {
			c.close()
			p.mu.Unlock()
			continue
		}
		p.conns[c] = true
		p.mu.Unlock()
		p.wg.Go(func() {
			var wg sync.WaitGroup
			wg.Go(func() { p.carry(c, client, server, true) })
			wg.Go(func() { p.carry(c, server, client, false) })
			wg.Wait()
			c.close()
			p.mu.Lock()
			delete(p.conns, c)
			p.mu.Unlock()
		})
	}
}

// chunk is bytes that arrive at a time.
type chunk struct {
	b  []byte
	at time.Time
}

// carry moves bytes one way. Reading does not wait for what is under way, so a delay fills the line.
func (p *Proxy) carry(c *pair, from, to net.Conn, up bool) {
	line := make(chan chunk, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(line)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				line <- chunk{b[:n], time.Now().Add(time.Duration(p.delay.Load()))}
			}
			if err != nil {
				return
			}
		}
	})
	err := p.deliver(c, line, to, up)
	if err != nil {
		c.close()
	} else if tcp, ok := to.(*net.TCPConn); ok {
		tcp.CloseWrite()
	}
	for range line { // until the reader has seen the end
	}
	wg.Wait()
}

func (p *Proxy) deliver(c *pair, line <-chan chunk, to io.Writer, up bool) error {
	for k := range line {
		time.Sleep(time.Until(k.at))
		b, end := p.pass(k.b, up)
		if rate := p.rate.Load(); rate > 0 {
			time.Sleep(time.Duration(int64(len(b)) * int64(time.Second) / rate))
		}
		select {
		case <-c.mute:
			continue // lost on the way
		default:
		}
		if _, err := to.Write(b); err != nil {
			return err
		}
		if end {
			if p.end(); !p.quiet() {
				return errors.New("cut")
			}
		}
	}
	return nil
}

// pass counts bytes and returns those that still pass before the line breaks.
func (p *Proxy) pass(b []byte, up bool) (passing []byte, end bool) {
	if !up {
		p.down.Add(int64(len(b)))
		return b, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.up.Load()
	if p.at > 0 && before+int64(len(b)) >= p.at {
		b, end = b[:max(0, p.at-before)], true
		p.at = 0
	}
	p.up.Add(int64(len(b)))
	return b, end
}

func (p *Proxy) quiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.silent
}

// end breaks every connection in the way that was asked for.
func (p *Proxy) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if p.silent {
			c.muted.Do(func() { close(c.mute) })
		} else {
			c.close()
		}
	}
}
