package filestorage

import (
	"errors"
	"fmt"
)

// HeadSize is how much of a data record's data a Checker shows, in bytes: enough to recognise a blob's record,
// which is shorter.
const HeadSize = 256

// Checker reads the raw bytes of a Data.fs, or of a run of whole transactions from its middle, as a stream, and
// holds every header to ZODB's invariants (checkTxn and checkData in FileStorage/format.py). Write it the bytes in
// pieces of any size, then Close it: Close fails unless the bytes ended on a commit boundary.
//
//	c := filestorage.NewChecker("Data.fs", 0)
//	c.OnRecord = func(r filestorage.Record, head []byte) error { index.Set(r.OID, r.Pos); return nil }
//	_, err := io.Copy(c, r)
//	if err == nil {
//		err = c.Close()
//	}
//
// Data is skipped, not kept: memory does not depend on the sizes in the stream.
type Checker struct {
	// OnTransaction is called for every transaction, when its header has been read. Optional.
	OnTransaction func(pos int64, h TxnHeader) error
	// OnMeta is called after it with user, description and extension, also when they are empty; they are valid until it
	// returns. Optional.
	OnMeta func(user, description, extension []byte) error
	// OnRecord is called for every data record that counts, with the first HeadSize bytes of its data at most
	// (nothing for a back pointer). head is valid until it returns. Optional.
	OnRecord func(r Record, head []byte) error
	// OnEnd is called when a transaction has been read whole, with the position after it. Optional.
	OnEnd func(end int64) error
	// NoHeads says that OnRecord does not want the data: head is nil then.
	NoHeads bool
	// StopAfter ends the run before the first transaction with a greater tid: what follows is taken, but neither
	// looked at nor Accepted. 0 is no limit.
	StopAfter TID

	name string
	pos  int64 // of the next byte
	ext  Extent
	err  error

	state    checkState
	stopped  bool
	buf      []byte // a header, a head or a transaction's texts that are being gathered
	have     int    // bytes in buf
	need     int    // bytes wanted in buf before the state moves on
	skip     int64  // bytes to pass over first
	txn      TxnHeader
	txnPos   int64
	rec      Record
	packed   TID // last transaction with status 'p'
	reversed int64
	records  int64
}

type checkState int

const (
	checkMagic checkState = iota
	checkTxn
	checkMeta
	checkRecord
	checkBack
	checkHead
	checkTrailer
)

// NewChecker returns a Checker for bytes that begin at the position start: 0, where the magic is expected, or a
// commit boundary. The name stands in errors.
func NewChecker(name string, start int64) *Checker {
	c := &Checker{name: name, pos: start, ext: Extent{Start: start, End: start}}
	if start == 0 {
		c.expect(checkMagic, MagicSize)
	} else {
		c.expect(checkTxn, TxnHeaderSize)
	}
	return c
}

func (c *Checker) expect(s checkState, n int) {
	if c.state, c.need, c.have = s, n, 0; n > len(c.buf) {
		c.buf = make([]byte, max(n, HeadSize+8))
	}
}

// Write checks the next bytes. After an error it returns that error for ever.
func (c *Checker) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 && c.err == nil && !c.stopped {
		if c.skip > 0 {
			n := min(c.skip, int64(len(p)))
			c.skip -= n
			c.pos += n
			p = p[n:]
			continue
		}
		var b []byte
		if c.have == 0 && len(p) >= c.need {
			b, p = p[:c.need], p[c.need:]
		} else {
			n := copy(c.buf[c.have:c.need], p)
			c.have += n
			p = p[n:]
			if c.have < c.need {
				c.pos += int64(n)
				break
			}
			b = c.buf[:c.need]
			c.pos -= int64(c.have - n) // the state sees pos at its first byte
		}
		if c.err = c.step(b); c.err == nil && !c.stopped {
			c.pos += int64(len(b))
		} else {
			c.have = 0 // pos is already before these bytes
		}
	}
	return total, c.err
}

// step takes the bytes that the state waited for; c.pos is the position of the first of them.
func (c *Checker) step(b []byte) error {
	switch c.state {
	case checkMagic:
		if !ValidMagic(b) {
			return notFileStorage(c.name, fmt.Sprintf("begins with %q, not FS30 or FS21", b))
		}
		c.ext.End = MagicSize
		c.expect(checkTxn, TxnHeaderSize)
	case checkTxn:
		return c.transaction(b)
	case checkMeta:
		return c.meta(b)
	case checkRecord:
		return c.record(b)
	case checkBack:
		c.rec.Back = be64(b)
		if err := c.rec.Validate(c.rec.Pos, c.txnPos, c.txn); err != nil {
			return c.corrupt(c.rec.Pos, "%v", err)
		}
		return c.recordDone(nil, c.pos+backSize)
	case checkHead:
		end := c.rec.Pos + c.rec.RecordLen()
		c.skip = end - c.pos - int64(len(b))
		return c.recordDone(b, end)
	case checkTrailer:
		if be64(b) != c.txn.Length {
			return c.corrupt(c.txnPos, "the length at the transaction's end, %d, is not the one in its header, %d", be64(b), c.txn.Length)
		}
		c.ext.End = c.pos + trailerSize
		c.ext.Transactions++
		c.expect(checkTxn, TxnHeaderSize)
		if c.OnEnd != nil {
			return c.OnEnd(c.ext.End)
		}
	}
	return nil
}

