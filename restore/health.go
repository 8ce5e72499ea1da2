package restore

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
)

// Health is what a running watch tells of itself, to those who ask while it is at work: a load balancer, a service
// manager. Give it to one watch in its options; all of its methods may be called from other goroutines, and none waits
// for the watch.
//
// Its clock is this host's monotonic one. The master's clock, and what this host's is set to, play no part.
type Health struct {
	// MaxLag is the longest time since the standby was last seen to have all that its source has; 0 is DefaultMaxLag.
	MaxLag time.Duration
	// MaxAge is the longest time since an increment was applied; 0 for any. It is for databases that are never quiet
	// for so long: it shows that the master's backups have stopped, which looks like quiet otherwise.
	MaxAge time.Duration

	clock func() time.Time // in tests
	moves atomic.Uint64    // steps of progress

	mu       sync.Mutex
	phase    phase
	resting  bool
	state    State
	cond     Condition // after the last look; the zero value before
	newest   *incremental.Manifest
	listed   time.Time // when the source was listed last
	current  time.Time // when the listing was made that had nothing new; zero: never
	arrived  time.Time // when an increment was applied last, by this watch or before
	changed  chan struct{}
	followed chan struct{}
}

// DefaultMaxLag is how far a standby may be behind and be called healthy.
const DefaultMaxLag = 5 * time.Minute

type phase int

const (
	phaseStarting phase = iota
	phaseFollowing
	phaseStopping
)

// HealthReport is the verdict of a moment.
type HealthReport struct {
	Healthy bool   `json:"healthy"`
	Reason  string `json:"reason"` // ReasonCurrent, or why it is not healthy
	Message string `json:"message,omitempty"`
	Next    string `json:"next,omitempty"` // the remedy
	Role    Role   `json:"role"`

	// Lag is the time since the standby was last seen to have everything, in seconds; nil: not since watch began.
	Lag    *float64 `json:"lag_seconds"`
	MaxLag float64  `json:"max_lag_seconds"`
	// Age is the time since an increment was applied, in seconds; nil: none was ever.
	Age    *float64 `json:"age_seconds"`
	MaxAge float64  `json:"max_age_seconds,omitempty"`
	// Listed is the time since the source was listed with success, in seconds; nil: not since watch began.
	Listed *float64 `json:"listed_seconds"`

	Lineage   string            `json:"lineage,omitempty"`
	Epoch     int               `json:"epoch,omitempty"`
	Stamp     incremental.Stamp `json:"stamp,omitempty"`
	Position  int64             `json:"position"`
	LastTID   filestorage.TID   `json:"last_tid"`
	LastTime  time.Time         `json:"last_time"` // of the last transaction, by the master's clock
	Newest    incremental.Stamp `json:"newest,omitempty"`
	NewestTID filestorage.TID   `json:"newest_tid"`
	// Created is when the master made the newest increment, by its clock; zero: this watch has seen none arrive.
	Created   time.Time `json:"created"`
	Condition Condition `json:"condition"`
}

// The reasons of a HealthReport that are no conditions.
const (
	ReasonCurrent  = "current"
	ReasonStarting = "starting" // the guard has not let it follow yet
	ReasonBehind   = "behind"   // something is being applied, or the source does not answer
	ReasonQuiet    = "quiet"    // nothing new for longer than MaxAge
	ReasonStopping = "stopping"
)

// Report says how the watch stands now.
func (h *Health) Report() HealthReport {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	a := h.state.Applied
	r := HealthReport{Role: Standby, MaxLag: h.maxLag().Seconds(), MaxAge: h.MaxAge.Seconds(), Lag: since(now, h.current),
		Age: since(now, h.arrived), Listed: since(now, h.listed), Lineage: h.state.Lineage, Epoch: h.state.Epoch, Stamp: a.Stamp,
		Position: a.Position, LastTID: a.LastTID, Newest: a.Stamp, NewestTID: a.LastTID, Condition: h.cond}
	if a.LastTID != 0 {
		r.LastTime = a.LastTID.Time()
	}
	if m := h.newest; m != nil {
		r.Created = m.Created
		if m.Stamp > a.Stamp {
			r.Newest, r.NewestTID = m.Stamp, m.LastTID
		}
	}
	h.judge(&r, now)
	return r
}

