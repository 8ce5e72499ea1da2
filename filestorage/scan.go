package filestorage

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Transaction is a committed transaction, as its header tells it.
type Transaction struct {
	Pos int64 // of the transaction's first byte
	TxnHeader
	file *File
}

// End returns the position after the transaction, which is the next one's.
func (t Transaction) End() int64 { return t.Pos + t.RecordLen() }

// Meta reads user, description and the pickled extension: raw bytes, as ZODB stores them (UTF-8 by custom).
func (t Transaction) Meta() (user, description, extension []byte, err error) {
	b := make([]byte, t.HeaderLen()-TxnHeaderSize)
	if err := t.file.readFull(b, t.Pos+TxnHeaderSize); err != nil {
		return nil, nil, nil, err
	}
	u, d := int(t.UserLen), int(t.UserLen)+int(t.DescriptionLen)
	return b[:u:u], b[u:d:d], b[d:], nil
}

// Record is a data record and where it stands.
type Record struct {
	Pos int64
	DataHeader
}

// Records iterates over the headers of the transaction's data records; data is not read. It ends after the
// first error.
func (t Transaction) Records() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		w := &window{r: t.file.r}
		end := t.Pos + int64(t.Length)
		for pos := t.Pos + t.HeaderLen(); pos < end; {
			rec, err := t.file.record(w, pos)
			if errors.Is(err, io.ErrUnexpectedEOF) { // the transaction was whole before
				if size, serr := t.file.r.Size(); serr == nil && size < end {
					err = &ShrunkError{File: t.file.name, Pos: end, Size: size}
				} else if serr == nil {
					err = t.file.corrupt(pos, t.TID, "data records do not add up to the transaction's length: %d bytes are left", end-pos)
				}
			}
			if err == nil {
				if verr := rec.Validate(pos, t.Pos, t.TxnHeader); verr != nil {
					err = t.file.corrupt(pos, t.TID, "%v", verr)
				}
			}
			if !yield(rec, err) || err != nil {
				return
			}
			pos += rec.RecordLen()
		}
	}
}

func (f *File) record(w *window, pos int64) (rec Record, err error) {
	rec.Pos = pos
	b, err := w.view(pos, DataHeaderSize)
	if err != nil {
		return rec, fmt.Errorf("%s: data record at %d: %w", f.name, pos, err)
	}
	rec.Decode(b)
	if rec.DataLen == 0 {
		if b, err = w.view(pos+DataHeaderSize, backSize); err != nil {
			return rec, fmt.Errorf("%s: back pointer at %d: %w", f.name, pos+DataHeaderSize, err)
		}
		rec.Back = be64(b)
	}
	return rec, nil
}

// RecordAt reads the header of the data record at pos. Only what the record says of itself is checked.
func (f *File) RecordAt(pos int64) (Record, error) {
	return f.recordAt(&window{r: f.r, next: windowMin}, pos)
}

func (f *File) recordAt(w *window, pos int64) (Record, error) {
	rec, err := f.record(w, pos)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return rec, f.corrupt(pos, 0, "no data record of FileStorage: the file ends before it does")
	}
	if err == nil && (rec.Version != 0 || rec.DataLen > maxLength || rec.Prev >= uint64(pos) || rec.Back >= uint64(pos) ||
		rec.TxnPos < MagicSize || rec.TxnPos+TxnHeaderSize > uint64(pos)) {
		err = f.corrupt(pos, rec.TID, "no data record of FileStorage")
	}
	return rec, err
}

// Resolve follows back pointers from rec to the record that holds its data. ok is false when there is none: the
// object was deleted, or its creation undone.
func (f *File) Resolve(rec Record) (holder Record, ok bool, err error) {
	for rec.DataLen == 0 {
		if rec.Back == 0 {
			return rec, false, nil
		}
		if f.first > MagicSize && int64(rec.Back) < f.first {
			return rec, false, fmt.Errorf("%s: record at %d: %w", f.name, rec.Back, ErrBeforePart)
		}
		// Back pointers go strictly backwards, so this ends.
		if rec, err = f.RecordAt(int64(rec.Back)); err != nil {
			return rec, false, err
		}
	}
	return rec, true, nil
}

// Data reads the record's own data; it is empty when the record has a back pointer.
func (f *File) Data(rec Record) *io.SectionReader {
	return io.NewSectionReader(f.r, rec.Pos+DataHeaderSize, int64(rec.DataLen))
}

// Transactions iterates over the committed transactions from the position from, which must be a commit boundary;
// First is the first. It ends where the committed part of the file ends; damage before that is a
// *CorruptError, after which the iteration is over.
func (f *File) Transactions(from int64) iter.Seq2[Transaction, error] {
	return func(yield func(Transaction, error) bool) {
		s := scanner{file: f, win: window{r: f.r}, pos: from}
		for {
			t, err := s.next()
			if err == errTail {
				return
			}
			if !yield(t, err) || err != nil {
				return
			}
		}
	}
}