func (c *Checker) transaction(b []byte) error {
	c.txn.Decode(b)
	c.txnPos = c.pos
	if c.StopAfter != 0 && c.txn.TID > c.StopAfter {
		c.stopped = true
		return nil
	}
	if err := c.txn.Validate(); err != nil {
		return c.corrupt(c.pos, "%v", err)
	}
	if c.ext.First == 0 {
		c.ext.First = c.txn.TID
	}
	if c.txn.TID <= c.ext.Last {
		c.reversed++
	}
	c.ext.Last = c.txn.TID
	if c.txn.Status == StatusPacked {
		c.packed = c.txn.TID
	}
	if c.OnTransaction != nil {
		if err := c.OnTransaction(c.pos, c.txn); err != nil {
			return err
		}
	}
	switch n := c.txn.HeaderLen() - TxnHeaderSize; {
	case c.OnMeta == nil:
		c.skip = n
		return c.body()
	case n == 0:
		return c.meta(nil)
	default:
		c.expect(checkMeta, int(n))
		return nil
	}
}

func (c *Checker) meta(b []byte) error {
	u := int(c.txn.UserLen)
	d := u + int(c.txn.DescriptionLen)
	if err := c.OnMeta(b[:u:u], b[u:d:d], b[d:]); err != nil {
		return err
	}
	return c.body()
}

// body prepares for what follows a transaction's header and texts.
func (c *Checker) body() error {
	begin := c.txnPos + c.txn.HeaderLen()
	if c.txn.Status == StatusUndone { // its records do not count
		c.skip += c.txnPos + int64(c.txn.Length) - begin
		c.expect(checkTrailer, trailerSize)
		return nil
	}
	return c.afterRecord(begin)
}

// afterRecord prepares for what stands at pos: another record or the end of the transaction.
func (c *Checker) afterRecord(pos int64) error {
	switch left := c.txnPos + int64(c.txn.Length) - pos; {
	case left == 0:
		c.expect(checkTrailer, trailerSize)
	case left < DataHeaderSize:
		return c.corrupt(pos, "data records do not add up to the transaction's length: %d bytes are left", left)
	default:
		c.expect(checkRecord, DataHeaderSize)
	}
	return nil
}

func (c *Checker) record(b []byte) error {
	c.rec = Record{Pos: c.pos}
	c.rec.Decode(b)
	if err := c.rec.Validate(c.pos, c.txnPos, c.txn); err != nil {
		return c.corrupt(c.pos, "%v", err)
	}
	c.records++
	if c.rec.DataLen == 0 {
		c.expect(checkBack, backSize)
		return nil
	}
	if c.OnRecord == nil || c.NoHeads {
		c.skip = int64(c.rec.DataLen)
		return c.recordDone(nil, c.rec.Pos+c.rec.RecordLen())
	}
	c.expect(checkHead, int(min(c.rec.DataLen, HeadSize)))
	return nil
}

func (c *Checker) recordDone(head []byte, end int64) error {
	if c.OnRecord != nil {
		if err := c.OnRecord(c.rec, head); err != nil {
			return err
		}
	}
	return c.afterRecord(end)
}

func (c *Checker) corrupt(pos int64, format string, args ...any) error {
	return &CorruptError{File: c.name, Pos: pos, TID: c.txn.TID, Cause: fmt.Sprintf(format, args...)}
}

// Accepted returns the position up to which the bytes written so far belong to transactions that count: all of
// them, except the start of a header that is not whole yet, and everything from where StopAfter ended the run, or
// from the header that broke the format.
func (c *Checker) Accepted() int64 {
	if c.stopped {
		return c.txnPos
	}
	if c.state == checkTxn || c.state == checkMagic {
		return c.pos - int64(c.have)
	}
	return c.pos
}

// Stopped says whether StopAfter ended the run.
func (c *Checker) Stopped() bool { return c.stopped }

// Close fails if an error came before, or if the bytes did not end on a commit boundary.
func (c *Checker) Close() error {
	switch {
	case c.err != nil || c.stopped:
	case c.state == checkMagic:
		c.err = notFileStorage(c.name, fmt.Sprintf("only %d bytes long", c.have))
	case c.state != checkTxn || c.have != 0:
		c.err = &CorruptError{File: c.name, Pos: c.ext.End, TID: c.txn.TID,
			Cause: fmt.Sprintf("%d bytes after the last commit boundary are no whole transaction", c.pos-c.ext.End)}
	}
	if c.err != nil {
		return c.err
	}
	c.err = errClosed
	return nil
}

var errClosed = errors.New("write to a closed Checker")

// Extent returns the run of whole transactions read so far.
func (c *Checker) Extent() Extent { return c.ext }

// Records returns the number of data records read.
func (c *Checker) Records() int64 { return c.records }

// LastPacked returns the tid of the last transaction with the status 'p', 0 for none. A state before it cannot be
// had from these bytes: the pack removed what was not current.
func (c *Checker) LastPacked() TID { return c.packed }

// Reversed returns the number of transactions whose tid is not greater than that of the one before. FileStorage
// only logs them, but cannot pack such a file.
func (c *Checker) Reversed() int64 { return c.reversed }
