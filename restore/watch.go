package restore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// WatchOptions says what to follow. Source and Data are required.
type WatchOptions struct {
	Source incremental.Source
	Data   string // path of the standby's Data.fs
	// Once applies what there is and returns.
	Once bool
	// Interval is the time between two looks at the source; 0 is DefaultInterval. A hint from the file system makes
	// the next look come at once.
	Interval time.Duration
	// Hint is a local directory whose changes make the next look come at once; "" for none.
	Hint string
	// RefuseIfAddress lists IP addresses that only a master may have.
	RefuseIfAddress []string
	// Tell sends the answer back to where the increments come from. Optional.
	Tell func(context.Context, incremental.Answer) error
	Log  *slog.Logger // nil: discarded
	Now  func() time.Time

	crash func(point string)
}

// DefaultInterval is the time between two looks at the source.
const DefaultInterval = 10 * time.Second

// rolePoll is how often a watch looks whether a promotion wants its place.
const rolePoll = 200 * time.Millisecond

// WatchResult says where a watch ended.
type WatchResult struct {
	Increments int   `json:"increments"` // applied by this run
	State      State `json:"state"`
}

// Watch follows the source with the Data.fs until ctx is done, which is no error, or once. It holds ZODB's lock on
// the Data.fs meanwhile.
//
// It returns an error of the kind Refused or Diverged as soon as it must not follow any more. A gap, an increment that
// is not good, a source that cannot be read end it only with Once; otherwise they become the condition in the state
// file and a line in the log, and it goes on looking.
func Watch(ctx context.Context, o WatchOptions) (WatchResult, error) {
	w := &watcher{WatchOptions: o}
	if w.Log == nil {
		w.Log = slog.New(slog.DiscardHandler)
	}
	if w.Now == nil {
		w.Now = time.Now
	}
	if w.Interval == 0 {
		w.Interval = DefaultInterval
	}
	if err := refuseAddresses(o.RefuseIfAddress); err != nil {
		return WatchResult{}, err
	}
	if promotionUnderWay(o.Data) {
		return WatchResult{}, steppedAside(o.Data)
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go w.stepAside(inner, cancel)
	w.standby = &standby{data: o.Data, log: w.Log, now: w.Now, crash: o.crash}
	err := openStandby(inner, w.standby, func() (*incremental.Repository, error) { return incremental.Open(inner, o.Source) })
	if err == nil {
		err = w.run(inner)
		err = errors.Join(err, w.stop())
	}
	if cause := context.Cause(inner); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // a promotion; what it interrupted is not of interest
	} else if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return WatchResult{Increments: w.applied, State: w.standby.state}, err
}

type watcher struct {
	WatchOptions
	standby *standby
	applied int
	told    incremental.Answer
}

// stepAside cancels the watch when a promotion waits for it.
func (w *watcher) stepAside(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rolePoll):
			if promotionUnderWay(w.Data) {
				cancel(steppedAside(w.Data))
				return
			}
		}
	}
}

func (w *watcher) run(ctx context.Context) error {
	hints, stop := w.hints()
	defer stop()
	if !w.Once {
		// A promotion should not have to build it.
		if err := w.standby.needIndex(ctx); err != nil {
			return err
		}
	}
	for {
		if err := refuseAddresses(w.RefuseIfAddress); err != nil {
			return errors.Join(err, w.note(ctx, err))
		}
		n, err := w.standby.catchUp(ctx, w.Source)
		w.applied += n
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if nerr := w.note(ctx, err); nerr != nil {
			return errors.Join(err, nerr)
		}
		if w.Once || errors.Is(err, fault.Refused) || errors.Is(err, fault.Diverged) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hints:
		case <-time.After(w.Interval):
		}
	}
}

// hints tells of changes in the directory. Events may be lost, and there are none from other hosts.
func (w *watcher) hints() (<-chan fsnotify.Event, func()) {
	if w.Hint == "" || w.Once {
		return nil, func() {}
	}
	n, err := fsnotify.NewWatcher()
	if err == nil {
		err = n.Add(w.Hint)
	}
	if err != nil {
		w.Log.Debug("no hints from the file system; looking at every interval", "source", w.Hint, "cause", err)
		return nil, func() {}
	}
	hints := make(chan fsnotify.Event, 1)
	go func() {
		for e := range n.Events {
			if _, ok := incremental.StampOfManifest(filepath.Base(e.Name)); !ok || !e.Has(fsnotify.Create) {
				continue
			}
			select {
			case hints <- e:
			default:
			}
		}
	}()
	go func() {
		for range n.Errors { // an overflow: the next scan finds what was lost
		}
	}()
	return hints, func() { n.Close() }
}

