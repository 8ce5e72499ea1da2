package filestorage

import (
	"errors"
	"fmt"

	"zodbrepl/internal/fault"
)

// ErrNotFileStorage is matched by errors about a file that does not begin with a known magic.
var ErrNotFileStorage = errors.New("not a Data.fs of FileStorage")

// ErrBeforePart is matched by errors about a position before the part of a Data.fs that is there. See NewPart.
var ErrBeforePart = errors.New("before the part of the Data.fs that is here")

// CorruptError says where bytes break the format. It is of the kind fault.Unverified.
type CorruptError struct {
	File  string
	Pos   int64 // of the record that is wrong
	TID   TID   // of its transaction; 0 when that is not known
	Cause string
}

func (e *CorruptError) Error() string {
	if e.TID == 0 {
		return fmt.Sprintf("%s: corrupt at offset %d: %s", e.File, e.Pos, e.Cause)
	}
	return fmt.Sprintf("%s: corrupt at offset %d, transaction %s: %s", e.File, e.Pos, e.TID, e.Cause)
}

// Unwrap makes a CorruptError match fault.Unverified.
func (e *CorruptError) Unwrap() error { return fault.Unverified }

// ShrunkError says that the file became shorter than what had already been read of it, so what was read may
// belong to no committed state.
type ShrunkError struct {
	File string
	Pos  int64 // where reading had come to
	Size int64 // of the file now
}

func (e *ShrunkError) Error() string {
	return fmt.Sprintf("%s: shrank while being read: %d bytes now, %d were there before", e.File, e.Size, e.Pos)
}
