package restore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// PromoteOptions says what to promote. Data is required.
type PromoteOptions struct {
	Data string
	// Source is drained first; nil when there is none to drain.
	Source incremental.Source
	// Exec is given to the shell at the end, to start ZEO. It runs again when promote does, so it should not mind.
	Exec string
	// Wait is how long to wait for the lock of Data.fs; 0 is DefaultWait.
	Wait time.Duration
	Tell func(context.Context, incremental.Answer) error
	Log  *slog.Logger
	Now  func() time.Time

	crash func(point string)
}

// DefaultWait is how long promote waits for a watch to step aside.
const DefaultWait = 30 * time.Second

// tellTimeout is how long a promotion tries to tell of itself.
const tellTimeout = 10 * time.Second

// PromoteResult says what the node is now.
type PromoteResult struct {
	Data     string          `json:"data"`
	Lineage  string          `json:"lineage"`
	Epoch    int             `json:"epoch"`
	Position int64           `json:"position"`
	LastTID  filestorage.TID `json:"last_tid"`
	LastTime time.Time       `json:"last_time"`
	// Applied counts the increments that this run applied before.
	Applied int  `json:"applied"`
	Already bool `json:"already"` // it had been promoted before
	// Handover: the master handed over, so nothing is missing.
	Handover bool      `json:"handover,omitempty"`
	Missing  []Missing `json:"missing"` // what is known not to have been applied
	// Unapplied counts the increments among Missing. Lag is how far, in seconds, the last transaction here is behind the last
	// that is known.
	Unapplied int     `json:"unapplied"`
	Lag       float64 `json:"lag"`
	// Newest is the last increment that the master is known to have made: what it committed later is not known. nil: none.
	Newest *Newest `json:"newest,omitempty"`
}

// Promote makes a standby the master: it applies everything that is complete, writes the index, raises the epoch and
// sets the role durably, releases the lock and runs Exec. A running watch steps aside. It is idempotent; a crash at
// any point leaves a standby or a promoted node.
//
// That the source cannot be read, or holds increments that cannot be applied, does not hinder it: they are among
// Missing.
func Promote(ctx context.Context, o PromoteOptions) (PromoteResult, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Wait == 0 {
		o.Wait = DefaultWait
	}
	var err error
	if o.Data, err = filepath.Abs(o.Data); err != nil {
		return PromoteResult{}, err
	}
	st, ok, err := ReadState(o.Data)
	if err != nil {
		return PromoteResult{}, err
	}
	if ok && st.Role == Promoted {
		// A run that died may not have told of it.
		(&standby{data: o.Data, state: st, log: o.Log, now: o.Now}).announce(ctx, o.Source, o.Tell)
		return already(o.Data, st), startZEO(ctx, o.Data, o.Exec)
	}
	if !ok && o.Source == nil {
		return PromoteResult{}, fault.New(nil, "%s is no standby: there is no %s", o.Data, statePath(o.Data)).
			Keeping("nothing was changed").
			Remedy("name the repository that it was made from, so that it can be compared: zodbrepl promote --data %s --from DIR", o.Data)
	}
	res, err := o.promote(ctx)
	if err != nil {
		return res, err
	}
	return res, startZEO(ctx, o.Data, o.Exec)
}

