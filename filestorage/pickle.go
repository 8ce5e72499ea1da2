package filestorage

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"

	"zodbrepl/internal/fault"
)

// The opcodes of Python's pickles (Python: Lib/pickletools.py) that occur in index files and before the end of a
// blob record's first pickle.
const (
	opMark        = '('
	opStop        = '.'
	opNone        = 'N'
	opInt         = 'I' // decimal, line feed
	opInt1        = 'K' // 1 byte
	opInt2        = 'M' // 2 bytes, little-endian
	opInt4        = 'J' // 4 bytes, signed
	opLong        = 'L' // decimal, L, line feed
	opLong1       = 0x8a
	opShortBytes  = 'C' // 1 byte of length
	opBytes       = 'B' // 4 bytes of length
	opShortString = 'U' // Python 2's str, 1 byte of length
	opString4     = 'T' // 4 bytes of length
	opUnicode     = 'X' // 4 bytes of length
	opTuple       = 't' // of what is above the mark
	opTuple0      = ')'
	opTuple1      = 0x85
	opTuple2      = 0x86
	opTuple3      = 0x87
	opList0       = ']'
	opList        = 'l'
	opAppend      = 'a'
	opAppends     = 'e'
	opDict0       = '}'
	opDict        = 'd'
	opSetItem     = 's'
	opSetItems    = 'u'
	opGlobal      = 'c' // module, line feed, name, line feed
	opInst        = 'i'
	opObj         = 'o'
	opNewObj      = 0x81
	opReduce      = 'R'
	opBuild       = 'b'
	opPut         = 'p' // decimal, line feed
	opPut1        = 'q' // 1 byte
	opPut4        = 'r' // 4 bytes
	opGet         = 'g'
	opGet1        = 'h'
	opGet4        = 'j'
	opProto       = 0x80
)

// pickleReader reads an index file. It never takes a length from the file for granted.
type pickleReader struct {
	r    *bufio.Reader
	name string
	off  int64 // of the next byte
	buf  []byte
}

// bad returns an error about what was read just before.
func (p *pickleReader) bad(format string, args ...any) error {
	return fault.New(nil, "%s: at offset %d: %s", p.name, p.off, fmt.Sprintf(format, args...)).Because(ErrBadIndex).
		Keeping("the index and its Data.fs").
		Remedy("an index can be remade from its Data.fs: remove %s, and the next start scans the file instead", p.name)
}

func (p *pickleReader) failed(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return p.bad("the file ends in the middle")
	}
	return fmt.Errorf("%s: at offset %d: %w", p.name, p.off, err)
}

func (p *pickleReader) byte() (byte, error) {
	b, err := p.r.ReadByte()
	if err != nil {
		return 0, p.failed(err)
	}
	p.off++
	return b, nil
}

// opcode returns the next opcode after a protocol's mark, if there is one.
func (p *pickleReader) opcode() (byte, error) {
	op, err := p.byte()
	if err != nil || op != opProto {
		return op, err
	}
	if v, err := p.byte(); err != nil {
		return 0, err
	} else if v > 3 {
		return 0, p.bad("pickle protocol %d, which no FileStorage writes its index with", v)
	}
	return p.byte()
}

func (p *pickleReader) expect(want byte) error {
	op, err := p.byte()
	if err == nil && op != want {
		err = p.bad("opcode %#02x where a pickle ends", op)
	}
	return err
}

// end fails when there is more.
func (p *pickleReader) end() error {
	switch _, err := p.r.ReadByte(); {
	case err == nil:
		return p.bad("there are bytes after the end of the index")
	case err != io.EOF:
		return p.failed(err)
	}
	return nil
}

// bytes returns the next n bytes, valid until the next call.
func (p *pickleReader) bytes(n uint32) ([]byte, error) {
	if n > maxBucket {
		return nil, p.bad("a string of %d bytes, more than an index has", n)
	}
	if cap(p.buf) < int(n) {
		p.buf = make([]byte, n)
	}
	b := p.buf[:n]
	got, err := io.ReadFull(p.r, b)
	p.off += int64(got)
	if err != nil {
		return nil, p.failed(err)
	}
	return b, nil
}

