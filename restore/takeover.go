package restore

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// takeOver makes this node the master when its master has handed over to it. What a crash leaves at each point:
//
//	before the offer is taken   a standby, and the offer: the next watch takes it, or the master takes it back
//	after it                    a standby whose offer is taken: nobody else can be the master in that epoch any more, and
//	                            the next watch or promote goes on, also one that was not told to accept
//	after the state is written  a promoted node
//
// When it cannot be known whether the offer was taken, because the line broke, the next look tells by its name.
func (w *watcher) takeOver(ctx context.Context) error {
	s := w.standby
	if s.state.Applied.Position == 0 || !s.offers {
		return nil
	}
	o, ok, err := s.offer(ctx, w.Source)
	if err != nil || !ok || o.State == incremental.Offered && !w.AcceptHandover {
		return err
	}
	// Before it is taken, so that nothing is left afterwards that takes long or can fail.
	if err := s.saveIndex(ctx); err != nil {
		return err
	}
	o, taken, err := s.take(ctx, w.Source, o)
	if err != nil || !taken {
		return err
	}
	if err := s.become(o.Promotions, Promotion{Missing: []Missing{}, Handover: true}); err != nil {
		return s.unwritable(err)
	}
	w.tookOver = true
	s.log.Info("the master has handed over: this node is the master now", "storage", s.data, "epoch", s.state.Epoch, "tid", s.state.Applied.LastTID)
	s.announce(context.WithoutCancel(ctx), w.Source, w.Tell)
	return nil
}

// offer finds the offer in src that is for this node and fits what it has applied: one that it may take or has taken. Only
// a node that has exactly the final increment may, and only while nothing says that the history has gone on.
func (s *standby) offer(ctx context.Context, src incremental.Source) (o incremental.Offer, ok bool, err error) {
	offers, err := incremental.ReadOffers(ctx, src)
	if err != nil {
		return o, false, unreadable(err)
	}
	at, me := s.state.Applied, answerOf(s.data, s.state).Name()
	for _, c := range offers {
		switch {
		case c.State == incremental.Withdrawn || c.Successor != me || c.Epoch <= s.state.Epoch || c.Stamp != at.Stamp || ok && o.State == incremental.Taken:
			continue
		case c.Lineage != s.state.Lineage || c.Position != at.Position || c.LastTID != at.LastTID || c.Tail != at.Tail,
			!s.state.Promotions.ContinuedBy(c.Promotions[:len(c.Promotions)-1]):
			s.log.Warn("an offer to hand over is of another history than this node's", "storage", s.data, "increment", c.Stamp, "source", src)
			continue
		}
		o, ok = c, true
	}
	if !ok || o.State == incremental.Taken {
		return o, ok, nil
	}
	return s.stillGood(ctx, src, o)
}

// stillGood refuses an offer when the place knows of something later: an increment, or another master.
func (s *standby) stillGood(ctx context.Context, src incremental.Source, o incremental.Offer) (incremental.Offer, bool, error) {
	repo, err := incremental.Open(ctx, src)
	if err != nil {
		return o, false, unreadable(err)
	}
	answers, _, err := incremental.ReadAnswers(ctx, src)
	if err != nil {
		return o, false, unreadable(err)
	}
	why := ""
	if stamps := repo.ManifestStamps(); len(stamps) == 0 || stamps[len(stamps)-1] != o.Stamp {
		why = "its increment is not the newest there"
	}
	for _, a := range answers {
		if a.Lineage == o.Lineage && a.Epoch >= o.Epoch {
			why = "host " + a.Host + " was promoted"
		}
	}
	if why != "" {
		s.log.Warn("an offer to hand over is out of date: it is not taken", "storage", s.data, "increment", o.Stamp, "cause", why)
	}
	return o, why == "", nil
}

// take throws the switch, and returns the offer as it was taken: it may have been taken back and made anew since it was
// read. taken is false when the master was faster. After an error it is not known, and the state says so.
func (s *standby) take(ctx context.Context, src incremental.Source, o incremental.Offer) (_ incremental.Offer, taken bool, err error) {
	if o.State == incremental.Taken {
		return o, true, nil
	}
	place, ok := src.(incremental.Place)
	if !ok {
		return o, false, unreadable(fault.New(nil, "%s cannot be changed from here", src))
	}
	st := s.state
	st.Offer = o.Promotions
	if err := st.write(s.data); err != nil {
		return o, false, s.unwritable(err)
	}
	s.state = st
	s.at("taking")
	err = place.Rename(ctx, o.FileName(incremental.Offered), o.FileName(incremental.Taken))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.log.Warn("the offer to hand over was taken back", "storage", s.data, "increment", o.Stamp)
		return o, false, nil
	case err != nil:
		return o, false, unreadable(err)
	}
	s.at("taken")
	o, ok, err = s.offer(ctx, src)
	return o, ok && o.State == incremental.Taken, err
}

// succession returns the promotions of the node that is being promoted. When its master has handed over to it, they are
// those that the master has recorded, or the two would not fit together afterwards; else there is a new one, to an epoch
// above seen. An offer of which it is not known whether it was taken counts as a promotion before it.
func (o PromoteOptions) succession(ctx context.Context, s *standby, seen int) (branch incremental.Branch, handed bool, err error) {
	if o.Source != nil {
		offer, ok, err := s.offer(ctx, o.Source)
		if err == nil && ok {
			offer, ok, err = s.take(ctx, o.Source, offer)
		}
		switch {
		case ctx.Err() != nil:
			return nil, false, ctx.Err()
		case err != nil:
			o.Log.Warn("whether the master has handed over is not known", "source", o.Source, "cause", err)
		case ok:
			return offer.Promotions, true, nil
		}
	}
	branch = s.state.Promotions
	if maybe := s.state.Offer; maybe.Last().Epoch > s.state.Epoch && maybe.Last().Stamp == s.state.Applied.Stamp && branch.ContinuedBy(maybe) {
		branch = maybe
	}
	host, err := os.Hostname()
	at := s.state.Applied
	return branch.With(incremental.Promotion{Epoch: max(s.state.Epoch, seen, branch.Last().Epoch) + 1, ID: incremental.NewPromotionID(), Host: host,
		Time: s.now().UTC(), Stamp: at.Stamp, Position: at.Position, LastTID: at.LastTID}), false, err
}

// master starts ZEO after a handover. A watch that goes on has nothing to follow any more and ends as one that sees its
// node promoted.
func (w *watcher) master(ctx context.Context) error {
	err := startZEO(ctx, w.Data, w.Exec)
	if w.Once || err != nil {
		return err
	}
	return fault.New(fault.Refused, "the master has handed over: %s was promoted (epoch %d), this node is the master now", w.Data, w.standby.state.Epoch).
		Keeping("every transaction").Remedy("back it up and ship from here; see \"Planned exchange\" in docs/operations.md")
}
