package filestorage

import (
	"context"
	"errors"

	"zodbrepl/internal/fault"
)

// Health is what CheckFile found. Positions and sizes are in bytes.
type Health struct {
	File         string `json:"file"`
	Size         int64  `json:"size"`
	Magic        string `json:"magic"` // FS30, or FS21, which today's ZODB does not open
	End          int64  `json:"end"`   // the last commit boundary, or the one before the damage
	FirstTID     TID    `json:"first_tid"`
	LastTID      TID    `json:"last_tid"`
	Transactions int64  `json:"transactions"`
	Packed       int64  `json:"packed"` // transactions with the status 'p'
	Records      int64  `json:"records"`
	BackPointers int64  `json:"back_pointers"` // records whose data stands in an older one
	Deletions    int64  `json:"deletions"`
	Objects      int    `json:"objects"` // deleted ones included

	Tail       string `json:"tail"`      // what follows End: "clean", "in-flight" or "torn"; "" after damage
	InFlight   int64  `json:"in_flight"` // bytes after End
	TailReason string `json:"tail_reason,omitempty"`

	// PrevMismatches counts the records whose previous record is not the object's last one before: a warning, as a
	// pack leaves such pointers.
	PrevMismatches int64  `json:"prev_mismatches"`
	Reversed       int64  `json:"reversed"`          // transactions whose tid is not greater than the one before
	Problem        string `json:"problem,omitempty"` // the first fault
	OK             bool   `json:"ok"`
}

// String returns the name of the state.
func (s TailState) String() string {
	switch s {
	case TailClean:
		return "clean"
	case TailInFlight:
		return "in-flight"
	}
	return "torn"
}

// CheckFile reads all headers of the file, up to the last commit, and holds them to ZODB's invariants; tids must grow, and
// a back pointer must lead to a record of the same object. Data is not read. progress, which may be nil, is told the
// position and the size about every MiB.
//
// The error is that of the first fault, and the Health is complete up to the point where reading had to end: at
// damage, but not at a tid that does not grow, nor at a bad back pointer. Faults of the file are of the kind
// fault.Unverified. A transaction that is being written at the end is no fault.
func (f *File) CheckFile(ctx context.Context, progress func(pos, size int64)) (Health, error) {
	c := &fsck{file: f, index: &Index{}}
	err := c.run(ctx, progress)
	c.Objects = c.index.Len()
	if err == nil {
		err = c.first
	}
	if c.OK = err == nil; !c.OK {
		c.Problem = err.Error()
	}
	return c.Health, err
}

type fsck struct {
	Health
	file     *File
	index    *Index
	first    error // fault that did not end the reading
	progress func(pos, size int64)
	told     int64
	txn      pending
	back     window // where back pointers lead
	indexing bool   // only for the index: where they lead is not looked at
	after    Extent // what stands after End
	slow     bool   // walk all the way; in tests
}

func (c *fsck) run(ctx context.Context, progress func(pos, size int64)) (err error) {
	c.File, c.End, c.progress = c.file.name, MagicSize, progress
	c.txn.index, c.back = c.index, window{r: c.file.r, next: windowMin}
	if c.Size, err = c.file.Size(); err != nil {
		return err
	}
	var magic [MagicSize]byte
	if err := c.file.readFull(magic[:], 0); err != nil {
		return err
	}
	c.Magic = string(magic[:])
	// What the stream does not take is looked at again, with all the care that a live file needs.
	for more := true; more; {
		if !c.slow {
			err = c.stream(ctx)
		}
		if err != nil {
			return err
		}
		if more, err = c.walk(ctx); err != nil {
			return err
		}
	}
	// What was committed since the iteration ended is left for the next check.
	e, err := c.file.Committed(ctx, c.End)
	if err != nil {
		return err
	}
	c.after = e
	c.Tail, c.InFlight, c.TailReason = e.Tail.String(), e.InFlight, e.Reason
	if c.Size = e.End + e.InFlight; e.Tail == TailClean {
		c.TailReason = ""
	}
	if e.Tail == TailTorn {
		c.fault("keep a copy of the file: a server that opens it for writing cuts these bytes off; all before them is whole",
			e.End, 0, "%d bytes after the last commit are no transaction that is being written: %s", e.InFlight, e.Reason)
	}
	return nil
}

// errNotStreamed ends the stream before a transaction that it does not take.
var errNotStreamed = errors.New("left to the walk")

