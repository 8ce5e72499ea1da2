package restore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// HandoverOptions says who hands over, and where the standby reads. Data, Repository and Place are required.
type HandoverOptions struct {
	Data       string // path of the master's Data.fs
	Repository incremental.Dir
	// Place is what the standby follows; it may be the repository itself.
	Place incremental.Place
	// Ship brings the place up to date with the repository; nil when it is the repository.
	Ship func(context.Context) error
	// Standby is the host that takes over, when several would.
	Standby string
	// Wait is how long to wait for the standby; 0 is DefaultHandoverWait. After it the offer is taken back.
	Wait time.Duration
	// DryRun says what would be done, and changes nothing.
	DryRun  bool
	Codec   string
	Version string
	Log     *slog.Logger
	Now     func() time.Time

	crash func(point string)
	poll  time.Duration
	hear  time.Duration // how long to wait for the successor's word
}

// DefaultHandoverWait is how long a master waits for the standby to take over.
const DefaultHandoverWait = 5 * time.Minute

// How often the master looks, and how long it tries to take an offer back or to hear of the promotion.
const (
	handoverPoll = 500 * time.Millisecond
	handoverEnd  = 15 * time.Second
)

// HandoverResult says what became of a handover.
type HandoverResult struct {
	Data string `json:"data"`
	// State is "handed-over", "withdrawn", "none" (there was nothing to take back) or "possible" (in a dry run).
	State     string            `json:"state"`
	Already   bool              `json:"already,omitempty"` // it had been handed over before
	Successor string            `json:"successor"`         // the name of the standby's answer
	Place     string            `json:"place"`
	Lineage   string            `json:"lineage"`
	Epoch     int               `json:"epoch"` // the successor's
	Stamp     incremental.Stamp `json:"stamp"`
	Position  int64             `json:"position"`
	LastTID   filestorage.TID   `json:"last_tid"`
	LastTime  time.Time         `json:"last_time"`
	// Promoted: the standby has told that it is the master.
	Promoted bool `json:"promoted"`
}

// The states of a HandoverResult.
const (
	HandedOver       = "handed-over"
	HandoverBack     = "withdrawn"
	HandoverNone     = "none"
	HandoverPossible = "possible"
)

// handover is one run on the master.
type handover struct {
	HandoverOptions
	offer incremental.Handover
	own   State // the master's, the zero State when it never was a standby
	epoch int   // the master's
}

// HandOver makes a standby the master and this master a standby, with nothing lost and nothing copied whole. It holds
// ZODB's lock, so that no ZEO server writes meanwhile, makes the last backup, and offers the role. The standby takes the offer
// by renaming one file, and the master takes it back by renaming the same file, so of the two only one succeeds.
// What a crash leaves at each point:
//
//	before the offer is recorded    a master, with a newer backup perhaps
//	after it                        a master that does not back up; a further run goes on, or takes the offer back
//	after it is at the place        the same; the standby may take it, now or later, as long as it is not taken back
//	after it was taken              a master that does not back up; a further run finds that it was taken and goes on
//	after the state is written      a standby; a further run only raises the fence
//
// Errors are of the kind Refused when this node is no master or a server holds the lock, Gap when no standby would take
// over, Diverged when Data.fs has gone on after the offer.
func HandOver(ctx context.Context, o HandoverOptions) (HandoverResult, error) {
	h, err := newHandover(o)
	if err != nil {
		return HandoverResult{}, err
	}
	if res, done, err := h.already(ctx); done || err != nil {
		return res, err
	}
	if h.DryRun {
		return h.rehearse(ctx)
	}
	lock, err := filestorage.AcquireLock(h.Data)
	if err != nil {
		return HandoverResult{}, serverRefusal(h.Data, err)
	}
	defer lock.Release()
	if res, done, err := h.already(ctx); done || err != nil { // before we had the lock
		return res, err
	}
	if err := h.make(ctx); err != nil {
		return HandoverResult{}, err
	}
	if err := h.await(ctx); err != nil {
		return HandoverResult{}, err
	}
	// From here on another host is the master: it is not for a signal to hinder this one from becoming a standby.
	if err := h.giveUp(context.WithoutCancel(ctx)); err != nil {
		return HandoverResult{}, err
	}
	res := h.result(HandedOver)
	err = lock.Release()
	res.Promoted = h.heard(ctx)
	return res, err
}

func newHandover(o HandoverOptions) (*handover, error) {
	h := &handover{HandoverOptions: o}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
	if h.Now == nil {
		h.Now = time.Now
	}
	if h.Wait <= 0 {
		h.Wait = DefaultHandoverWait
	}
	if h.poll == 0 {
		h.poll = handoverPoll
	}
	if h.hear == 0 {
		h.hear = handoverEnd
	}
	if h.crash == nil {
		h.crash = func(string) {}
	}
	var err error
	h.Data, err = filepath.Abs(o.Data)
	return h, err
}

func serverRefusal(data string, err error) error {
	var locked *filestorage.LockedError
	if !errors.As(err, &locked) {
		return fmt.Errorf("lock of %s: %w", data, err)
	}
	return fault.New(fault.Refused, "%s is in use by process %d: a ZEO server has it open, or another handover is under way", data, locked.PID).
		Because(err).Keeping("nothing was handed over").Remedy("stop the ZEO server first (see what it is: ps -p %d); clients wait for the new one", locked.PID)
}

