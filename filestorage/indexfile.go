package filestorage

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"zodbrepl/internal/durable"
)

// An index file, Data.fs.index, is a run of pickles (ZODB: fsIndex.save). Everything that FileStorage has
// written since ZODB 3.10 has this form; indexold.go reads what came before.
//
//	80 03 <int> .                       the position that the index was saved at: all before it is indexed
//	80 03 C 06 <6 bytes>                the first 6 bytes of some oids,
//	      C <1 byte length> <bucket>    and where they are (B and 4 bytes of length, little-endian, from 256 on);
//	      86 .                          a tuple of the two
//	... one such pair for each 6 bytes, in order
//	80 03 N .                           None: the end
//
//	<int>     K and 1 byte, M and 2, J and 4 (little-endian), or 8a, a length and as many bytes, the sign included
//	<bucket>  the last 2 bytes of each oid, in order, then for each the 6 bytes of its position (big-endian)
//
// Python 2 wrote the same with protocol 1: no 80 03, strings (U, T) for bytes (C, B), and ( ... t for ... 86.

const (
	oidsPerBucket = 1 << 16
	suffixSize    = 2
	prefixSize    = 6 // also of a position
	maxBucket     = oidsPerBucket * (suffixSize + prefixSize)
)

// ErrBadIndex is matched by errors about an index file that cannot be understood. Nothing is lost: an index can
// be remade from its Data.fs.
var ErrBadIndex = errors.New("not an index of FileStorage")

// WriteIndex writes x as ZODB 6 would save it at the position pos, byte for byte. It fails, having written
// part, when a position does not fit into the format's 48 bits, or w fails.
func WriteIndex(w io.Writer, x *Index, pos int64) error {
	if pos < 0 || pos > maxLength {
		return fmt.Errorf("position %d does not fit into an index", pos)
	}
	bw := bufio.NewWriterSize(w, 256<<10)
	bw.Write(append(pickleInt([]byte{opProto, 3}, uint64(pos)), opStop))

	var suffixes, positions, head []byte
	prefix := OID(0)
	flush := func() {
		if len(suffixes) == 0 {
			return
		}
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(prefix)<<16)
		head = append(head[:0], opProto, 3, opShortBytes, prefixSize)
		head = append(head, b[:prefixSize]...)
		if n := len(suffixes) + len(positions); n < 256 {
			head = append(head, opShortBytes, byte(n))
		} else {
			head = binary.LittleEndian.AppendUint32(append(head, opBytes), uint32(n))
		}
		bw.Write(head)
		bw.Write(suffixes)
		bw.Write(positions)
		bw.Write([]byte{opTuple2, opStop})
		suffixes, positions = suffixes[:0], positions[:0]
	}
	for oid, p := range x.All() {
		if p < 0 || p > maxLength {
			return fmt.Errorf("position %d of oid %s does not fit into an index", p, oid)
		}
		if oid>>16 != prefix {
			flush()
			prefix = oid >> 16
		}
		suffixes = append(suffixes, byte(oid>>8), byte(oid))
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(p))
		positions = append(positions, b[2:]...)
	}
	flush()
	bw.Write([]byte{opProto, 3, opNone, opStop})
	return bw.Flush() // reports the first error of the writes before
}

// pickleInt appends n as Python pickles an int with protocol 2 and later.
func pickleInt(b []byte, n uint64) []byte {
	switch {
	case n < 1<<8:
		return append(b, opInt1, byte(n))
	case n < 1<<16:
		return binary.LittleEndian.AppendUint16(append(b, opInt2), uint16(n))
	case n < 1<<31:
		return binary.LittleEndian.AppendUint32(append(b, opInt4), uint32(n))
	}
	digits := []byte{}
	for m := n; m > 0; m >>= 8 {
		digits = append(digits, byte(m))
	}
	if digits[len(digits)-1] >= 0x80 {
		digits = append(digits, 0) // the sign
	}
	return append(append(b, opLong1, byte(len(digits))), digits...)
}