// stream reads on from End as fast as it can, and ends before what is not a transaction that counts with all its records:
// the end of the file, one that is being written, one that is undone, damage.
func (c *fsck) stream(ctx context.Context) error {
	size, err := c.file.Size()
	if err != nil {
		return err
	}
	var h TxnHeader
	var failed error
	check := NewChecker(c.file.name, c.End)
	check.NoHeads = true
	check.OnTransaction = func(pos int64, head TxnHeader) error {
		if head.Status == StatusUndone {
			return errNotStreamed
		}
		h = head
		c.txn.begin(pos, h)
		return nil
	}
	check.OnRecord = func(r Record, _ []byte) error {
		c.txn.add(r)
		return nil
	}
	check.OnEnd = func(end int64) error {
		failed = c.transaction(h, end)
		return failed
	}
	for b, err := range c.file.blocks(ctx, c.End, size) {
		if err == nil {
			_, err = check.Write(b)
		}
		if err != nil {
			break
		}
	}
	return errors.Join(failed, ctx.Err())
}

// walk reads on from End transaction by transaction, for a while, and until one has come that the stream takes: then there
// may be more.
func (c *fsck) walk(ctx context.Context) (more bool, err error) {
	enough := c.End + blockCount*blockSize
	for t, err := range c.file.Transactions(c.End) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return false, err
		}
		c.txn.begin(t.Pos, t.TxnHeader)
		for rec, err := range t.Records() {
			if err != nil {
				return false, err
			}
			c.txn.add(rec)
		}
		if err := c.transaction(t.TxnHeader, t.End()); err != nil {
			return false, err
		}
		if t.Status != StatusUndone && c.End >= enough && !c.slow {
			return true, nil
		}
	}
	return false, nil
}

// transaction judges one that has been read whole; its records are pending.
func (c *fsck) transaction(h TxnHeader, end int64) error {
	if c.Transactions == 0 {
		c.FirstTID = h.TID
	} else if h.TID <= c.LastTID {
		c.Reversed++
		c.fault("nothing is lost, but this file cannot be packed: a clock went back. Copy it to a new file with ZODB's copyTransactionsFrom",
			c.txn.pos, h.TID, "the tid is not greater than that of the transaction before, %s", c.LastTID)
	}
	if h.Status == StatusPacked {
		c.Packed++
	}
	for _, r := range c.txn.records {
		c.Records++
		if r.DataLen == 0 {
			if err := c.pointer(r, h.TID); err != nil {
				return err
			}
		}
	}
	if h.Status != StatusUndone { // whose records do not count
		c.txn.settle()
		c.PrevMismatches = c.txn.mismatches
	}
	c.LastTID, c.End = h.TID, end
	c.Transactions++
	if c.progress != nil && c.End-c.told > 1<<20 {
		c.told = c.End
		c.progress(c.End, max(c.Size, c.End))
	}
	return nil
}

// pointer judges a record without data.
func (c *fsck) pointer(rec Record, tid TID) error {
	if rec.Back == 0 {
		c.Deletions++
		return nil
	}
	c.BackPointers++
	if c.indexing {
		return nil
	}
	target, err := c.file.recordAt(&c.back, int64(rec.Back))
	switch {
	case isCorrupt(err):
		c.fault("", rec.Pos, tid, "oid %s: the back pointer leads to %d, where no data record is", rec.OID, rec.Back)
	case err != nil:
		return err
	case target.OID != rec.OID:
		c.fault("", rec.Pos, tid, "oid %s: the back pointer leads to %d, a record of oid %s", rec.OID, rec.Back, target.OID)
	}
	return nil
}

func (c *fsck) fault(next string, pos int64, tid TID, format string, args ...any) {
	if c.first == nil {
		c.first = fault.New(nil, "").Because(c.file.corrupt(pos, tid, format, args...)).Remedy("%s", next)
	}
}

// Reindex makes the index of the Data.fs at the path data anew from its transactions, up to the last commit, and saves it
// beside it. It holds the lock of the Data.fs meanwhile. progress, which may be nil, is told the position and the size.
//
// It fails with a *LockedError, of the kind fault.Busy, when another process has the Data.fs open for writing, and with
// a *CorruptError at damage. The index that was there is then as it was.
func Reindex(ctx context.Context, data string, progress func(pos, size int64)) (x *Index, ext Extent, err error) {
	// Looked at first, so that no lock file is left beside what is no Data.fs; opened again when no server can swap it.
	_, closer, err := Open(data)
	if err != nil {
		return nil, ext, err
	}
	closer.Close()
	lock, err := AcquireLock(data)
	if err != nil {
		return nil, ext, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	f, closer, err := Open(data)
	if err != nil {
		return nil, ext, err
	}
	defer closer.Close()
	x = &Index{}
	c := &fsck{file: f, index: x, indexing: true}
	if err := c.run(ctx, progress); err != nil {
		return nil, ext, err
	}
	ext = c.after
	ext.Start, ext.End, ext.First, ext.Last, ext.Transactions = MagicSize, c.End, c.FirstTID, c.LastTID, c.Transactions
	if err := SaveIndex(data+".index", x, ext.End); err != nil {
		return nil, ext, fault.New(nil, "%s.index", data).Because(err).Keeping("the index that was there, and Data.fs").
			Remedy("see to the directory (space, rights), then run it again; a server that finds no index scans Data.fs itself")
	}
	return x, ext, nil
}
