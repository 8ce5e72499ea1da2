package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// StatusOptions says what to look at. Data is required; Source is what the standby follows, nil for none.
type StatusOptions struct {
	Data   string
	Source incremental.Source
}

// Status is how a node stands. It is read, not locked: a watch may be moving on meanwhile.
type Status struct {
	Data         string            `json:"data"`
	Role         string            `json:"role"` // "standby", "promoted", or "none" without a state file
	Lineage      string            `json:"lineage,omitempty"`
	Epoch        int               `json:"epoch,omitempty"`
	Chain        incremental.Stamp `json:"chain,omitempty"`
	Stamp        incremental.Stamp `json:"stamp,omitempty"`
	Position     int64             `json:"position"`
	LastTID      filestorage.TID   `json:"last_tid"`
	LastTime     time.Time         `json:"last_time"`
	Applied      time.Time         `json:"applied"`
	Size         int64             `json:"size"` // of Data.fs now
	Condition    Condition         `json:"condition"`
	LockedBy     int               `json:"locked_by"` // pid that holds the lock of Data.fs; 0: nobody
	Pending      int               `json:"pending"`   // increments in the source that can be applied
	PendingBytes int64             `json:"pending_bytes"`
	NewestTID    filestorage.TID   `json:"newest_tid"` // in the source; 0 when it was not looked at
	Promotion    *Promotion        `json:"promotion,omitempty"`
	Others       []Other           `json:"others,omitempty"` // masters that the source tells of
}

// ReadStatus looks at a node and, when it is given, at the source that it follows. It changes nothing.
func ReadStatus(ctx context.Context, o StatusOptions) (Status, error) {
	s := Status{Data: o.Data, Role: "none"}
	st, ok, err := ReadState(o.Data)
	if err != nil {
		return s, err
	}
	f, closer, err := filestorage.Open(o.Data)
	if err == nil {
		defer closer.Close()
		if s.Size, err = f.Size(); err != nil {
			return s, err
		}
	} else if !ok {
		return s, fault.New(nil, "neither a Data.fs nor a state file").Because(err).Remedy("check the path given with --data")
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, filestorage.ErrNotFileStorage) {
		return s, err
	}
	unreadable := err
	if s.LockedBy, _, err = filestorage.LockHolder(o.Data); err != nil {
		return s, err
	}
	if !ok {
		s.Condition = Condition{Name: "none", Message: "no state file: a master, or not a node of zodbrepl"}
		if o.Source != nil {
			s.others(ctx, o.Source, st)
		}
		return s, nil
	}
	s.Role, s.Lineage, s.Epoch, s.Condition, s.Promotion = string(st.Role), st.Lineage, st.Epoch, st.Condition, st.Promotion
	s.Chain, s.Stamp, s.Position = st.Applied.Chain, st.Applied.Stamp, st.Applied.Position
	s.LastTID, s.Applied = st.Applied.LastTID, st.Applied.Time
	if s.LastTID != 0 {
		s.LastTime = s.LastTID.Time()
	}
	if st.Role == Promoted {
		if o.Source != nil {
			s.others(ctx, o.Source, st)
		}
		return s, nil
	}
	if err := st.Rejoin.unfinished(o.Data); err != nil { // Data.fs need not be what the state says
		s.Condition = Condition{Name: conditionPending, Message: err.Error(), Next: fault.Next(err), Since: st.Rejoin.Time}
		return s, nil
	}
	if err := s.compare(f, unreadable, st); err != nil {
		return s, err
	}
	if o.Source != nil && s.Condition.Name != conditionDiverged {
		s.look(ctx, o.Source, st)
	}
	return s, nil
}

// compare says whether Data.fs, which could not be read if there is an error, is what the state says.
func (s *Status) compare(f *filestorage.File, unreadable error, st State) error {
	why := ""
	switch {
	case st.Applied.Position == 0 || st.Next != nil:
		return nil // nothing applied yet, or in the middle of it
	case unreadable != nil:
		why = unreadable.Error()
	case s.Size != st.Applied.Position:
		why = fmt.Sprintf("it has %d bytes, not %d", s.Size, st.Applied.Position)
	default:
		holds, err := st.Applied.holds(f)
		if err != nil {
			return err
		}
		if !holds {
			why = fmt.Sprintf("its bytes before position %d are not those that were applied", st.Applied.Position)
		}
	}
	if why == "" {
		return nil
	}
	if again, _, err := ReadState(s.Data); err == nil && (again.Next != nil || again.Applied != st.Applied) {
		return nil // a watch went on between the two looks
	}
	s.set(conditionOf((&standby{data: s.Data, state: st}).diverged(why)))
	return nil
}

// set replaces the recorded condition; since when it is so is known only when it is the recorded one.
func (s *Status) set(c Condition) {
	if c.Name == s.Condition.Name {
		c.Since = s.Condition.Since
	}
	s.Condition = c
}

// look compares the state with the source.
func (s *Status) look(ctx context.Context, src incremental.Source, st State) {
	repo, err := incremental.Open(ctx, src)
	if err != nil {
		s.set(conditionOf(unreadable(err)))
		return
	}
	p, err := planFor(ctx, repo, st)
	for _, m := range p.steps {
		s.Pending++
		s.PendingBytes += m.End - m.Start
	}
	s.NewestTID = st.Applied.LastTID
	if p.head != nil {
		s.NewestTID = p.head.LastTID
	}
	err = errors.Join(err, p.blocked, p.stale)
	switch recorded := s.Condition.Name; {
	case err != nil:
		s.set(conditionOf(err))
	case s.Pending > 0 && (recorded == conditionCurrent || recorded == ""):
		s.Condition = Condition{Name: conditionBehind, Message: fmt.Sprintf("%d increments are to be applied", s.Pending), Since: s.Condition.Since}
	}
}