// ReadIndex reads an index file in today's form or in one of the older ones, and returns the index and the position
// that it was saved at. The name stands in errors. What cannot be understood is an ErrBadIndex with the offset; an
// index with a position beyond its own is one too.
//
// The memory it takes is that of the index, and for the form with one dictionary, which no ZODB writes since 3.10,
// at most another GiB, whatever lengths the file claims.
func ReadIndex(r io.Reader, name string) (*Index, int64, error) {
	p := &pickleReader{r: bufio.NewReaderSize(r, 64<<10), name: name}
	op, err := p.opcode()
	if err != nil {
		return nil, 0, err
	}
	var x *Index
	var pos int64
	if n, ok, ierr := p.intAfter(op); ierr != nil {
		return nil, 0, ierr
	} else if ok {
		pos = n
		if err = p.expect(opStop); err == nil {
			x, err = p.buckets()
		}
	} else {
		x, pos, err = p.oldIndex(op, maxOldIndex)
	}
	if err != nil {
		return nil, 0, err
	}
	if pos < 0 || pos > maxLength {
		return nil, 0, p.bad("the index was saved at position %d", pos)
	}
	for oid, at := range x.All() {
		if at < MagicSize || at >= pos {
			return nil, 0, p.bad("oid %s is at %d, but the index was saved at position %d", oid, at, pos)
		}
	}
	return x, pos, nil
}

// buckets reads the pairs of prefix and bucket up to the end of the file.
func (p *pickleReader) buckets() (*Index, error) {
	x := &Index{}
	last := int64(-1)
	for {
		op, err := p.opcode()
		if err != nil {
			return nil, err
		}
		if op == opNone {
			if err := p.expect(opStop); err != nil {
				return nil, err
			}
			return x, p.end()
		}
		mark := op == opMark
		if mark {
			if op, err = p.opcode(); err != nil {
				return nil, err
			}
		}
		b, err := p.stringAfter(op)
		if err != nil {
			return nil, err
		}
		if len(b) != prefixSize {
			return nil, p.bad("the start of an oid has %d bytes, not 6", len(b))
		}
		prefix := int64(be48(b))
		if prefix <= last {
			return nil, p.bad("oids are not in order")
		}
		last = prefix
		if op, err = p.pastMemo(); err != nil {
			return nil, err
		}
		if b, err = p.stringAfter(op); err != nil {
			return nil, err
		}
		if err := p.addBucket(x, OID(prefix)<<16, b); err != nil {
			return nil, err
		}
		if op, err = p.pastMemo(); err != nil {
			return nil, err
		}
		if mark && op != opTuple || !mark && op != opTuple2 {
			return nil, p.bad("opcode %#02x where a pair ends", op)
		}
		if op, err = p.pastMemo(); err != nil {
			return nil, err
		} else if op != opStop {
			return nil, p.bad("opcode %#02x where a pickle ends", op)
		}
	}
}

// addBucket adds the objects of a bucket to x.
func (p *pickleReader) addBucket(x *Index, prefix OID, b []byte) error {
	n := len(b) / (suffixSize + prefixSize)
	if n == 0 || len(b)%(suffixSize+prefixSize) != 0 {
		return p.bad("a bucket has %d bytes", len(b))
	}
	last := -1
	for i := range n {
		suffix := int(be16(b[i*suffixSize:]))
		if suffix <= last {
			return p.bad("oids are not in order")
		}
		last = suffix
		x.Set(prefix|OID(suffix), int64(be48(b[n*suffixSize+i*prefixSize:])))
	}
	return nil
}

func be48(b []byte) uint64 {
	return uint64(be16(b))<<32 | uint64(binary.BigEndian.Uint32(b[2:]))
}

// SaveIndex writes x to path, which is that of the Data.fs and ".index", in one step that a crash cannot halve: a
// temporary file with ZODB's name for it is made durable, then renamed. On failure what stood at path is as
// it was, and the temporary file is gone.
//
// Hold the lock of the Data.fs: FileStorage uses the same temporary name.
func SaveIndex(path string, x *Index, pos int64) (err error) {
	tmp := path + ".index_tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	err = WriteIndex(f, x, pos)
	if err == nil {
		err = durable.OwnLike(f, strings.TrimSuffix(path, ".index"), filepath.Dir(path))
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = durable.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("saving the index %s: %w", path, err)
	}
	return nil
}
