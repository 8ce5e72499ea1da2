package incremental

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
)

// zstdCodec writes independent zstd frames (RFC 8878) of at most frameSize raw bytes, so that they are made and read on all
// cores, and a table of them in a skippable frame, as the seekable format of zstd's contrib directory has it. Any zstd
// reads the file as one stream; only what we write is read.
//
//	frames                             each with its content size and checksum, without a dictionary
//	table    magic            4        0x184D2A5E
//	         size             4        of what follows
//	         for each frame   8        its stored size, then its raw size
//	         frames           4
//	         descriptor       1        0: no checksums in the table
//	         magic            4        0x8F92EAB1
//
// All numbers are little-endian.
type zstdCodec struct{}

const (
	frameSize  = 4 << 20
	zstdLevel  = 2
	zstdLevels = 4
	zstdJobs   = 4 // bounds the memory to about 12 MiB each; one stream of md5 is not faster

	tableMagic    = 0x184D2A5E
	tableEntry    = 8
	tableFooter   = 9
	seekableMagic = 0x8F92EAB1
)

func (zstdCodec) Name() string            { return "zstd" }
func (zstdCodec) Suffix() string          { return "zst" }
func (zstdCodec) Levels() (int, int, int) { return 1, zstdLevels, zstdLevel }

func (zstdCodec) NewWriter(w io.Writer, e Effort) io.WriteCloser {
	if e.Level == 0 {
		e.Level = zstdLevel
	}
	z := &zstdWriter{w: w}
	z.size = frameSize
	z.encode = func(raw []byte, out *bytes.Buffer) error { return compressFrame(raw, out, e.Level) }
	z.wrote = func(raw, stored int) { z.table = appendEntry(z.table, stored, raw) }
	z.start(w, jobs(e.Jobs, zstdJobs))
	return z
}

type zstdWriter struct {
	pieceWriter
	w     io.Writer
	table []byte // 8 bytes for each 4 MiB
}

// Close writes what is left, then the table.
func (z *zstdWriter) Close() error {
	if err := z.pieceWriter.Close(); err != nil {
		return err
	}
	frames := len(z.table) / tableEntry
	head := binary.LittleEndian.AppendUint32(nil, tableMagic)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(z.table)+tableFooter))
	_, err := z.w.Write(appendFooter(append(head, z.table...), frames))
	return err
}

func appendEntry(b []byte, stored, raw int) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(stored))
	return binary.LittleEndian.AppendUint32(b, uint32(raw))
}

func appendFooter(b []byte, frames int) []byte {
	b = append(binary.LittleEndian.AppendUint32(b, uint32(frames)), 0)
	return binary.LittleEndian.AppendUint32(b, seekableMagic)
}

var frameEncoders [zstdLevels + 1]pool[*zstd.Encoder] // by level

func compressFrame(raw []byte, out *bytes.Buffer, level int) error {
	e := frameEncoders[level].Get()
	if e == nil {
		var err error
		e, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.EncoderLevel(level)), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(frameSize), zstd.WithSingleSegment(true), zstd.WithLowerEncoderMem(true), zstd.WithEncoderCRC(true))
		if err != nil {
			return err
		}
	}
	defer frameEncoders[level].Put(e)
	out.Grow(len(raw)/2 + 1<<10)
	_, err := out.Write(e.EncodeAll(raw, out.AvailableBuffer()))
	return err
}
