package restore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// Role is what a host is for one Data.fs.
type Role string

// The roles that a state file records. A master that never was a standby has no state file.
const (
	Standby  Role = "standby"
	Promoted Role = "promoted"
)

const (
	stateExt    = ".zodbrepl"         // Data.fs.zodbrepl: the state
	stageExt    = ".zodbrepl-full"    // Data.fs.zodbrepl-full: a full that is being built
	promoteExt  = ".zodbrepl-promote" // flock'ed by a promotion, so that a running watch steps aside
	stateFormat = 1
)

// State is what a standby knows of itself: the JSON file Data.fs.zodbrepl. It is replaced atomically, and only
// after what it claims is durable.
type State struct {
	Format  int    `json:"format"`
	Lineage string `json:"lineage"`
	Epoch   int    `json:"epoch"`
	Role    Role   `json:"role"`
	// Promotions led to what is applied here; the last may be this node's own.
	Promotions incremental.Branch `json:"promotions,omitempty"`
	Source     string             `json:"source"` // the repository that was followed last
	Applied    Applied            `json:"applied"`
	// Next is what is being applied: a run that died may have done a part of it.
	Next *Applied `json:"next,omitempty"`
	// Offer is the promotions of a handover that this node may have taken: a run that died, or a broken line, hides it.
	Offer incremental.Branch `json:"offer,omitempty"`
	// Condition is how following stands; Since when.
	Condition Condition  `json:"condition"`
	Promotion *Promotion `json:"promotion,omitempty"`
	Rejoin    *Rejoined  `json:"rejoin,omitempty"`
}

// Applied is a place in a chain: Data.fs holds the chain up to Position.
type Applied struct {
	Chain    incremental.Stamp `json:"chain"`
	Stamp    incremental.Stamp `json:"stamp"` // of the increment that ends there
	Position int64             `json:"position"`
	LastTID  filestorage.TID   `json:"last_tid"`
	Tail     incremental.Proof `json:"tail"`
	Time     time.Time         `json:"time"` // when it was applied
	// Whole: Data.fs as a whole is replaced, by a full; otherwise it is appended to.
	Whole bool `json:"whole,omitempty"`
}

// Condition names how following the source stands. Name is "current" when there is nothing left to apply.
type Condition struct {
	Name    string    `json:"name"`
	Message string    `json:"message,omitempty"`
	Next    string    `json:"next,omitempty"` // the remedy
	Since   time.Time `json:"since"`
}

// Promotion is what promote recorded.
type Promotion struct {
	Time    time.Time       `json:"time"`
	Host    string          `json:"host"`
	LastTID filestorage.TID `json:"last_tid"`
	Missing []Missing       `json:"missing"` // what is known not to have been applied
	// Unapplied counts the increments among Missing.
	Unapplied int `json:"unapplied,omitempty"`
	// Newest is the last increment that the master is known to have made; nil when its repository could not be looked at.
	Newest *Newest `json:"newest,omitempty"`
	// Handover says that the master handed over: nothing is missing.
	Handover bool `json:"handover,omitempty"`
}

// Missing is an increment that could not be applied, or a source that could not be read, and why.
type Missing struct {
	Increment string          `json:"increment,omitempty"`
	LastTID   filestorage.TID `json:"last_tid"` // 0 when not known
	// Transactions is how many it holds, by its manifest; TIDs those that could be read of it.
	Transactions int64             `json:"transactions,omitempty"`
	TIDs         []filestorage.TID `json:"tids,omitempty"`
	Why          string            `json:"why"`
}

// Newest is the last increment that was known of a master when another node was promoted in its place.
type Newest struct {
	Increment string          `json:"increment"`
	LastTID   filestorage.TID `json:"last_tid"`
	Created   time.Time       `json:"created"`
	Age       float64         `json:"age"` // seconds before the promotion, by the two hosts' clocks
}

func statePath(data string) string { return data + stateExt }

