package incremental

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	zstdReadJobs   = 8 // bounds the memory to about 6 MiB each
	maxStoredFrame = frameSize + 64<<10
	blockHeader    = 3
	maxBlock       = 128 << 10
	frameChecksum  = 4
	blockRLE       = 1 // type of a block that is one byte, repeated
	blockReserved  = 3
)

// zstdReader decodes frames in goroutines and gives out their raw bytes in order. It goes from frame to frame by the sizes
// of their blocks, without decoding, and holds the table at the end to what it has read: a file that was cut, also
// between two frames, or that has something behind its end, is an error.
//
// Stored bytes are read by the goroutine that calls Read, in order and each once.
type zstdReader struct {
	readAhead
	br     *bufio.Reader // over a stickyReader
	frames int           // that were begun
	table  hash.Hash     // of the entries that the table must have
	ended  error         // why nothing more is read ahead; io.EOF at a good end
	err    error
}

func (zstdCodec) NewReader(r io.Reader, n int) (io.ReadCloser, error) {
	return &zstdReader{
		readAhead: readAhead{jobs: jobs(n, zstdReadJobs) + 1}, // one more waits to be given out
		br:        bufio.NewReaderSize(&stickyReader{r: r}, 256<<10), table: sha256.New(),
	}, nil
}

func (z *zstdReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.rest) == 0 {
		if z.next(); z.err != nil {
			return 0, z.err
		}
	}
	return z.take(p), nil
}

// WriteTo writes all that there is, frame by frame, without a copy.
func (z *zstdReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		k, err := z.passOn(w)
		if n += k; err != nil {
			return n, err
		}
		if z.next(); z.err == io.EOF {
			return n, nil
		} else if z.err != nil {
			return n, z.err
		}
	}
}

// next brings the raw bytes of the next frame, or sets err.
func (z *zstdReader) next() {
	if z.err != nil {
		return
	}
	z.drop()
	for z.ended == nil && len(z.queue) < z.jobs {
		z.ended = z.begin()
	}
	if len(z.queue) == 0 {
		z.err = z.ended
		return
	}
	if z.err = z.first().err; z.err == nil {
		z.advance()
	}
}

// begin reads the next frame and begins to decode it. At the table it checks what is there; io.EOF is a good end.
func (z *zstdReader) begin() error {
	magic, err := z.br.Peek(4)
	if err != nil {
		return truncated(err)
	}
	if binary.LittleEndian.Uint32(magic) == tableMagic {
		return z.end()
	}
	stored := storedBuffers.Get()
	stored.Reset()
	raw, err := readFrame(z.br, stored)
	if err != nil {
		storedBuffers.Put(stored)
		return fmt.Errorf("zstd frame %d: %w", z.frames, truncated(err))
	}
	frame := z.frames
	z.frames++
	z.table.Write(appendEntry(nil, stored.Len(), raw))
	z.readAhead.begin(stored, frameSize, func(u *unpacking) {
		if u.err = decodeFrame(u); u.err == nil && len(u.raw) != raw {
			u.err = fmt.Errorf("%d raw bytes, its header says %d", len(u.raw), raw)
		}
		if u.err != nil {
			u.err = fmt.Errorf("zstd frame %d: %w", frame, u.err)
		}
	})
	return nil
}

// truncated makes an end where something must follow an unexpected one.
func truncated(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readFrame reads a whole frame into out and returns the raw size that it claims. Only frames as we write them are
// taken: they cannot make a decoder use more memory than frameSize.
func readFrame(br *bufio.Reader, out *bytes.Buffer) (raw int, err error) {
	b, err := br.Peek(zstd.HeaderMaxSize)
	if err != nil && err != io.EOF { // a small frame at the end may be shorter
		return 0, err
	}
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return 0, err
	}
	switch {
	case h.Skippable:
		return 0, errors.New("a skippable frame that is no table of frames")
	case !h.HasFCS || h.FrameContentSize == 0 || h.FrameContentSize > frameSize:
		return 0, fmt.Errorf("its size is not told, or not between 1 and %d", frameSize)
	case !h.HasCheckSum || h.DictionaryID != 0:
		return 0, errors.New("without a checksum, or with a dictionary")
	}
	if _, err := io.CopyN(out, br, int64(h.HeaderSize)); err != nil {
		return 0, err
	}
	for last := false; !last; {
		b, err := br.Peek(blockHeader)
		if err != nil {
			return 0, err
		}
		head := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last = head&1 != 0
		kind, size := head>>1&3, int64(head>>3)
		if kind == blockReserved || size > maxBlock {
			return 0, errors.New("a block of an unknown type or size")
		}
		if kind == blockRLE {
			size = 1
		}
		if last {
			size += frameChecksum
		}
		if size += blockHeader; int64(out.Len())+size > maxStoredFrame {
			return 0, errors.New("larger than zstd makes it")
		}
		if _, err := io.CopyN(out, br, size); err != nil {
			return 0, err
		}
	}
	return int(h.FrameContentSize), nil
}

// end holds the table of frames to what was read, and fails unless the file ends with it.
func (z *zstdReader) end() error {
	var head [8]byte
	if _, err := io.ReadFull(z.br, head[:]); err != nil {
		return truncated(err)
	}
	size := int64(binary.LittleEndian.Uint32(head[4:]))
	if size != int64(z.frames)*tableEntry+tableFooter {
		return fmt.Errorf("the table of frames has %d bytes, %d frames were read", size, z.frames)
	}
	entries := sha256.New()
	if _, err := io.CopyN(entries, z.br, size-tableFooter); err != nil {
		return truncated(err)
	}
	var footer [tableFooter]byte
	if _, err := io.ReadFull(z.br, footer[:]); err != nil {
		return truncated(err)
	}
	if !bytes.Equal(footer[:], appendFooter(nil, z.frames)) || !bytes.Equal(entries.Sum(nil), z.table.Sum(nil)) {
		return errors.New("the table of frames is not of the frames before it")
	}
	switch _, err := z.br.Peek(1); err {
	case io.EOF:
		return io.EOF
	case nil:
		return errors.New("something follows the table of frames")
	default:
		return err
	}
}

var frameDecoders pool[*zstd.Decoder]

// decodeFrame decodes u.stored into u.raw, whose capacity bounds it.
func decodeFrame(u *unpacking) error {
	d := frameDecoders.Get()
	if d == nil {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(frameSize), zstd.WithDecoderMaxMemory(frameSize), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return err
		}
	}
	defer frameDecoders.Put(d)
	raw, err := d.DecodeAll(u.stored.Bytes(), u.raw)
	if err == nil {
		u.raw = raw
	}
	return err
}

// Close ends what is under way and waits for it.
func (z *zstdReader) Close() error {
	z.readAhead.end()
	z.ended, z.err = errClosed, errClosed
	return nil
}