func (o PromoteOptions) promote(ctx context.Context) (res PromoteResult, err error) {
	deadline := time.Now().Add(o.Wait)
	intent, err := retryLock(ctx, deadline, func() (*incremental.Lock, error) { return announcePromotion(o.Data) })
	if err != nil {
		return res, err
	}
	defer func() {
		os.Remove(o.Data + promoteExt) // what stays of it after a crash means nothing: the lock does
		intent.Close()
	}()
	s := &standby{data: o.Data, promoting: true, log: o.Log, now: o.Now, crash: o.crash}
	_, err = retryLock(ctx, deadline, func() (struct{}, error) {
		return struct{}{}, openStandby(ctx, s, o.Source)
	})
	if st, ok, serr := ReadState(o.Data); err != nil && serr == nil && ok && st.Role == Promoted {
		return already(o.Data, st), nil // another promotion was faster
	}
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	d, err := o.drain(ctx, s)
	if err != nil {
		return res, err
	}
	if s.file == nil || s.state.Applied.Position == 0 {
		e := fault.New(fault.Gap, "%s holds nothing yet: no full has been applied", o.Data).
			Keeping("nothing was changed").Remedy("recover it from a repository: zodbrepl recover")
		if len(d.missing) > 0 {
			e = e.Because(errors.New(d.missing[0].Why))
		}
		return res, e
	}
	if err := s.saveIndex(ctx); err != nil {
		return res, err
	}
	s.at("indexed")
	branch, handed, err := o.succession(ctx, s, d.epoch)
	if err != nil {
		return res, err
	}
	record := d.record(o.Now())
	record.Handover = handed
	if err := s.become(branch, record); err != nil {
		return res, err
	}
	s.announce(ctx, o.Source, o.Tell)
	res = promoted(o.Data, s.state)
	res.Applied = d.applied
	return res, nil
}

// become makes the node the master by the last promotion of branch, with one write.
func (s *standby) become(branch incremental.Branch, p Promotion) error {
	st := s.state
	last := branch.Last()
	st.Role, st.Epoch, st.Promotions, st.Offer = Promoted, last.Epoch, branch, nil
	p.Time, p.Host, p.LastTID = s.now().UTC(), last.Host, st.Applied.LastTID
	st.Promotion = &p
	st.Condition = Condition{Name: string(Promoted), Since: p.Time}
	if err := st.write(s.data); err != nil {
		return err
	}
	s.state = st
	s.at("promoted")
	return nil
}

// announce tells the source that the node is the master.
func (s *standby) announce(ctx context.Context, src incremental.Source, tell func(context.Context, incremental.Answer) error) {
	if tell == nil {
		return
	}
	a := answerOf(s.data, s.state)
	a.Updated = s.now().UTC()
	ctx, cancel := context.WithTimeout(ctx, tellTimeout) // ZEO should not have to wait for a dead line
	defer cancel()
	if err := tell(ctx, a); err != nil {
		s.log.Warn("the source could not be told of the promotion: its master will learn it from the first backup of this host", "source", src, "cause", err)
	}
}

// retryLock tries to get what another process holds until the deadline.
func retryLock[T any](ctx context.Context, deadline time.Time, get func() (T, error)) (T, error) {
	for {
		got, err := get()
		if err == nil || !errors.Is(err, fault.Busy) || time.Now().After(deadline) {
			return got, err
		}
		select {
		case <-ctx.Done():
			return got, ctx.Err()
		case <-time.After(rolePoll / 2):
		}
	}
}

func already(data string, st State) PromoteResult {
	res := promoted(data, st)
	res.Already = true
	return res
}

func promoted(data string, st State) PromoteResult {
	res := PromoteResult{Data: data, Lineage: st.Lineage, Epoch: st.Epoch, Position: st.Applied.Position,
		LastTID: st.Applied.LastTID, LastTime: st.Applied.LastTID.Time(), Missing: []Missing{}}
	if st.Promotion != nil {
		res.Missing = append(res.Missing, st.Promotion.Missing...)
		res.Handover = st.Promotion.Handover
		res.Unapplied, res.Newest = st.Promotion.Unapplied, st.Promotion.Newest
		if n := res.Newest; n != nil && n.LastTID > res.LastTID {
			res.Lag = n.LastTID.Time().Sub(res.LastTime).Seconds()
		}
	}
	return res
}

// startZEO runs the command that the operator gave for it.
func startZEO(ctx context.Context, data, command string) error {
	if command == "" {
		return nil
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "ZODBREPL_DATA="+data)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // stdout is for the result
	if err := cmd.Run(); err != nil {
		return fault.New(nil, "%s is promoted, but the command failed: %s", data, command).Because(err).
			Keeping("the promotion stands").Remedy("start the ZEO server by hand")
	}
	return nil
}