// ReadState returns the state beside the Data.fs at the path data. ok is false when there is none.
func ReadState(data string) (s State, ok bool, err error) {
	b, err := os.ReadFile(statePath(data))
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	if err = json.Unmarshal(b, &s); err == nil {
		err = s.validate()
	}
	if err != nil {
		return State{}, false, fault.New(nil, "state file %s", statePath(data)).Because(err).
			Keeping("Data.fs was not touched").
			Remedy("if this host is to be a standby, move the state file away and start watch: it adopts a Data.fs that is a verified prefix of the chain")
	}
	return s, true, nil
}

func (s State) validate() error {
	switch {
	case s.Format != stateFormat:
		return fmt.Errorf("format %d, this program knows %d", s.Format, stateFormat)
	case s.Role != Standby && s.Role != Promoted:
		return fmt.Errorf("unknown role %q", s.Role)
	case s.Lineage == "" && s.Epoch == 0 && s.Role == Standby && s.Applied == (Applied{}) && s.Next == nil:
		return nil // it has found nothing to begin with so far
	case s.Lineage == "" || s.Epoch < 1:
		return fmt.Errorf("no lineage and epoch")
	case s.Role == Promoted && (s.Applied.Position == 0 || s.Next != nil):
		return fmt.Errorf("promoted at position %d, in the middle of an increment or before the first", s.Applied.Position)
	case s.Applied.Position == 0 && s.Next != nil && !s.Next.Whole:
		return fmt.Errorf("an increment continues nothing")
	}
	if err := s.Promotions.Validate(s.Epoch); err != nil {
		return err
	}
	if err := s.Applied.validate(); err != nil {
		return err
	}
	if s.Next != nil {
		if err := s.Next.validate(); err != nil {
			return fmt.Errorf("next: %w", err)
		}
		if !s.Next.Whole && s.Next.Position < s.Applied.Position {
			return fmt.Errorf("next: position %d, before %d", s.Next.Position, s.Applied.Position)
		}
	}
	return nil
}

func (a Applied) validate() error {
	if a.Position == 0 {
		return nil
	}
	if a.Position < filestorage.MagicSize {
		return fmt.Errorf("position %d", a.Position)
	}
	if a.Tail.Size > a.Position || a.Tail.Size > incremental.TailSize || a.Tail.Size < filestorage.MagicSize {
		return fmt.Errorf("position %d with a tail proof of %d bytes", a.Position, a.Tail.Size)
	}
	return nil
}

// write replaces the state file, durably.
func (s State) write(data string) error {
	s.Format = stateFormat
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(statePath(data), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	return nil
}

// holds says whether the file is, up to its position, what a says: it is long enough, the last transaction ends
// there, and so do the bytes of the tail proof.
func (a Applied) holds(f *filestorage.File) (bool, error) {
	size, err := f.Size()
	if err != nil || size < a.Position {
		return false, err
	}
	if a.LastTID != 0 {
		t, ok, err := f.LastBefore(a.Position)
		if err != nil || !ok || t.TID != a.LastTID {
			return false, err
		}
	}
	return a.Tail.Holds(f, a.Position)
}

// MasterOf returns the lineage, the epoch and the promotions that a backup of the Data.fs at the path data is made in:
// those of a promoted node, none for a master that never was a standby. It refuses for a standby.
func MasterOf(data string) (lineage string, epoch int, promotions incremental.Branch, err error) {
	s, ok, err := ReadState(data)
	switch {
	case err != nil || !ok:
		return "", 0, nil, err
	case s.Role == Promoted:
		return s.Lineage, s.Epoch, s.Promotions, nil
	}
	return "", 0, nil, fault.New(fault.Refused, "%s is a standby (%s): only a master is backed up", data, statePath(data)).
		Keeping("nothing was written").
		Remedy("back up the master; or, if it is lost, make this host the master: zodbrepl promote --data %s", data)
}

// Backup is incremental.Backup for this host: in the lineage and epoch of a promoted node, refused on a standby.
func Backup(ctx context.Context, o incremental.BackupOptions) (incremental.BackupResult, error) {
	var err error
	if o.Lineage, o.Epoch, o.Promotions, err = MasterOf(o.Data); err != nil {
		return incremental.BackupResult{}, err
	}
	return incremental.Backup(ctx, o)
}
