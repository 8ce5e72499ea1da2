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
	// RefuseIfAddress lists IP addresses that only a master may have, or names of hosts, which are resolved.
	RefuseIfAddress []string
	// AcceptHandover says that the node becomes the master when its master hands over to it; Exec is then given to the
	// shell, to start ZEO.
	AcceptHandover bool
	Exec           string
	// Tell sends the answer back to where the increments come from. Optional.
	Tell func(context.Context, incremental.Answer) error
	// Health, when set, tells others how the watch stands while it runs.
	Health *Health
	Log    *slog.Logger // nil: discarded
	Now    func() time.Time

	resolve resolver // instead of the net package's, in tests
	crash   func(point string)
	spool   int // instead of spoolSize
}

// DefaultInterval is the time between two looks at the source.
const DefaultInterval = 10 * time.Second

// rolePoll is how often a watch looks whether a promotion wants its place.
const rolePoll = 200 * time.Millisecond

// WatchResult says where a watch ended.
type WatchResult struct {
	Increments int   `json:"increments"` // applied by this run
	State      State `json:"state"`
	// TookOver says that the master handed over to this node, which is the master now.
	TookOver bool `json:"took_over,omitempty"`
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
	var err error
	if w.Data, err = filepath.Abs(o.Data); err != nil {
		return WatchResult{}, err
	}
	if err := CheckAddresses("refuse-if-address", o.RefuseIfAddress); err != nil {
		return WatchResult{}, err
	}
	w.addresses = &addresses{given: o.RefuseIfAddress, find: o.resolve}
	var addr *addressError
	if err := w.notMaster(ctx); errors.As(err, &addr) {
		return WatchResult{}, err
	}
	if promotionUnderWay(w.Data) {
		return WatchResult{}, steppedAside(w.Data)
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go w.stepAside(inner, cancel)
	w.standby = &standby{data: w.Data, log: w.Log, now: w.Now, crash: o.crash, spool: o.spool, health: o.Health, allowed: w.addresses.refuse}
	w.reading = o.Health.source(o.Source)
	var ended error // by what ended the watch, its index could not be written or its lock not be given back
	if err = openStandby(inner, w.standby, w.reading); err == nil {
		w.Health.begins(w.standby.state)
		if w.Once {
			w.logged = w.standby.state.Condition
		}
		err = w.run(inner)
		w.Health.ends()
		ended = w.stop(inner)
	}
	if inner.Err() != nil && errors.Is(err, inner.Err()) {
		err = nil
		if ctx.Err() == nil {
			err = context.Cause(inner) // a promotion
		}
	}
	if w.tookOver {
		err = w.master(ctx)
	}
	return WatchResult{Increments: w.applied, State: w.standby.state, TookOver: w.tookOver}, errors.Join(err, ended)
}

type watcher struct {
	WatchOptions
	standby   *standby
	addresses *addresses         // that only the master may have
	reading   incremental.Source // Source, its progress being told
	applied   int
	// tookOver: the master has handed over to this node.
	tookOver bool
	told     incremental.Answer
	logged   Condition
	// unrecorded is why the condition could not be written, as it was logged.
	unrecorded string
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
	for {
		err := w.notMaster(ctx)
		if err == nil {
			err = w.look(ctx)
		}
		if err == nil {
			err = w.takeOver(ctx)
		}
		if w.tookOver {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		nerr := w.note(ctx, err)
		if w.Once || errors.Is(err, fault.Refused) || errors.Is(err, fault.Diverged) {
			return errors.Join(err, nerr)
		}
		if nerr != nil && nerr.Error() != w.unrecorded { // a full disk, say; it is tried again at the next look
			w.Log.Error("the condition could not be recorded", "storage", w.Data, "cause", nerr)
		}
		w.unrecorded = ""
		if nerr != nil {
			w.unrecorded = nerr.Error()
		}
		w.Health.rests(true)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-hints:
		case <-time.After(w.Interval):
		}
		w.Health.rests(false)
	}
}

// notMaster refuses when this host has an address of the master's. A name that cannot be resolved is no refusal, but nothing
// is applied either.
func (w *watcher) notMaster(ctx context.Context) error {
	if len(w.addresses.given) == 0 {
		return nil
	}
	if err := w.addresses.lookUp(ctx); err != nil {
		return err
	}
	return w.addresses.refuse()
}

// look applies what is there.
func (w *watcher) look(ctx context.Context) error {
	if !w.Once && w.standby.state.Next == nil {
		if err := w.standby.needIndex(ctx); err != nil {
			return err
		}
	}
	n, err := w.standby.catchUp(ctx, w.reading)
	w.applied += n
	w.setAside(ctx)
	if w.Once || errors.Is(err, fault.Refused) || errors.Is(err, fault.Diverged) || w.standby.state.Next != nil {
		return err
	}
	// A promotion, or the end, should not have to build it.
	return errors.Join(err, w.standby.needIndex(ctx))
}

// setAside renames a stale master's increments, when the source can be written: nobody else should have to tell them from
// good ones, and the next look finds none. That they cannot be renamed hinders nothing.
func (w *watcher) setAside(ctx context.Context) {
	place, ok := w.Source.(incremental.Renamer)
	if !ok {
		return
	}
	for _, m := range w.standby.strays {
		aside, err := w.standby.strayed.SetAside(ctx, place, m.Stamp)
		if len(aside) > 0 {
			w.Log.Warn("a stale master has written to the source: it is set aside", "storage", w.Data, "increment", m.File, "epoch", m.Epoch, "host", m.Host)
		}
		if err != nil {
			w.Log.Info("a stale master's increment cannot be set aside", "source", w.Source, "increment", m.File, "cause", err)
		}
	}
	w.standby.strays, w.standby.strayed = nil, nil
}

// hints tells of changes in the directory. Events may be lost, and there are none from other hosts.
func (w *watcher) hints() (<-chan fsnotify.Event, func()) {
	if w.Hint == "" || w.Once {
		return nil, func() {}
	}
	n, err := fsnotify.NewWatcher()
	if err == nil {
		if err = n.Add(w.Hint); err != nil {
			n.Close()
		}
	}
	if err != nil {
		w.Log.Debug("no hints from the file system; looking at every interval", "source", w.Hint, "cause", err)
		return nil, func() {}
	}
	hints := make(chan fsnotify.Event, 1)
	go func() {
		for e := range n.Events {
			if !e.Has(fsnotify.Create) || !incremental.IsNews(filepath.Base(e.Name)) {
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
	w.Health.looked(s.state, err)
	c := conditionOf(err)
	if c.Name != w.logged.Name || c.Message != w.logged.Message {
		w.logged = c
		if err != nil {
			level := slog.LevelError
			if w.Once { // the error is returned, and told by whoever asked
				level = slog.LevelInfo
			}
			w.Log.Log(ctx, level, "not following", "storage", w.Data, "condition", c.Name, "cause", c.Message, "next", c.Next)
		} else {
			w.Log.Info("current", "storage", w.Data, "position", s.state.Applied.Position, "tid", s.state.Applied.LastTID)
		}
	}
	st := s.state
	if c.Name != st.Condition.Name || c.Message != st.Condition.Message {
		c.Since = w.Now().UTC()
		st.Condition = c
	}
	st.Source = sourceName(w.Source)
	if st.Condition == s.state.Condition && st.Source == s.state.Source {
		w.tell(ctx)
		return nil
	}
	// A Data.fs that is there and was not adopted is perhaps no standby's.
	if st.Lineage != "" || s.osf == nil {
		st.Role = Standby
		if err := st.write(s.data); err != nil {
			return s.unwritable(err)
		}
	}
	s.state = st
	w.tell(ctx)
	return nil
}

// sourceName names a source so that a run in another working directory finds it.
func sourceName(src incremental.Source) string {
	if dir, ok := src.(incremental.Dir); ok {
		if path, err := filepath.Abs(string(dir)); err == nil {
			return path
		}
	}
	return src.String()
}

// tell sends the answer when it has changed. That it cannot be sent, because the source is read-only, hinders nothing.
func (w *watcher) tell(ctx context.Context) {
	if w.Tell == nil || w.standby.state.Lineage == "" {
		return
	}
	a := answerOf(w.Data, w.standby.state)
	a.Accepts = w.AcceptHandover
	if a == w.told {
		return
	}
	updated := a
	updated.Updated = w.Now().UTC()
	if err := w.Tell(ctx, updated); err != nil {
		w.Log.Debug("the answer could not be sent", "source", w.Source, "cause", err)
		return
	}
	w.told = a
}

func answerOf(data string, st State) incremental.Answer {
	host, _ := os.Hostname()
	return incremental.Answer{Host: host, Data: data, Lineage: st.Lineage, Epoch: st.Epoch, Role: string(st.Role), Promotion: st.Promotions.Last(),
		Stamp: st.Applied.Stamp, Position: st.Applied.Position, LastTID: st.Applied.LastTID, Applied: st.Applied.Time,
		Condition: st.Condition.Name, Message: st.Condition.Message}
}

// stop writes the index, so that a ZEO server starts at once, and gives the lock back. It does not begin to build an
// index when ctx is done.
func (w *watcher) stop(ctx context.Context) error {
	s := w.standby
	var err error
	// A run that applied nothing leaves the index that there is: it is of this file, only older. A file that
	// somebody else has changed keeps his.
	_, none := os.Stat(s.data + ".index")
	if s.state.Next == nil && (!w.Once || w.applied > 0 || none != nil) && (s.index != nil || ctx.Err() == nil) && s.unchanged() == nil {
		if err = s.saveIndex(ctx); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			err = nil
		}
	}
	return errors.Join(err, s.close())
}
