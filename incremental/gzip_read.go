package incremental

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
)

const (
	memberHeader = memberField + 4
	minStored    = memberHeader + 2 + 8           // with the shortest deflate data, CRC-32 and raw size
	maxStored    = memberSize + 64<<10            // deflate makes nothing larger than this of memberSize bytes
	gzipReadJobs = 8                              // bounds the memory to about 4 MiB each
	gzipBuffer   = 256 << 10                      // between the file and the decoder
	fieldPrefix  = "\x08\x00ZR\x04\x00"           // XLEN, the subfield's name and its length
	gzipPrefix   = "\x1f\x8b\x08\x04"             // deflate, FEXTRA and no other flag
	fieldAt      = memberField - len(fieldPrefix) // offset of fieldPrefix
)

// errClosed is what a reader says after its Close.
var errClosed = errors.New("the reader is closed")

// gzipReader unpacks the members that tell their stored size in goroutines, and gives out their raw bytes in order.
//
// A claimed size is only a guess where the next member begins. It is believed when the member turned out to end
// there; from the first member on that does not, or that tells no size, what is stored goes through one plain gzip
// reader. So the bytes and the errors are the plain reader's, whatever the stream holds.
//
// Stored bytes are read by the goroutine that calls Read, in order and each once.
type gzipReader struct {
	readAhead
	br    *bufio.Reader // over a stickyReader
	ended bool          // nothing more is read ahead
	plain *gzip.Reader
	err   error
}

func (gzipCodec) NewReader(r io.Reader, n int) (io.ReadCloser, error) {
	g := &gzipReader{
		readAhead: readAhead{jobs: jobs(n, gzipReadJobs) + 1}, // one more waits to be given out
		br:        bufio.NewReaderSize(&stickyReader{r: r}, gzipBuffer),
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
			return g.take(p), nil
		case g.plain != nil:
			return g.plain.Read(p)
		}
		g.next()
	}
}

// WriteTo writes all that there is, member by member, without a copy.
func (g *gzipReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		k, err := g.passOn(w)
		n += k
		switch {
		case err != nil:
			return n, err
		case g.err == io.EOF:
			return n, nil
		case g.err != nil:
			return n, g.err
		case g.plain != nil:
			k, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{g.plain}, make([]byte, gzipBuffer))
			return n + k, err
		}
		g.next()
	}
}

// next brings the raw bytes of the next member, which may be none, or begins with the plain reader.
func (g *gzipReader) next() {
	g.drop()
	for !g.ended && len(g.queue) < g.jobs {
		g.begin()
	}
	switch {
	case len(g.queue) == 0:
		g.readPlain(g.br)
	case g.first().err != nil:
		g.abandon()
	default:
		g.advance()
	}
}

// begin reads the next member and begins to unpack it, if it tells its size.
func (g *gzipReader) begin() {
	n := nextStored(g.br)
	if n == 0 {
		g.ended = true
		return
	}
	stored := storedBuffers.Get()
	stored.Reset()
	// It grows with what is there, not with what is claimed. An error comes again, see stickyReader.
	stored.ReadFrom(io.LimitReader(g.br, int64(n)))
	g.readAhead.begin(stored, memberSize, func(u *unpacking) { u.err = unpackMember(u) })
}

// abandon gives up on the claimed sizes: what is under way is read again, by the plain reader.
func (g *gzipReader) abandon() {
	var again []io.Reader
	for _, u := range g.queue {
		<-u.done
		giveRaw(u.raw)
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

// Close ends what is under way and waits for it.
func (g *gzipReader) Close() error {
	g.readAhead.end()
	g.ended, g.plain, g.err = true, nil, errClosed
	return nil
}

var decompressors = sync.Pool{New: func() any { return new(gzip.Reader) }}

// errNotAsClaimed is of a member that must be read by the plain reader, which tells what is wrong with it if anything is.
var errNotAsClaimed = errors.New("not one member of the size that it claims")

// unpackMember decodes u.stored into u.raw. It fails unless that is one member, right, complete, of at most memberSize
// raw bytes, and ends where u.stored does.
func unpackMember(u *unpacking) error {
	z := decompressors.Get().(*gzip.Reader)
	defer decompressors.Put(z)
	if z.Reset(bytes.NewReader(u.stored.Bytes())) != nil {
		return errNotAsClaimed
	}
	n, err := 0, error(nil)
	for err == nil && n < memberSize {
		var k int
		k, err = z.Read(u.raw[n:memberSize])
		n += k
	}
	if err == nil {
		var beyond [1]byte
		if _, err = io.ReadFull(z, beyond[:]); err == nil {
			return errNotAsClaimed
		}
	}
	u.raw = u.raw[:n]
	if err != io.EOF {
		return errNotAsClaimed
	}
	return nil
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
