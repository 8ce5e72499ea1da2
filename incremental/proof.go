package incremental

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
)

// TailSize is how many of the last raw bytes before an increment's end the tail proof covers (fewer when the
// Data.fs was shorter).
const TailSize = 64 << 10

// Proof is a hash of the raw bytes that end at a position: who has the same bytes there has, short of malice, the
// same history before.
type Proof struct {
	Size   int64  `json:"size"` // bytes covered
	SHA256 string `json:"sha256"`
}

// ProveTail reads the proof for the position end from the raw bytes in r.
func ProveTail(r io.ReaderAt, end int64) (Proof, error) {
	var t TailKeeper
	if err := t.Seed(r, end); err != nil {
		return Proof{}, err
	}
	return t.Proof(), nil
}

// Holds says whether the raw bytes in r before the position end are those of the proof. A file that ends sooner
// does not hold.
func (p Proof) Holds(r io.ReaderAt, end int64) (bool, error) {
	if p.Size != min(end, TailSize) {
		return false, nil
	}
	got, err := ProveTail(r, end)
	if err == io.ErrUnexpectedEOF {
		return false, nil
	}
	return got == p, err
}

// TailKeeper keeps the last TailSize bytes that were written to it, for the tail proof of a stream.
type TailKeeper struct{ buf []byte }

// Seed begins with the bytes in r before the position end.
func (t *TailKeeper) Seed(r io.ReaderAt, end int64) error {
	n := min(end, TailSize)
	t.buf = make([]byte, n, 2*TailSize)
	_, err := io.ReadFull(io.NewSectionReader(r, end-n, n), t.buf)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Write never fails.
func (t *TailKeeper) Write(p []byte) (int, error) {
	keep := p[max(0, len(p)-TailSize):]
	if over := len(t.buf) + len(keep) - TailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.buf = append(t.buf, keep...)
	return len(p), nil
}

// Proof returns the tail proof of what was written, which must be all bytes from the start or from TailSize before.
func (t *TailKeeper) Proof() Proof {
	sum := sha256.Sum256(t.buf)
	return Proof{Size: int64(len(t.buf)), SHA256: hex.EncodeToString(sum[:])}
}