// already reads this node's role. A node that has handed over finishes what a run that died had left.
func (h *handover) already(ctx context.Context) (HandoverResult, bool, error) {
	st, ok, err := ReadState(h.Data)
	if err != nil {
		return HandoverResult{}, false, err
	}
	h.own, h.epoch = st, max(st.Epoch, 1)
	if !ok || st.Role == Promoted {
		return HandoverResult{}, false, nil
	}
	offers, err := incremental.ReadOffers(ctx, h.Repository)
	if err != nil {
		return HandoverResult{}, false, err
	}
	for _, o := range offers {
		if o.Data == h.Data && o.State != incremental.Withdrawn && len(st.Promotions) > 0 && st.Promotions.Has(o.Promotions.Last()) {
			h.offer = o.Handover
			if err := h.close(ctx); err != nil {
				return HandoverResult{}, true, err
			}
			res := h.result(HandedOver)
			res.Already, res.Promoted = true, h.promoted(ctx)
			return res, true, nil
		}
	}
	return HandoverResult{}, true, fault.New(fault.Refused, "%s is a standby (%s): only a master hands over", h.Data, statePath(h.Data)).
		Keeping("nothing was changed").Remedy("run it on the master; if that is lost: zodbrepl promote --data %s", h.Data)
}

// make brings the offer to the standby: a new one, or the one that a run that died has left.
func (h *handover) make(ctx context.Context) error {
	o, found, err := incremental.OpenHandover(ctx, h.Repository, h.epoch)
	if err != nil {
		return err
	}
	if found {
		h.offer = o.Handover
		if o.Place != h.Place.String() {
			return fault.New(fault.Usage, "the handover under way was offered at %s, not at %s", o.Place, h.Place).
				Keeping("nothing was changed").Remedy("give the same options as before")
		}
		return h.goOn(ctx, o.State)
	}
	successor, epoch, err := h.choose(ctx)
	if err != nil {
		return err
	}
	if err := h.lastBackup(ctx); err != nil {
		return err
	}
	if h.Ship != nil {
		if err := h.Ship(ctx); err != nil {
			return err
		}
		h.crash("shipped")
	}
	if err := h.describe(ctx, successor, epoch); err != nil {
		return err
	}
	if err := incremental.WriteOffer(ctx, h.Repository, h.offer); err != nil {
		return err
	}
	h.crash("offered")
	return h.publish(ctx)
}

// goOn continues with the offer of a run that died. When Data.fs has gone on since, because a ZEO server was started, that
// offer is of the past.
func (h *handover) goOn(ctx context.Context, state incremental.HandoverState) error {
	ext, err := h.committed(ctx)
	if err != nil {
		return err
	}
	same, err := h.same(ext)
	if err != nil {
		return err
	}
	if !same {
		if state != incremental.Taken {
			if state, err = h.takeBack(ctx); err != nil {
				return h.pending(err)
			}
		}
		if state == incremental.Taken {
			return h.wentOn(ext)
		}
		if err := h.retract(ctx); err != nil {
			return err
		}
		return h.make(ctx) // anew
	}
	if h.Ship != nil {
		state, err = h.look(ctx)
		if err != nil {
			return h.pending(err)
		}
		if state == incremental.Withdrawn { // by a run that died before it said so here
			if err := h.retract(ctx); err != nil {
				return err
			}
			return h.make(ctx)
		}
		if state == "" {
			if err := h.Ship(ctx); err != nil {
				return h.pending(err)
			}
			return h.publish(ctx)
		}
	}
	return nil
}

// wentOn says that the standby has taken over and that somebody has committed to this Data.fs since. The fence keeps
// this master from going on.
func (h *handover) wentOn(ext filestorage.Extent) error {
	err := h.fence()
	return errors.Join(fault.New(fault.Diverged, "%s has transactions up to %s, after the position %d at which it was handed over to %s: a ZEO server was started on it",
		h.Data, ext.Last, h.offer.Position, h.offer.Successor).
		Keeping("they are as they were; nothing was cut").
		Remedy("stop the ZEO server here; zodbrepl rejoin saves these transactions to a file and makes this host a standby"), err)
}

func (h *handover) committed(ctx context.Context) (filestorage.Extent, error) {
	f, closer, err := filestorage.Open(h.Data)
	if err != nil {
		return filestorage.Extent{}, err
	}
	defer closer.Close()
	return f.Committed(ctx, filestorage.MagicSize)
}

// lastBackup brings what was committed into the repository.
func (h *handover) lastBackup(ctx context.Context) error {
	res, err := Backup(ctx, incremental.BackupOptions{Data: h.Data, Repository: h.Repository, Codec: h.Codec, Version: h.Version, Log: h.Log, Now: h.Now})
	if err != nil {
		return err
	}
	if res.Unasked {
		h.Log.Warn("a new full was made", "increment", res.File, "cause", res.Reason)
	}
	h.crash("backed up")
	return nil
}

func (h *handover) result(state string) HandoverResult {
	o := h.offer
	res := HandoverResult{Data: h.Data, State: state, Successor: o.Successor, Place: o.Place, Lineage: o.Lineage, Epoch: o.Epoch,
		Stamp: o.Stamp, Position: o.Position, LastTID: o.LastTID}
	if o.LastTID != 0 {
		res.LastTime = o.LastTID.Time()
	}
	return res
}
