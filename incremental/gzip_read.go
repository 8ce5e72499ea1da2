package incremental

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/gzip"
)

const (
	memberHeader = memberField + 4
	minStored    = memberHeader + 2 + 8           // with the shortest deflate data, CRC-32 and raw size
	maxStored    = memberSize + 64<<10            // deflate makes nothing larger than this of memberSize bytes
	maxReadJobs  = 8                              // bounds the memory to about 4 MiB each
	gzipBuffer   = 256 << 10                      // between the file and the decoder
	fieldPrefix  = "\x08\x00ZR\x04\x00"           // XLEN, the subfield's name and its length
	gzipPrefix   = "\x1f\x8b\x08\x04"             // deflate, FEXTRA and no other flag
	fieldAt      = memberField - len(fieldPrefix) // offset of fieldPrefix
)

// errClosed is what a reader says after its Close.
var errClosed = errors.New("the gzip reader is closed")

// gzipReader unpacks the members that tell their stored size in goroutines, and gives out their raw bytes in order.
//
// A claimed size is only a guess where the next member begins. It is believed when the member turned out to end
// there; from the first member on that does not, or that tells no size, what is stored goes through one plain gzip
// reader. So the bytes and the errors are the plain reader's, whatever the stream holds.
//
// Stored bytes are read by the goroutine that calls Read, in order and each once.
type gzipReader struct {
	br    *bufio.Reader // over a stickyReader
	jobs  int           // how many members may be under way
	queue []*unpacking
	ended bool       // nothing more is read ahead
	head  *unpacking // whose bytes are given out
	rest  []byte     // of them, what has not been given out
	plain *gzip.Reader
	err   error
}

func (gzipCodec) NewReader(r io.Reader) (io.ReadCloser, error) {
	g := &gzipReader{
		br:   bufio.NewReaderSize(&stickyReader{r: r}, gzipBuffer),
		jobs: min(runtime.GOMAXPROCS(0), maxReadJobs) + 1, // one more waits to be given out
	}
	if nextStored(g.br) > 0 {
		return g, nil
	}
	// As the plain reader does, tell at once what is wrong with the first header.
	switch g.readPlain(g.br); g.err {
	case nil:
		return g, nil
	case io.EOF:
		return nil, fmt.Errorf("the gzip file is empty")
	default:
		return nil, g.err
	}
}

// nextStored returns the stored size that the next member claims, 0 when it claims none that can be true.
func nextStored(br *bufio.Reader) int {
	b, _ := br.Peek(memberHeader) // an error comes again, see stickyReader
	if len(b) < memberHeader || string(b[:len(gzipPrefix)]) != gzipPrefix || string(b[fieldAt:memberField]) != fieldPrefix {
		return 0
	}
	n := binary.LittleEndian.Uint32(b[memberField:])
	if n < minStored || n > maxStored {
		return 0
	}
	return int(n)
}

func (g *gzipReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case g.err != nil:
			return 0, g.err
		case len(g.rest) > 0:
			n := copy(p, g.rest)
			g.rest = g.rest[n:]
			return n, nil
		case g.plain != nil:
			return g.plain.Read(p)
		}
		g.next()
	}
}

// next brings the raw bytes of the next member, which may be none, or begins with the plain reader.
func (g *gzipReader) next() {
	g.release()
	g.readAhead()
	if len(g.queue) == 0 {
		g.readPlain(g.br)
		return
	}
	u := g.queue[0]
	<-u.done
	if !u.ok {
		g.abandon()
		return
	}
	g.queue = g.queue[1:]
	g.head, g.rest = u, u.raw[:u.n]
}

// readAhead starts members until enough are under way.
func (g *gzipReader) readAhead() {
	for !g.ended && len(g.queue) < g.jobs {
		n := nextStored(g.br)
		if n == 0 {
			g.ended = true
			return
		}
		u := &unpacking{stored: storedBuffers.Get().(*bytes.Buffer), done: make(chan struct{})}
		u.stored.Reset()
		// It grows with what is there, not with what is claimed. An error comes again, see stickyReader.
		u.stored.ReadFrom(io.LimitReader(g.br, int64(n)))
		u.raw = rawBuffers.Get().(*[memberSize]byte)
		g.queue = append(g.queue, u)
		go u.unpack()
	}
}

// abandon gives up on the claimed sizes: what is under way is read again, by the plain reader.
func (g *gzipReader) abandon() {
	var again []io.Reader
	for _, u := range g.queue {
		<-u.done
		rawBuffers.Put(u.raw)
		again = append(again, u.stored)
	}
	g.queue, g.ended = nil, true
	g.readPlain(bufio.NewReaderSize(io.MultiReader(append(again, g.br)...), gzipBuffer))
}

func (g *gzipReader) readPlain(r *bufio.Reader) {
	z, err := gzip.NewReader(r)
	if err != nil {
		g.err = err // io.EOF where a member could have begun is the end
		return
	}
	g.plain = z
}

func (g *gzipReader) release() {
	if g.head != nil {
		g.head.release()
	}
	g.head, g.rest = nil, nil
}

// Close ends what is under way and waits for it.
func (g *gzipReader) Close() error {
	g.release()
	for _, u := range g.queue {
		<-u.done
		u.release()
	}
	g.queue, g.ended, g.plain, g.err = nil, true, nil, errClosed
	return nil
}

// unpacking is a member that is being unpacked in a goroutine.
type unpacking struct {
	stored *bytes.Buffer
	raw    *[memberSize]byte
	done   chan struct{} // closed when the following are set
	n      int           // raw bytes
	ok     bool          // stored was right, complete, of at most memberSize raw bytes, and ended where a member does
}

var decompressors = sync.Pool{New: func() any { return new(gzip.Reader) }}

func (u *unpacking) unpack() {
	defer close(u.done)
	z := decompressors.Get().(*gzip.Reader)
	defer decompressors.Put(z)
	if z.Reset(bytes.NewReader(u.stored.Bytes())) != nil {
		return
	}
	var err error
	for err == nil && u.n < memberSize {
		var n int
		n, err = z.Read(u.raw[u.n:])
		u.n += n
	}
	if err == nil {
		var beyond [1]byte
		var n int
		if n, err = z.Read(beyond[:]); n > 0 {
			return
		}
	}
	u.ok = err == io.EOF
}

func (u *unpacking) release() {
	rawBuffers.Put(u.raw)
	storedBuffers.Put(u.stored)
}

// stickyReader gives an error, or io.EOF, again and again, where a bufio.Reader gives it once.
type stickyReader struct {
	r   io.Reader
	err error
}

func (s *stickyReader) Read(p []byte) (n int, err error) {
	if s.err != nil {
		return 0, s.err
	}
	n, s.err = s.r.Read(p)
	return n, s.err
}
