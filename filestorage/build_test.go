package filestorage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// A builder makes Data.fs files that the fixtures do not have: enormous, broken in a certain place, or random.
type builder struct {
	b     []byte
	index map[OID]int64
	ends  []int64 // the commit boundaries after MagicSize
	tid   TID
}

func newBuilder() *builder {
	return &builder{b: []byte("FS30"), index: map[OID]int64{}, tid: 0x03d0000000000000}
}

// obj is a data record to be made: data, or a back pointer when there is none.
type obj struct {
	oid  OID
	data []byte
	back int64
}

// txn appends a transaction and returns its position.
func (b *builder) txn(status byte, meta string, objs ...obj) int64 {
	b.tid += 1 << 20
	pos := int64(len(b.b))
	h := TxnHeader{TID: b.tid, Status: status, UserLen: uint16(len(meta)), DescriptionLen: uint16(len(meta)), ExtensionLen: uint16(len(meta))}
	h.Length = uint64(h.HeaderLen())
	for _, o := range objs {
		h.Length += uint64(DataHeader{DataLen: uint64(len(o.data))}.RecordLen())
	}
	b.b = h.Append(b.b)
	b.b = append(b.b, meta+meta+meta...)
	placed := map[OID]int64{}
	for _, o := range objs {
		placed[o.oid] = int64(len(b.b))
		d := DataHeader{OID: o.oid, TID: h.TID, Prev: uint64(b.index[o.oid]), TxnPos: uint64(pos), DataLen: uint64(len(o.data)), Back: uint64(o.back)}
		b.b = append(d.Append(b.b), o.data...)
	}
	b.b = binary.BigEndian.AppendUint64(b.b, h.Length)
	if status != StatusUndone {
		for oid, p := range placed {
			b.index[oid] = p
		}
	}
	b.ends = append(b.ends, int64(len(b.b)))
	return pos
}

// file returns what was built as a File.
func (b *builder) file(t testing.TB) *File {
	t.Helper()
	return b.of(t, b.b)
}

// of returns other bytes as a File. Nobody writes to them, so it does not wait for a writer.
func (b *builder) of(t testing.TB, bytes []byte) *File {
	t.Helper()
	f, err := NewFile(memory(bytes), "Data.fs")
	require.NoError(t, err)
	f.pause = 0
	return f
}

// sample builds a file with everything that a healthy one has.
func sample() *builder {
	b := newBuilder()
	b.txn(StatusPacked, "", obj{oid: 0, data: []byte("root")}, obj{oid: 1, data: bytes.Repeat([]byte("x"), 300)})
	b.txn(StatusCommitted, "user", obj{oid: 1, data: []byte("second")}, obj{oid: 2, data: []byte("\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.")})
	b.txn(StatusCommitted, "no records")
	b.txn(StatusUndone, "u", obj{oid: 9, data: []byte("does not count")})
	b.txn(StatusCommitted, "", obj{oid: 1, back: b.index[1]}, obj{oid: 2, back: 0}, obj{oid: 70000, data: []byte("far")})
	b.txn(StatusCommitted, "", obj{oid: 0, data: []byte("root again")})
	return b
}

// randomFile builds n transactions.
func randomFile(seed uint64, n int) *builder {
	r := rand.New(rand.NewPCG(seed, 1))
	b := newBuilder()
	for range n {
		var objs []obj
		for oid := OID(r.IntN(40)); oid < 40 && len(objs) < 6; oid += OID(1 + r.IntN(30)) {
			o := obj{oid: oid, data: bytes.Repeat([]byte{byte(oid)}, r.IntN(600))}
			if r.IntN(4) == 0 {
				o.data, o.back = nil, b.index[oid]
			}
			objs = append(objs, o)
		}
		b.txn("  pu"[r.IntN(4)], "abcdef"[:r.IntN(6)], objs...)
	}
	return b
}

// memory is a Reader of bytes.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Size() (int64, error)                    { return int64(len(m)), nil }

var errBroken = errors.New("the disk is broken")

// failing is a Reader that cannot read the byte at fail.
type failing struct {
	memory
	fail int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.fail && f.fail < off+int64(len(p)) {
		n, _ := f.memory.ReadAt(p[:f.fail-off], off)
		return n, errBroken
	}
	return f.memory.ReadAt(p, off)
}

// stingy is a Reader that gives at most most bytes, without an error, and says EOF with the last byte.
type stingy struct {
	memory
	most int
}

func (s stingy) ReadAt(p []byte, off int64) (int, error) {
	p = p[:min(len(p), s.most)]
	n, err := s.memory.ReadAt(p, off)
	if off+int64(n) == int64(len(s.memory)) {
		err = io.EOF
	}
	return n, err
}

// shrinking is a Reader of a file that loses its bytes from size on after some reads.
type shrinking struct {
	memory
	reads *int
	size  int64
}

func (s shrinking) now() memory {
	if *s.reads--; *s.reads < 0 {
		return s.memory[:min(s.size, int64(len(s.memory)))]
	}
	return s.memory
}

func (s shrinking) ReadAt(p []byte, off int64) (int, error) { return s.now().ReadAt(p, off) }
func (s shrinking) Size() (int64, error)                    { return s.now().Size() }

// scanned is what a whole scan sees.
type scanned struct {
	txns []Transaction
	recs []Record
	err  error
}

func scan(f *File, from int64) (s scanned) {
	for t, err := range f.Transactions(from) {
		if err != nil {
			s.err = err
			return s
		}
		t.file = nil
		s.txns = append(s.txns, t)
		t.file = f
		if t.Status == StatusUndone {
			continue
		}
		for r, err := range t.Records() {
			if err != nil {
				s.err = err
				return s
			}
			s.recs = append(s.recs, r)
		}
	}
	return s
}

func committed(t testing.TB, f *File, from int64) Extent {
	t.Helper()
	e, err := f.Committed(context.Background(), from)
	require.NoError(t, err)
	return e
}

// patched returns a copy of b with other bytes at off.
func patched(b []byte, off int64, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], with)
	return b
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
