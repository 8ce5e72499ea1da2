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
	file  *File
	index *Index
	first error // fault that did not end the reading
}

func (c *fsck) run(ctx context.Context, progress func(pos, size int64)) (err error) {
	c.File, c.End = c.file.name, MagicSize
	if c.Size, err = c.file.Size(); err != nil {
		return err
	}
	var magic [MagicSize]byte
	if err := c.file.readFull(magic[:], 0); err != nil {
		return err
	}
	c.Magic = string(magic[:])
	told := int64(0)
	for t, err := range c.file.Transactions(MagicSize) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = c.transaction(t)
		}
		if err != nil {
			return err
		}
		if progress != nil && c.End-told > 1<<20 {
			told = c.End
			progress(c.End, max(c.Size, c.End))
		}
	}
	// What was committed since the iteration ended is left for the next check.
	e, err := c.file.Committed(ctx, c.End)
	if err != nil {
		return err
	}
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

func (c *fsck) transaction(t Transaction) error {
	if c.Transactions == 0 {
		c.FirstTID = t.TID
	} else if t.TID <= c.LastTID {
		c.Reversed++
		c.fault("nothing is lost, but this file cannot be packed: a clock went back. Copy it to a new file with ZODB's copyTransactionsFrom",
			t.Pos, t.TID, "the tid is not greater than that of the transaction before, %s", c.LastTID)
	}
	if t.Status == StatusPacked {
		c.Packed++
	}
	type entry struct {
		oid OID
		pos int64
	}
	var entries []entry
	for rec, err := range t.Records() {
		if err != nil {
			return err
		}
		c.Records++
		if err := c.record(t, rec); err != nil {
			return err
		}
		entries = append(entries, entry{rec.OID, rec.Pos})
	}
	if t.Status != StatusUndone { // whose records do not count
		for _, e := range entries {
			c.index.Set(e.oid, e.pos)
		}
	}
	c.LastTID, c.End = t.TID, t.End()
	c.Transactions++
	return nil
}

func (c *fsck) record(t Transaction, rec Record) error {
	prev, _ := c.index.Get(rec.OID)
	if uint64(prev) != rec.Prev && t.Status != StatusUndone && !(t.Status == StatusPacked && rec.Prev == 0) {
		c.PrevMismatches++
	}
	switch {
	case rec.DataLen != 0:
		return nil
	case rec.Back == 0:
		c.Deletions++
		return nil
	}
	c.BackPointers++
	target, err := c.file.RecordAt(int64(rec.Back))
	switch {
	case isCorrupt(err):
		c.fault("", rec.Pos, t.TID, "oid %s: the back pointer leads to %d, where no data record is", rec.OID, rec.Back)
	case err != nil:
		return err
	case target.OID != rec.OID:
		c.fault("", rec.Pos, t.TID, "oid %s: the back pointer leads to %d, a record of oid %s", rec.OID, rec.Back, target.OID)
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
	if ext, err = f.Committed(ctx, MagicSize); err != nil {
		return nil, ext, err
	}
	var tell func(int64)
	if progress != nil {
		tell = func(pos int64) { progress(pos, ext.End) }
	}
	x = &Index{}
	if _, err := f.ExtendIndex(ctx, x, MagicSize, ext.End, tell); err != nil {
		return nil, ext, err
	}
	if err := SaveIndex(data+".index", x, ext.End); err != nil {
		return nil, ext, fault.New(nil, "%s.index", data).Because(err).Keeping("the index that was there, and Data.fs").
			Remedy("see to the directory (space, rights), then run it again; a server that finds no index scans Data.fs itself")
	}
	return x, ext, nil
}
