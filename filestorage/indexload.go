package filestorage

import (
	"context"
	"errors"
	"fmt"

	"zodbrepl/internal/fault"
)

// ErrStaleIndex is matched by errors about an index that can be read, but is not one of the Data.fs beside it:
// the file was replaced, packed or cut since. It can be remade: ExtendIndex from MagicSize.
var ErrStaleIndex = errors.New("the index is not one of this Data.fs")

const (
	saneRecords = 1000 // at the end of the file that LoadIndex checks, at least, if there are so many
	saneSamples = 64   // all over the index that LoadIndex checks
)

// LoadIndex reads the index file at path and checks that it belongs to f: a committed transaction ends at its
// position; every record in the last transactions before is indexed, there or at a later record of the same object;
// samples from all over the index are records of their objects; nothing is indexed beyond the position.
// That is more than FileStorage's own check, which looks at five records; like it, LoadIndex refuses an
// index of nothing.
//
// The index may be older than f: go on with ExtendIndex from the position that it returns. It fails with ErrStaleIndex
// when the index does not belong to f, with ErrBadIndex when it cannot be read, with fs.ErrNotExist when there is none.
func (f *File) LoadIndex(path string) (*Index, int64, error) {
	file, err := OpenRegular(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	x, pos, err := ReadIndex(file, path)
	if err != nil {
		return nil, 0, err
	}
	why, err := f.disagrees(x, pos)
	if err != nil {
		return nil, 0, fmt.Errorf("checking the index %s: %w", path, err)
	}
	if why != "" {
		return nil, 0, fault.New(nil, "%s: does not fit %s: %s", path, f.name, why).Because(ErrStaleIndex).
			Keeping("the index and its Data.fs").
			Remedy("an index can be remade from its Data.fs: remove %s, and the next start scans the file instead", path)
	}
	return x, pos, nil
}

// disagrees returns why x, saved at pos, is not an index of f, or "" when nothing was found.
func (f *File) disagrees(x *Index, pos int64) (why string, err error) {
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	if pos > size {
		return fmt.Sprintf("it was saved at position %d, the file has %d bytes", pos, size), nil
	}
	checked := 0
	for end := pos; end > MagicSize && checked < saneRecords; {
		t, ok, err := f.LastBefore(end)
		if err != nil {
			return "", err
		}
		if !ok {
			return fmt.Sprintf("no committed transaction ends at %d", end), nil
		}
		end = t.Pos
		if t.Status == StatusUndone { // its records are not indexed
			continue
		}
		for rec, err := range t.Records() {
			if isCorrupt(err) {
				return err.Error(), nil
			}
			if err != nil {
				return "", err
			}
			at, ok := x.Get(rec.OID)
			if !ok || at < rec.Pos {
				return fmt.Sprintf("the record of oid %s at %d is not in it", rec.OID, rec.Pos), nil
			}
			if at > rec.Pos { // an older record, or undone twice in one transaction
				if why, err := f.sample(rec.OID, at); why != "" || err != nil {
					return why, err
				}
			}
			checked++
		}
	}
	if checked == 0 {
		return "there is no record to check it by", nil
	}
	step, i := max(1, x.Len()/saneSamples), 0
	for oid, at := range x.All() {
		if i++; i%step != 0 {
			continue
		}
		if why, err := f.sample(oid, at); why != "" || err != nil {
			return why, err
		}
	}
	return "", nil
}

// sample returns why there is no record of oid at the position at, or "".
func (f *File) sample(oid OID, at int64) (why string, err error) {
	rec, err := f.RecordAt(at)
	switch {
	case isCorrupt(err):
		return fmt.Sprintf("oid %s is at %d in it, where the file has no record", oid, at), nil
	case err != nil:
		return "", err
	case rec.OID != oid:
		return fmt.Sprintf("oid %s is at %d in it, where the file has oid %s", oid, at, rec.OID), nil
	}
	return "", nil
}

func isCorrupt(err error) bool {
	var c *CorruptError
	return errors.As(err, &c)
}

// ExtendIndex reads f from the commit boundary from to the commit boundary to and brings x, an index of f at from,
// to where one at to is. As in FileStorage the records of a transaction count when it has been read whole, so that
// after an error x is an index of f at some boundary between from and to; which one, progress has told: it is called
// about every MiB, and at the end, with the position that x has come to. progress may be nil.
//
// A deleted object stays in the index, as in FileStorage. prevMismatches counts the records whose previous record
// is not where the index says: FileStorage only logs them, yet undo and pack may fail on them. A record in a packed
// transaction that has none is not counted: packs drop those pointers.
//
// It fails with a *CorruptError, with a *ShrunkError when f ends before to, and with the error of ctx.
func (f *File) ExtendIndex(ctx context.Context, x *Index, from, to int64, progress func(pos int64)) (prevMismatches int64, err error) {
	p := pending{index: x}
	c := NewChecker(f.name, from)
	c.NoHeads = true
	c.OnTransaction = func(pos int64, h TxnHeader) error {
		p.begin(pos, h)
		return nil
	}
	c.OnRecord = func(r Record, _ []byte) error {
		p.add(r)
		return nil
	}
	c.OnEnd = func(int64) error {
		p.settle()
		return nil
	}
	for b, err := range f.blocks(ctx, from, to) {
		if err != nil {
			return p.mismatches, err
		}
		_, err := c.Write(b)
		if progress != nil {
			progress(c.Extent().End)
		}
		if err != nil {
			return p.mismatches, err
		}
	}
	return p.mismatches, c.Close()
}
