package incremental

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"zodbrepl/filestorage"
)

// Promotion is an event in a lineage's history: a standby that had applied the increment Stamp became the master. Epochs
// count them, but two standbys that cannot see each other may both be promoted to the same epoch. The ID tells these
// apart.
type Promotion struct {
	Epoch    int             `json:"epoch"`
	ID       string          `json:"id"`
	Host     string          `json:"host"` // that became the master
	Time     time.Time       `json:"time"`
	Stamp    Stamp           `json:"stamp"` // of the last increment that it had applied
	Position int64           `json:"position"`
	LastTID  filestorage.TID `json:"last_tid"`
}

// NewPromotionID returns a fresh identity for a promotion.
func NewPromotionID() string { return uuid.NewString() }

// Branch is the promotions that led to an increment or a node, oldest first. Who has the same last promotion has the same
// history before it. It is empty before the first promotion, and when only an epoch is known.
type Branch []Promotion

// maxBranch bounds a branch. A standby that is as many promotions behind is built anew.
const maxBranch = 32

// Last returns the newest promotion, the zero Promotion when there is none.
func (b Branch) Last() Promotion {
	if len(b) == 0 {
		return Promotion{}
	}
	return b[len(b)-1]
}

// Has says whether p is one of the promotions.
func (b Branch) Has(p Promotion) bool {
	return slices.ContainsFunc(b, func(q Promotion) bool { return q.Epoch == p.Epoch && q.ID == p.ID })
}

// With returns b with a further promotion.
func (b Branch) With(p Promotion) Branch {
	out := append(slices.Clone(b), p)
	return out[max(0, len(out)-maxBranch):]
}

// ContinuedBy says whether what is of the branch later may follow what is of b: the last promotion of b led to it too.
func (b Branch) ContinuedBy(later Branch) bool { return len(b) == 0 || later.Has(b.Last()) }

// End returns the promotion that ended the epoch in this branch: increments of that epoch with a greater stamp than the
// promotion's are no part of the history. ok is false when it is not known.
func (b Branch) End(epoch int) (p Promotion, ok bool) {
	for _, p := range b {
		if p.Epoch > epoch {
			return p, true
		}
	}
	return p, false
}

// Fork compares two branches that may have parted: first and second are the first promotions that only one of them has,
// zero when it has none of its own. Up to the earlier of the two, both have the same history.
func Fork(a, b Branch) (first, second Promotion) {
	only := func(x, y Branch) Promotion {
		for _, p := range x {
			if !y.Has(p) {
				return p
			}
		}
		return Promotion{}
	}
	return only(a, b), only(b, a)
}

// Validate checks that the promotions are in order and that the last is that of the epoch.
func (b Branch) Validate(epoch int) error {
	if len(b) == 0 {
		return nil
	}
	for i, p := range b {
		if _, err := ParseStamp(string(p.Stamp)); err != nil || p.ID == "" || p.Epoch < 2 || i > 0 && p.Epoch <= b[i-1].Epoch {
			return fmt.Errorf("promotion %q to epoch %d after increment %q", p.ID, p.Epoch, p.Stamp)
		}
	}
	if last := b.Last().Epoch; last != epoch || len(b) > maxBranch {
		return fmt.Errorf("epoch %d, but %d promotions up to epoch %d", epoch, len(b), last)
	}
	return nil
}
