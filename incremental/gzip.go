package incremental

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
)

// gzipCodec writes independent gzip members of at most memberSize raw bytes, so that they are made and read on all cores.
// Any gzip reads them as one stream, and any gzip stream is read.
//
//	member    header     10 bytes, flag FEXTRA
//	          XLEN        2        8
//	          subfield    2        'Z' 'R'
//	          its length  2        4
//	          stored size 4        of the whole member, little-endian: where the next one begins
//	          deflate data, CRC-32, raw size: as RFC 1952 has them
type gzipCodec struct{}

const (
	memberSize  = 2 << 20
	gzipLevel   = 6
	memberField = 16 // offset of the stored size
	maxJobs     = 16 // bounds the memory to about 5 MiB each
)

func (gzipCodec) Name() string   { return "gzip" }
func (gzipCodec) Suffix() string { return "z" }

func (gzipCodec) NewWriter(w io.Writer) io.WriteCloser {
	g := &gzipWriter{order: make(chan chan member, min(runtime.GOMAXPROCS(0), maxJobs)), done: make(chan struct{})}
	go g.write(w)
	return g
}

// gzipWriter compresses members in goroutines and writes them in order. The channel's capacity bounds how many
// are under way.
type gzipWriter struct {
	raw   []byte
	any   bool // a member has been started
	order chan chan member
	done  chan struct{}

	mu  sync.Mutex
	err error
}

type member struct {
	stored *bytes.Buffer
	err    error
}

func (g *gzipWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if err := g.failure(); err != nil {
			return n - len(p), err
		}
		if g.raw == nil {
			g.raw = rawBuffers.Get().(*[memberSize]byte)[:0]
		}
		k := min(len(p), memberSize-len(g.raw))
		g.raw = append(g.raw, p[:k]...)
		p = p[k:]
		if len(g.raw) == memberSize {
			g.flush()
		}
	}
	return n, nil
}

func (g *gzipWriter) flush() {
	raw, result := g.raw, make(chan member, 1)
	g.raw, g.any = nil, true
	g.order <- result
	go func() {
		result <- compressMember(raw)
		if raw == nil { // an empty stream
			return
		}
		rawBuffers.Put((*[memberSize]byte)(raw[:memberSize]))
	}()
}

// Close writes what is left. An empty stream is one empty member.
func (g *gzipWriter) Close() error {
	if len(g.raw) > 0 || !g.any {
		g.flush()
	}
	close(g.order)
	<-g.done
	return g.failure()
}

func (g *gzipWriter) write(w io.Writer) {
	defer close(g.done)
	for result := range g.order {
		m := <-result
		err := m.err
		if err == nil && g.failure() == nil {
			_, err = w.Write(m.stored.Bytes())
		}
		if m.stored != nil {
			storedBuffers.Put(m.stored)
		}
		if err != nil {
			g.mu.Lock()
			g.err = err
			g.mu.Unlock()
		}
	}
}

func (g *gzipWriter) failure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

var (
	rawBuffers    = sync.Pool{New: func() any { return new([memberSize]byte) }}
	storedBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	compressors   = sync.Pool{New: func() any { z, _ := gzip.NewWriterLevel(nil, gzipLevel); return z }}
)

func compressMember(raw []byte) member {
	z := compressors.Get().(*gzip.Writer)
	defer compressors.Put(z)
	out := storedBuffers.Get().(*bytes.Buffer)
	out.Reset()
	z.Reset(out)
	z.ModTime = time.Unix(0, 0) // "none"; the zero Time would become a date
	z.Extra = []byte{'Z', 'R', 4, 0, 0, 0, 0, 0}
	if _, err := z.Write(raw); err != nil {
		return member{err: err}
	}
	if err := z.Close(); err != nil {
		return member{err: err}
	}
	binary.LittleEndian.PutUint32(out.Bytes()[memberField:], uint32(out.Len()))
	return member{stored: out}
}