// line returns what stands before the next line feed.
func (p *pickleReader) line() (string, error) {
	const most = 200
	var line []byte
	for len(line) <= most {
		b, err := p.byte()
		if err != nil {
			return "", err
		}
		if b == '\n' {
			return string(line), nil
		}
		line = append(line, b)
	}
	return "", p.bad("a line of more than %d bytes", most)
}

// number returns the next n bytes as a little-endian number.
func (p *pickleReader) number(n int) (uint32, error) {
	b, err := p.bytes(uint32(n))
	if err != nil {
		return 0, err
	}
	var v uint32
	for i := n - 1; i >= 0; i-- {
		v = v<<8 | uint32(b[i])
	}
	return v, nil
}

// intAfter reads what follows the opcode of an int. ok is false when op is another opcode.
func (p *pickleReader) intAfter(op byte) (n int64, ok bool, err error) {
	var v uint32
	switch op {
	case opInt1:
		v, err = p.number(1)
		return int64(v), true, err
	case opInt2:
		v, err = p.number(2)
		return int64(v), true, err
	case opInt4:
		v, err = p.number(4)
		return int64(int32(v)), true, err
	case opLong1:
		n, err = p.long1()
		return n, true, err
	case opInt, opLong:
		line, err := p.line()
		if err != nil {
			return 0, true, err
		}
		if k := len(line) - 1; op == opLong && k > 0 && line[k] == 'L' {
			line = line[:k]
		}
		if n, err = strconv.ParseInt(line, 10, 64); err != nil {
			err = p.bad("%q is no position", line)
		}
		return n, true, err
	}
	return 0, false, nil
}

func (p *pickleReader) long1() (int64, error) {
	n, err := p.byte()
	if err != nil {
		return 0, err
	}
	if n > 8 {
		return 0, p.bad("a position of %d bytes", n)
	}
	b, err := p.bytes(uint32(n))
	if err != nil || n == 0 {
		return 0, err
	}
	var w [8]byte
	if b[n-1] >= 0x80 {
		w = [8]byte(bytes.Repeat([]byte{0xff}, 8))
	}
	copy(w[:], b)
	return int64(binary.LittleEndian.Uint64(w[:])), nil
}

// stringAfter reads what follows the opcode of a string; it is valid until the next call.
func (p *pickleReader) stringAfter(op byte) ([]byte, error) {
	size := 0
	switch op {
	case opShortBytes, opShortString:
		size = 1
	case opBytes, opString4, opUnicode:
		size = 4
	default:
		return nil, p.bad("opcode %#02x where a string begins", op)
	}
	n, err := p.number(size)
	if err != nil {
		return nil, err
	}
	return p.bytes(n)
}

// pastMemo returns the next opcode, after one that only remembers what was read.
func (p *pickleReader) pastMemo() (byte, error) {
	op, err := p.byte()
	if err != nil {
		return 0, err
	}
	if _, ok, err := p.memoAfter(op); err != nil || !ok {
		return op, err
	}
	return p.byte()
}

// memoAfter reads the number after an opcode that puts into or gets from the memo. ok is false when op is another.
func (p *pickleReader) memoAfter(op byte) (n uint32, ok bool, err error) {
	switch op {
	case opPut1, opGet1:
		n, err = p.number(1)
	case opPut4, opGet4:
		n, err = p.number(4)
	case opPut, opGet:
		var line string
		if line, err = p.line(); err == nil {
			v, perr := strconv.ParseUint(line, 10, 32)
			if perr != nil {
				err = p.bad("%q is no number", line)
			}
			n = uint32(v)
		}
	default:
		return 0, false, nil
	}
	return n, true, err
}
