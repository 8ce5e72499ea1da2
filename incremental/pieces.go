package incremental

import (
	"bytes"
	"io"
	"sync"
)

// pieceWriter cuts what is written to it into pieces of a fixed size, encodes them in goroutines, and writes the
// results in order. As many are under way as order holds, and one that is waited for.
type pieceWriter struct {
	size   int
	encode func(raw []byte, out *bytes.Buffer) error
	wrote  func(raw, stored int) // called in order, by one goroutine; optional

	raw   []byte
	any   bool // a piece has been started
	order chan chan piece
	done  chan struct{}

	mu  sync.Mutex
	err error
}

type piece struct {
	raw    int
	stored *bytes.Buffer
	err    error
}

// start begins to write pieces into w, so many at once.
func (p *pieceWriter) start(w io.Writer, jobs int) {
	p.order, p.done = make(chan chan piece, jobs-1), make(chan struct{})
	go p.write(w)
}

func (p *pieceWriter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if err := p.failure(); err != nil {
			return n - len(b), err
		}
		if p.raw == nil {
			p.raw = takeRaw(p.size)
		}
		k := min(len(b), p.size-len(p.raw))
		p.raw = append(p.raw, b[:k]...)
		b = b[k:]
		if len(p.raw) == p.size {
			p.flush()
		}
	}
	return n, nil
}

// flush begins to encode what has been gathered, which may be nothing.
func (p *pieceWriter) flush() {
	raw, result := p.raw, make(chan piece, 1)
	p.raw, p.any = nil, true
	p.order <- result
	go func() {
		out := storedBuffers.Get()
		out.Reset()
		err := p.encode(raw, out)
		result <- piece{len(raw), out, err}
		giveRaw(raw)
	}()
}

// Close writes what is left and waits until all is written.
func (p *pieceWriter) Close() error {
	if len(p.raw) > 0 {
		p.flush()
	}
	close(p.order)
	<-p.done
	return p.failure()
}

func (p *pieceWriter) write(w io.Writer) {
	defer close(p.done)
	for result := range p.order {
		m := <-result
		err := m.err
		if err == nil && p.failure() == nil {
			if _, err = w.Write(m.stored.Bytes()); err == nil && p.wrote != nil {
				p.wrote(m.raw, m.stored.Len())
			}
		}
		storedBuffers.Put(m.stored)
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
		}
	}
}

func (p *pieceWriter) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Buffers of pieces are used again: they are large, and there are thousands in a full.
var (
	members       = pool[[]byte]{make: func() []byte { return make([]byte, 0, memberSize) }}
	frames        = pool[[]byte]{make: func() []byte { return make([]byte, 0, frameSize) }}
	storedBuffers = pool[*bytes.Buffer]{make: func() *bytes.Buffer { return new(bytes.Buffer) }}
)

// takeRaw returns an empty buffer for the raw bytes of a piece; size is memberSize or frameSize.
func takeRaw(size int) []byte {
	if size == memberSize {
		return members.Get()
	}
	return frames.Get()
}

// giveRaw takes a buffer of takeRaw back. Others, and nil, are left to the collector.
func giveRaw(b []byte) {
	switch cap(b) {
	case memberSize:
		members.Put(b[:0])
	case frameSize:
		frames.Put(b[:0])
	}
}

// unpacking is a piece that is being decoded in a goroutine.
type unpacking struct {
	stored *bytes.Buffer
	raw    []byte        // of takeRaw; what is decoded
	done   chan struct{} // closed when raw and err are set
	err    error
}

func (u *unpacking) release() {
	giveRaw(u.raw)
	storedBuffers.Put(u.stored)
}

// readAhead holds the pieces that are being decoded, and gives out the bytes of the first.
type readAhead struct {
	jobs  int // how many may be under way
	queue []*unpacking
	head  *unpacking // whose bytes are given out
	rest  []byte     // of them, what has not been given out
}

// begin decodes a stored piece into a buffer of the size.
func (a *readAhead) begin(stored *bytes.Buffer, size int, decode func(u *unpacking)) {
	u := &unpacking{stored: stored, raw: takeRaw(size), done: make(chan struct{})}
	a.queue = append(a.queue, u)
	go func() {
		defer close(u.done)
		decode(u)
	}()
}

// first waits for the first piece under way.
func (a *readAhead) first() *unpacking {
	u := a.queue[0]
	<-u.done
	return u
}

// advance makes the first piece the one whose bytes are given out.
func (a *readAhead) advance() {
	a.head, a.rest = a.queue[0], a.queue[0].raw
	a.queue = a.queue[1:]
}

// take copies bytes of the piece that is given out.
func (a *readAhead) take(p []byte) int {
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n
}

// passOn writes what is left of the piece that is given out, without a copy.
func (a *readAhead) passOn(w io.Writer) (int64, error) {
	n, err := w.Write(a.rest)
	a.rest = a.rest[n:]
	return int64(n), err
}

// drop ends with the piece that was given out.
func (a *readAhead) drop() {
	if a.head != nil {
		a.head.release()
	}
	a.head, a.rest = nil, nil
}

// end waits for what is under way and drops it.
func (a *readAhead) end() {
	a.drop()
	for _, u := range a.queue {
		<-u.done
		u.release()
	}
	a.queue = nil
}