// note makes err, or its absence, the condition in the state file, the log and the answer, when it is new.
func (w *watcher) note(ctx context.Context, err error) error {
	s := w.standby
	c := conditionOf(err)
	changed := c.Name != s.state.Condition.Name || c.Message != s.state.Condition.Message
	if changed && s.state.Lineage != "" {
		c.Since = w.Now().UTC()
		st := s.state
		st.Condition, st.Source = c, w.Source.String()
		if err := st.write(s.data); err != nil {
			return err
		}
		s.state = st
	} else {
		s.state.Condition.Name, s.state.Condition.Message = c.Name, c.Message
	}
	if changed && err != nil {
		w.Log.Error("not following", "storage", w.Data, "condition", c.Name, "cause", c.Message, "next", c.Next)
	} else if changed {
		w.Log.Info("current", "storage", w.Data, "position", s.state.Applied.Position, "tid", s.state.Applied.LastTID)
	}
	w.tell(ctx)
	return nil
}

// tell sends the answer when it has changed. That it cannot be sent, because the source is read-only, hinders nothing.
func (w *watcher) tell(ctx context.Context) {
	if w.Tell == nil || w.standby.state.Lineage == "" {
		return
	}
	a := answerOf(w.Data, w.standby.state)
	if a == w.told {
		return
	}
	w.told = a
	a.Updated = w.Now().UTC()
	if err := w.Tell(ctx, a); err != nil {
		w.Log.Debug("the answer could not be sent", "source", w.Source, "cause", err)
	}
}

func answerOf(data string, st State) incremental.Answer {
	host, _ := os.Hostname()
	return incremental.Answer{Host: host, Data: data, Lineage: st.Lineage, Epoch: st.Epoch, Role: string(st.Role),
		Stamp: st.Applied.Stamp, Position: st.Applied.Position, LastTID: st.Applied.LastTID, Applied: st.Applied.Time,
		Condition: st.Condition.Name, Message: st.Condition.Message}
}

// The names of conditions.
const (
	conditionCurrent   = "current"
	conditionGap       = "gap"
	conditionBad       = "bad-increment"
	conditionStale     = "stale-epoch"
	conditionDiverged  = "divergence"
	conditionNoSource  = "source-unreadable"
	conditionUnwritten = "failed"
)

func conditionOf(err error) Condition {
	if err == nil {
		return Condition{Name: conditionCurrent}
	}
	c := Condition{Name: conditionUnwritten, Message: err.Error(), Next: fault.Next(err)}
	var src *sourceError
	switch {
	case errors.Is(err, fault.Diverged):
		c.Name = conditionDiverged
	case errors.Is(err, fault.Refused):
		c.Name = conditionStale
	case errors.Is(err, fault.Gap):
		c.Name = conditionGap
	case errors.Is(err, fault.Unverified):
		c.Name = conditionBad
	case errors.As(err, &src):
		c.Name = conditionNoSource
	}
	return c
}

// stop writes the index, so that a ZEO server starts at once, and gives the lock back.
func (w *watcher) stop() error {
	s := w.standby
	var err error
	// A run that applied nothing leaves the index that there is: it is of this file, only older. A file that
	// somebody else has changed keeps his.
	if s.file != nil && s.state.Next == nil && (!w.Once || w.applied > 0) && s.unchanged() == nil {
		err = s.saveIndex(context.Background())
	}
	return errors.Join(err, s.close())
}

// sourceError is a source that cannot be read.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// catchUp applies what the source offers, and returns how many increments that were.
func (s *standby) catchUp(ctx context.Context, src incremental.Source) (applied int, err error) {
	if s.state.Applied.Position > 0 {
		if err := s.unchanged(); err != nil {
			return 0, err
		}
	}
	for {
		repo, err := incremental.Open(ctx, src)
		if err != nil {
			return applied, &sourceError{err}
		}
		p, err := planFor(ctx, repo, s.state)
		if err != nil {
			return applied, err
		}
		for _, m := range p.steps {
			seg, err := segmentOf(repo, m, s.now())
			if err != nil {
				return applied, err
			}
			if seg.Whole {
				err = s.replace(ctx, seg)
			} else {
				err = s.append(ctx, seg)
			}
			if err != nil {
				return applied, err
			}
			applied++
		}
		switch {
		case p.blocked != nil:
			return applied, p.blocked
		case p.stale != nil:
			return applied, p.stale
		case len(p.steps) == 0 && p.head == nil && s.state.Lineage == "":
			return applied, fault.New(fault.Gap, "%s holds no full to begin with", src).
				Keeping("nothing was changed").Remedy("run on the master: zodbrepl backup, then zodbrepl ship")
		case len(p.steps) == 0:
			return applied, nil
		}
	}
}