// errTail ends a scan at the end of the committed part.
var errTail = errors.New("end of the committed transactions")

// scanner goes from one committed transaction to the next.
type scanner struct {
	file *File
	win  window
	pos  int64
	last TID   // of the transaction before pos; 0 at first
	size int64 // of the file, when last asked

	tail   TailState // why the scan ended
	reason string
}

// TailState says what stands after the last committed transaction.
type TailState int

const (
	// TailClean: nothing stands there.
	TailClean TailState = iota
	// TailInFlight: a transaction is being written, or was when its writer died. Normal on a live file.
	TailInFlight
	// TailTorn: bytes that no live FileStorage leaves there, and no committed transaction follows them: what a
	// crash of the host may leave. FileStorage cuts them off when it opens the file for writing.
	TailTorn
)

// Settling: a live writer may abort a transaction and use its place again, or commit it, between two of our
// reads. What looks wrong is read again this many times, with this pause, before it is believed.
const (
	settleTries = 3
	settlePause = 5 * time.Millisecond
)

func (s *scanner) next() (Transaction, error) {
	for try := 0; ; try++ {
		t, state, why, err := s.look()
		if err != nil {
			return t, err
		}
		switch {
		case why == "":
			s.pos, s.last = t.End(), t.TID
			return t, nil
		case state != TailTorn:
			s.tail, s.reason = state, why
			return t, errTail
		}
		// Either a race with the writer, or a torn tail, or damage in the middle.
		if try < settleTries {
			time.Sleep(s.file.pause)
			s.win.forget()
			s.size = 0
			continue
		}
		after, found, err := s.file.findCommitted(s.pos+1, s.last, s.size)
		if err != nil {
			return t, err
		}
		if found {
			return t, s.file.corrupt(s.pos, t.TID, "%s, yet a committed transaction follows at %d (%s)", why, after.Pos, after.TID)
		}
		s.tail, s.reason = state, why
		return t, errTail
	}
}

// look reads what stands at s.pos. why is empty for a committed transaction, and "clean" or a reason else.
func (s *scanner) look() (t Transaction, state TailState, why string, err error) {
	t = Transaction{Pos: s.pos, file: s.file}
	b, err := s.win.view(s.pos, TxnHeaderSize)
	if err == io.ErrUnexpectedEOF {
		if err := s.refreshSize(); err != nil {
			return t, 0, "", err
		}
		if s.size > s.pos { // by now it may be more than there was
			return t, TailInFlight, "the start of a transaction header", nil
		}
		return t, TailClean, "clean", nil
	}
	if err != nil {
		return t, 0, "", fmt.Errorf("%s: transaction header at %d: %w", s.file.name, s.pos, err)
	}
	t.Decode(b)

	// The status comes first: the rest of a voted header may belong to a transaction that was never written out.
	end := s.pos + trailerSize
	if t.Length <= maxLength {
		end = s.pos + t.RecordLen()
	}
	if end > s.size {
		if err := s.refreshSize(); err != nil {
			return t, 0, "", err
		}
	}
	if t.Status == StatusVoted {
		if t.Length <= maxLength && end < s.size {
			return t, TailTorn, "a transaction that was voted for but never committed (status 'c')", nil
		}
		return t, TailInFlight, "a transaction is being written (status 'c')", nil
	}
	if err := t.Validate(); err != nil {
		return t, TailTorn, err.Error(), nil
	}
	if end > s.size {
		return t, TailTorn, fmt.Sprintf("the transaction ends at %d, beyond the file's %d bytes", end, s.size), nil
	}
	b, err = s.win.view(end-trailerSize, trailerSize)
	if err != nil {
		return t, 0, "", s.shrunk(end, err)
	}
	if be64(b) != t.Length {
		return t, TailTorn, fmt.Sprintf("the length at the transaction's end, %d, is not the one in its header, %d", be64(b), t.Length), nil
	}
	return t, 0, "", nil
}

func (s *scanner) refreshSize() (err error) {
	if s.size, err = s.file.r.Size(); err != nil {
		return fmt.Errorf("%s: %w", s.file.name, err)
	}
	if s.size < s.pos {
		return &ShrunkError{File: s.file.name, Pos: s.pos, Size: s.size}
	}
	return nil
}

func (s *scanner) shrunk(end int64, err error) error {
	if err == io.ErrUnexpectedEOF {
		if size, serr := s.file.r.Size(); serr == nil && size < end {
			return &ShrunkError{File: s.file.name, Pos: end, Size: size}
		}
	}
	return fmt.Errorf("%s: end of the transaction at %d: %w", s.file.name, s.pos, err)
}