func (h *Health) judge(r *HealthReport, now time.Time) {
	tooOld := h.current.IsZero() || now.Sub(h.current) > h.maxLag()
	bad := h.cond.Name != "" && h.cond.Name != conditionCurrent
	switch {
	case h.phase == phaseStarting:
		r.Reason, r.Message = ReasonStarting, "the watch has not begun to follow"
	case h.phase == phaseStopping:
		r.Reason, r.Message = ReasonStopping, "the watch is ending"
	case tooOld && bad:
		r.Reason, r.Message, r.Next = h.cond.Name, h.cond.Message, h.cond.Next
	case tooOld && r.Newest != r.Stamp:
		r.Reason, r.Message = ReasonBehind, fmt.Sprintf("increment %s is still to be applied", r.Newest)
	case tooOld:
		r.Reason, r.Message = ReasonBehind, "the source has not been read to its end yet"
	case h.MaxAge > 0 && (h.arrived.IsZero() || now.Sub(h.arrived) > h.MaxAge):
		r.Reason, r.Message = ReasonQuiet, fmt.Sprintf("nothing new has come for longer than %s", h.MaxAge)
		r.Next = "see whether backup and ship run on the master"
	default:
		r.Healthy, r.Reason = true, ReasonCurrent
	}
}

// Following is closed when the guard has let the watch follow: it has the lock, and Data.fs is what its state says.
func (h *Health) Following() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.followed == nil {
		h.followed = make(chan struct{})
	}
	return h.followed
}

// Changed has something to receive when a Report would tell something else than time that passed.
func (h *Health) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changed == nil {
		h.changed = make(chan struct{}, 1)
	}
	return h.changed
}

// Progress returns a number that grows as long as the watch gets on, and whether it rests between two looks. One that
// neither rests nor gets on hangs.
func (h *Health) Progress() (steps uint64, resting bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.moves.Load(), h.resting
}

func (h *Health) maxLag() time.Duration {
	if h.MaxLag == 0 {
		return DefaultMaxLag
	}
	return h.MaxLag
}

func (h *Health) now() time.Time {
	if h.clock != nil {
		return h.clock()
	}
	return time.Now()
}

func since(now, then time.Time) *float64 {
	if then.IsZero() {
		return nil
	}
	s := now.Sub(then).Seconds()
	return &s
}

// What follows is called by the watch. A nil Health hears nothing.

func (h *Health) tell(change func()) {
	if h == nil {
		return
	}
	h.moves.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	if h.changed != nil {
		select {
		case h.changed <- struct{}{}:
		default:
		}
	}
}

// begins: the guard has let the watch follow.
func (h *Health) begins(st State) {
	h.tell(func() {
		h.phase, h.state = phaseFollowing, st
		if !st.Applied.Time.IsZero() {
			// The file's time is this host's wall clock, now and then: all that is left of what an earlier run knew.
			h.arrived = h.now().Add(-max(0, time.Since(st.Applied.Time)))
		}
		if h.followed == nil {
			h.followed = make(chan struct{})
		}
		close(h.followed)
	})
}

func (h *Health) ends() { h.tell(func() { h.phase, h.resting = phaseStopping, false }) }

func (h *Health) rests(yes bool) { h.tell(func() { h.resting = yes }) }

// saw: the source was listed at the time begun, and this is the newest increment that it offers, nil for none that is new.
func (h *Health) saw(begun time.Time, newest *incremental.Manifest) {
	h.tell(func() {
		h.listed = begun
		if newest != nil {
			h.newest = newest
		}
	})
}

// applied: the state was reached.
func (h *Health) applied(st State) { h.tell(func() { h.state, h.arrived = st, h.now() }) }

// looked: a look at the source is over.
func (h *Health) looked(st State, err error) {
	h.tell(func() {
		h.state, h.cond = st, conditionOf(err)
		if err == nil {
			h.current = h.listed
		}
	})
}

// clocked is the time of h, for saw.
func (h *Health) clocked() (t time.Time) {
	if h != nil {
		t = h.now()
	}
	return t
}

// source makes everything that is read from src a step of progress.
func (h *Health) source(src incremental.Source) incremental.Source {
	if h == nil || src == nil {
		return src
	}
	return movingSource{src, h}
}

type movingSource struct {
	incremental.Source
	h *Health
}

func (s movingSource) List(ctx context.Context) ([]fs.DirEntry, error) {
	entries, err := s.Source.List(ctx)
	s.h.moves.Add(1)
	return entries, err
}

func (s movingSource) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	f, err := s.Source.Open(ctx, name)
	s.h.moves.Add(1)
	if err != nil {
		return nil, err
	}
	return movingReader{f, s.h}, nil
}

type movingReader struct {
	io.ReadCloser
	h *Health
}

func (r movingReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.h.moves.Add(1)
	return n, err
}

// file makes everything that is read from a Data.fs a step of progress: to compare or index a large one takes long.
func (h *Health) file(r filestorage.Reader) filestorage.Reader {
	if h == nil {
		return r
	}
	return movingFile{r, h}
}

type movingFile struct {
	filestorage.Reader
	h *Health
}

func (f movingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.Reader.ReadAt(p, off)
	f.h.moves.Add(1)
	return n, err
}
