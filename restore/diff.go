package restore

import (
	"context"

	"zodbrepl/filestorage"
)

// DiffOptions says what to compare, and who is told of it while it is found. All of it is required but the callbacks.
type DiffOptions struct {
	A, B *Side
	// Transaction is told of every transaction that only one side has, in the order of their tids.
	Transaction func(OnlyTransaction) error
	// Object is told afterwards of every object whose current revision is another one, in the order of the oids.
	Object func(ChangedObject) error
}

// OnlyTransaction is a transaction that the other side does not have.
type OnlyTransaction struct {
	Side string `json:"side"` // "a" or "b"
	// Unsure: the other side was packed later, or may have been, which may have removed it there.
	Unsure bool `json:"unsure,omitempty"`
	Change
}

// ChangedObject is an object whose current revisions differ.
type ChangedObject struct {
	OID  filestorage.OID `json:"oid"`
	Side string          `json:"side"` // which has changed it since the common position: "a", "b" or "both"
	// A and B are the transactions that wrote the current revisions; 0 for none since the common position.
	A        filestorage.TID `json:"a"`
	B        filestorage.TID `json:"b"`
	DeletedA bool            `json:"deleted_a,omitempty"` // the current revision says that the object is no more
	DeletedB bool            `json:"deleted_b,omitempty"`
	// Unsure: a pack may have removed the revision from the other side, or the object.
	Unsure bool `json:"unsure,omitempty"`
}

// SideResult is what there is of one side.
type SideResult struct {
	Name         string `json:"name"`
	Kind         string `json:"kind"`              // "data.fs", "diverged" or "repository"
	Lineage      string `json:"lineage,omitempty"` // where it is known
	Epoch        int    `json:"epoch,omitempty"`
	Last         Mark   `json:"last"`         // its end
	InFlight     int64  `json:"in_flight"`    // bytes behind that
	Transactions int64  `json:"transactions"` // that only it has, Unsure among them
	Unsure       int64  `json:"unsure"`       // of them, those of which no object shows that the other side never had them
	Objects      int64  `json:"objects"`      // that only it has changed, or only it has
	// PackedTo is the last transaction behind the common position that a pack has touched; 0 for none.
	PackedTo filestorage.TID `json:"packed_to"`
}

// DiffResult is the comparison.
type DiffResult struct {
	Same bool `json:"same"` // both have the same transactions with the same records
	// Common is the last commit boundary up to which both have the same bytes; its position is 0 when a pack has left
	// none. LastCommon is the last transaction of both.
	Common     Mark            `json:"common"`
	LastCommon filestorage.TID `json:"last_common"`
	A          SideResult      `json:"a"`
	B          SideResult      `json:"b"`
	Both       int64           `json:"both"` // objects that both have changed
	// Altered counts transactions of the same tid with other records, which no pack explains.
	Altered int64 `json:"altered"`
	// Packed counts common transactions that a pack has changed on one side.
	Packed int64 `json:"packed"`
}

// Diff compares two histories of one database: where they have parted, and what each has done since. Headers are read;
// data is only where the positions are the same still, although the proofs are not. Memory grows with the number of objects that were changed since the common position, 16 bytes for each
// (twice that when a side was packed).
//
// Tails in flight count for nothing. After a pack positions say nothing: transactions are compared by their tids, objects
// by the transactions of their current revisions.
func Diff(ctx context.Context, o DiffOptions) (DiffResult, error) {
	if o.Transaction == nil {
		o.Transaction = func(OnlyTransaction) error { return nil }
	}
	if o.Object == nil {
		o.Object = func(ChangedObject) error { return nil }
	}
	res := DiffResult{A: o.A.result(), B: o.B.result()}
	common, err := commonMark(ctx, o.A, o.B)
	if err != nil {
		return res, err
	}
	res.Common, res.LastCommon = markAt(common.Position, common.LastTID), common.LastTID
	m := newDiffMerge(o, &res)
	defer m.stop()
	if err := m.run(ctx, common); err != nil {
		return res, err
	}
	if err := m.objects(); err != nil {
		return res, err
	}
	res.Same = res.A.Transactions+res.B.Transactions+res.Altered+res.Packed == 0
	return res, nil
}

// commonMark finds the last boundary that one side has a proof of and the other holds; the zero Applied when there is
// none.
func commonMark(ctx context.Context, a, b *Side) (Applied, error) {
	from, in := a, b
	if b.repo != nil || a.file != nil && b.file != nil && b.first().Position > a.first().Position {
		from, in = b, a // a repository has few marks, and a part begins late
	}
	for mark, err := range from.marks(in.ext.End) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return Applied{}, err
		}
		if mark.Position < in.first().Position {
			break
		}
		holds, err := in.holds(mark, from)
		if err != nil || holds {
			return mark, err
		}
	}
	return Applied{}, nil
}
