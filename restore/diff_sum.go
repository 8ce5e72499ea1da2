package restore

import (
	"crypto/sha256"
	"hash"
	"io"
	"math"

	"zodbrepl/filestorage"
)

// dataSum is the hash of all bytes of a transaction. A stored one is read as a stream, so its bytes are hashed while they
// pass; those of a file are only read when they are asked for.
type dataSum = [sha256.Size]byte

func fileSum(f *filestorage.File, start, end int64) (sum dataSum, err error) {
	h := sha256.New()
	if _, err := io.Copy(h, f.Section(start, end)); err != nil {
		return sum, err
	}
	return dataSum(h.Sum(nil)), nil
}

// summer hands a stream to a Checker in pieces that end where transactions end, and tells the hash of each then.
type summer struct {
	check *filestorage.Checker
	tell  func(dataSum) error

	hash       hash.Hash
	pos        int64 // of the next byte
	begin, end int64 // of the transaction; end is 0 until its header has been read
}

func newSummer(check *filestorage.Checker, start int64, tell func(dataSum) error) *summer {
	return &summer{check: check, tell: tell, hash: sha256.New(), pos: start, begin: start}
}

// transaction is told of a header by the Checker.
func (s *summer) transaction(pos int64, h filestorage.TxnHeader) { s.end = pos + h.RecordLen() }

// stop is where the next piece ends at most.
func (s *summer) stop() int64 {
	header := s.begin + filestorage.TxnHeaderSize
	switch {
	case s.end > 0:
		return s.end
	case s.pos < filestorage.MagicSize:
		return filestorage.MagicSize
	case s.pos < header:
		return header
	default: // the Checker has found no transaction, and will say so
		return math.MaxInt64
	}
}

func (s *summer) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		piece := p[:min(int64(len(p)), s.stop()-s.pos)]
		p = p[len(piece):]
		s.pos += int64(len(piece))
		if _, err := s.check.Write(piece); err != nil {
			return total - len(p), err
		}
		if s.hash.Write(piece); s.pos != s.end && s.pos != filestorage.MagicSize {
			continue
		}
		if s.pos == s.end {
			if err := s.tell(dataSum(s.hash.Sum(nil))); err != nil {
				return total - len(p), err
			}
		}
		s.hash.Reset()
		s.begin, s.end = s.pos, 0
	}
	return total, nil
}
