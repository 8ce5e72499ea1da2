package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// publish brings the offer to the place, behind the increments.
func (h *handover) publish(ctx context.Context) error {
	if h.Ship == nil {
		return nil // it is there
	}
	doc, err := h.offer.Encode()
	if err == nil {
		err = h.Place.WriteFile(ctx, h.offer.FileName(incremental.Offered), doc)
	}
	if err != nil {
		return h.pending(err)
	}
	h.crash("published")
	return nil
}

// pending says that an offer stands of which it is not known what becomes.
func (h *handover) pending(err error) error {
	return fault.New(nil, "the handover to %s is under way: it may be taken at any time", h.offer.Successor).Because(err).
		Keeping("Data.fs is as it was; nothing is backed up until this is settled").
		Remedy("do NOT start ZEO here; when %s can be reached, run zodbrepl handover again to go on, or with --cancel to take it back", h.offer.Place)
}

// look returns the state of our offer at the place, "" when it cannot be found, which does not mean that it never came:
// a network file system may hide a new name for a while. Taken counts before all: whatever else has
// the offer's name was put there too late.
func (h *handover) look(ctx context.Context) (incremental.HandoverState, error) {
	for _, s := range []incremental.HandoverState{incremental.Taken, incremental.Offered, incremental.Withdrawn} {
		o, err := incremental.ReadHandover(ctx, h.Place, h.offer.Stamp, s)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", err
		case o.Is(h.offer):
			return s, nil
		}
	}
	// It may just have been renamed behind our back; or this is not the place but an empty mount point, say.
	if o, err := incremental.ReadHandover(ctx, h.Place, h.offer.Stamp, incremental.Taken); err == nil && o.Is(h.offer) {
		return incremental.Taken, nil
	}
	m, err := incremental.ReadManifest(ctx, h.Place, h.offer.Stamp)
	if err == nil && (m.End != h.offer.Position || m.Tail != h.offer.Tail) {
		err = fmt.Errorf("%s there is another increment", m.File)
	}
	if err != nil {
		return "", fault.New(nil, "%s does not have the increment %s, which was shipped there", h.Place, h.offer.Stamp).Because(err).
			Remedy("see whether it is mounted, and the right one")
	}
	return "", nil
}

// await waits until the offer is taken. When nobody does in time, or the wait is broken off, it is taken back; an error
// then says that this node is the master as before, or that this is not known.
func (h *handover) await(ctx context.Context) error {
	deadline := time.Now().Add(h.Wait)
	var trouble error
	for {
		state, err := h.look(ctx)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if trouble == nil || trouble.Error() != err.Error() {
				h.Log.Warn("the place cannot be looked at: trying on", "target", h.Place, "cause", err)
			}
			trouble = err
		case state == incremental.Taken:
			h.crash("seen")
			return nil
		case state == incremental.Withdrawn:
			if err := h.retract(ctx); err != nil {
				return err
			}
			return h.notTaken("the handover was taken back")
		}
		if ctx.Err() == nil && time.Now().Before(deadline) {
			select {
			case <-ctx.Done():
			case <-time.After(min(h.poll, time.Until(deadline))):
			}
			continue
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), handoverEnd)
		defer cancel()
		state, err = h.takeBack(end)
		if err != nil {
			return h.pending(err)
		}
		if state == incremental.Taken { // at the last moment
			return nil
		}
		if err := h.retract(end); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return h.notTaken("stopped before the standby has taken over")
		}
		return h.notTaken(fmt.Sprintf("the standby has not taken over within %v", h.Wait))
	}
}

func (h *handover) notTaken(what string) error {
	return fault.New(nil, "%s: %s", h.offer.Successor, what).
		Keeping("this host is the master as before; start ZEO again").
		Remedy("see on the standby: zodbrepl status, and whether watch runs with --accept-handover; then run it again")
}

// takeBack throws the switch back. It returns Taken when the standby was faster, and Withdrawn only when that can be seen
// at the place. An offer that cannot be found there is brought again first: only what was renamed is known to be nobody's.
func (h *handover) takeBack(ctx context.Context) (incremental.HandoverState, error) {
	state, err := h.look(ctx)
	if err == nil && state == "" {
		err = h.publish(ctx)
	}
	if err != nil || state == incremental.Taken {
		return state, err
	}
	h.crash("taking back")
	err = h.Place.Rename(ctx, h.offer.FileName(incremental.Offered), h.offer.FileName(incremental.Withdrawn))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	h.crash("taken back")
	if state, err = h.look(ctx); err == nil && state != incremental.Taken && state != incremental.Withdrawn {
		err = fmt.Errorf("it cannot be seen at %s whether %s was taken", h.Place, h.offer.FileName(incremental.Offered))
	}
	return state, err
}

// retract takes the offer back in the repository: backups go on.
func (h *handover) retract(ctx context.Context) error {
	err := h.Repository.Rename(ctx, h.offer.FileName(incremental.Offered), h.offer.FileName(incremental.Withdrawn))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// CancelHandover takes an offer back as long as nobody has taken it. It needs no lock: of two that rename one file only
// one succeeds.
func CancelHandover(ctx context.Context, o HandoverOptions) (HandoverResult, error) {
	h, err := newHandover(o)
	if err != nil {
		return HandoverResult{}, err
	}
	st, ok, err := ReadState(h.Data)
	if err != nil {
		return HandoverResult{}, err
	}
	h.own, h.epoch = st, max(st.Epoch, 1)
	offer, found, err := incremental.OpenHandover(ctx, h.Repository, h.epoch)
	switch {
	case err != nil:
		return HandoverResult{}, err
	case ok && st.Role == Standby:
		return HandoverResult{}, fault.New(fault.Refused, "%s is a standby: there is nothing to take back, or it was handed over already", h.Data).
			Keeping("nothing was changed").Remedy("see zodbrepl status --data %s; to become the master again, hand over from the new one", h.Data)
	case !found:
		return h.result(HandoverNone), nil
	}
	h.offer = offer.Handover
	if h.offer.Place != h.Place.String() {
		return HandoverResult{}, fault.New(fault.Usage, "the handover under way was offered at %s, not at %s", h.offer.Place, h.Place).
			Keeping("nothing was changed").Remedy("give the same options as before")
	}
	state := offer.State
	if state != incremental.Taken {
		if state, err = h.takeBack(ctx); err != nil {
			return HandoverResult{}, h.pending(err)
		}
	}
	if state == incremental.Taken {
		return HandoverResult{}, fault.New(fault.Refused, "%s has taken over already: it cannot be taken back", h.offer.Successor).
			Keeping("nothing was changed").Remedy("finish it: zodbrepl handover with the same options; to come back afterwards, hand over from %s", h.offer.Successor)
	}
	return h.result(HandoverBack), h.retract(ctx)
}
