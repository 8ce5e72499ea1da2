package incremental

import (
	"bytes"
	"encoding/binary"
	"io"
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
	gzipJobs    = 8  // bounds the memory to about 5 MiB each; one stream of md5 is not faster
)

func (gzipCodec) Name() string            { return "gzip" }
func (gzipCodec) Suffix() string          { return "z" }
func (gzipCodec) Levels() (int, int, int) { return 1, 9, gzipLevel }

func (gzipCodec) NewWriter(w io.Writer, e Effort) io.WriteCloser {
	if e.Level == 0 {
		e.Level = gzipLevel
	}
	g := &gzipWriter{pieceWriter{size: memberSize, encode: func(raw []byte, out *bytes.Buffer) error {
		return compressMember(raw, out, e.Level)
	}}}
	g.start(w, jobs(e.Jobs, gzipJobs))
	return g
}

type gzipWriter struct{ pieceWriter }

// Close writes what is left. An empty stream is one empty member.
func (g *gzipWriter) Close() error {
	if !g.any && len(g.raw) == 0 {
		g.flush()
	}
	return g.pieceWriter.Close()
}

var compressors [gzip.BestCompression + 1]pool[*gzip.Writer] // by level

func compressMember(raw []byte, out *bytes.Buffer, level int) error {
	z := compressors[level].Get()
	if z == nil {
		var err error
		if z, err = gzip.NewWriterLevel(nil, level); err != nil {
			return err
		}
	}
	defer compressors[level].Put(z)
	z.Reset(out)
	z.ModTime = time.Unix(0, 0) // "none"; the zero Time would become a date
	z.Extra = []byte{'Z', 'R', 4, 0, 0, 0, 0, 0}
	if _, err := z.Write(raw); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	binary.LittleEndian.PutUint32(out.Bytes()[memberField:], uint32(out.Len()))
	return nil
}
