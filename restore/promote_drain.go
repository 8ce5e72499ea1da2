package restore

import (
	"context"
	"errors"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// drained is what a look at the source before a promotion told.
type drained struct {
	applied int
	missing []Missing
	epoch   int // the highest that was seen
	// newest is the last increment that the master is known to have made; nil when nothing could be read.
	newest *incremental.Manifest
}

func (d *drained) miss(err error) { d.missing = append(d.missing, Missing{Why: err.Error()}) }

// maxMissing bounds the tids that a promotion records.
const maxMissing = 1000

// drain applies what is complete, and finds out what cannot be applied. A source that cannot be read is no error.
func (o PromoteOptions) drain(ctx context.Context, s *standby) (d drained, err error) {
	d.missing = []Missing{}
	if o.Source == nil {
		return d, nil
	}
	d.applied, err = s.catchUp(ctx, o.Source)
	var source *sourceError
	switch {
	case ctx.Err() != nil:
		return d, ctx.Err()
	case errors.As(err, &source):
		o.Log.Warn("the source could not be read: what it holds beyond this position is not applied", "cause", err)
		d.miss(err)
		return d, nil
	case errors.Is(err, fault.Gap), errors.Is(err, fault.Unverified), errors.Is(err, fault.Refused):
		d.miss(err)
	case err != nil:
		return d, err
	}
	repo, err := incremental.Open(ctx, o.Source)
	if err != nil {
		d.miss(err)
		return d, nil
	}
	if err := o.others(ctx, s, &d); err != nil {
		return d, err
	}
	ms, problems, err := repo.Manifests(ctx)
	if err != nil {
		return d, err
	}
	left := maxMissing
	for _, m := range ms {
		d.epoch, d.newest = max(d.epoch, m.Epoch), m
		if m.Stamp > s.state.Applied.Stamp {
			tids := s.unapplied(ctx, repo, m, left)
			left -= len(tids)
			d.missing = append(d.missing, Missing{Increment: m.File, LastTID: m.LastTID, Transactions: m.Transactions, TIDs: tids, Why: "not applied"})
		}
	}
	for _, p := range problems {
		if _, ok := incremental.StampOfManifest(p.File); ok && p.File > incremental.ManifestName(s.state.Applied.Stamp) {
			d.missing = append(d.missing, Missing{Increment: p.File, Why: p.Err.Error()})
		}
	}
	return d, ctx.Err()
}

// others learns of other masters: hosts that were promoted and have backed up nothing yet, and handovers.
func (o PromoteOptions) others(ctx context.Context, s *standby, d *drained) error {
	answers, _, err := incremental.ReadAnswers(ctx, o.Source)
	if err == nil {
		var offers []incremental.Offer
		if offers, err = incremental.ReadOffers(ctx, o.Source); err == nil {
			for _, f := range offers {
				if f.Lineage == s.state.Lineage && f.State != incremental.Withdrawn && f.Successor != answerOf(o.Data, s.state).Name() {
					d.epoch = max(d.epoch, f.Epoch)
				}
			}
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		d.miss(err)
	}
	for _, a := range answers {
		if a.Lineage != s.state.Lineage {
			continue
		}
		d.epoch = max(d.epoch, a.Epoch)
		if a.Role == string(Promoted) && a.Epoch > s.state.Epoch {
			d.miss(fault.New(nil, "host %s was promoted to epoch %d, after transaction %s: what it has written since is not here", a.Host, a.Epoch, a.LastTID))
		}
	}
	return nil
}

// unapplied returns the tids of an increment that cannot be applied, as far as it can be read, and at most so many.
func (s *standby) unapplied(ctx context.Context, repo *incremental.Repository, m *incremental.Manifest, most int) (tids []filestorage.TID) {
	seg, err := segmentOf(repo, m)
	if err != nil || most <= 0 || m.Kind == incremental.Full && s.state.Applied.Position > 0 && m.LastTID <= s.state.Applied.LastTID {
		return nil
	}
	check := filestorage.NewChecker(m.File, m.Start)
	check.OnTransaction = func(_ int64, h filestorage.TxnHeader) error {
		if h.TID > s.state.Applied.LastTID {
			tids = append(tids, h.TID)
		}
		if len(tids) >= most {
			return errEnough
		}
		return nil
	}
	if err := seg.Raw(ctx, check); err != nil && !errors.Is(err, errEnough) {
		s.log.Info("not all transactions of an increment are known", "increment", m.File, "cause", err)
	}
	return tids
}

// record makes what a promotion records of the look.
func (d drained) record(now time.Time) Promotion {
	p := Promotion{Missing: d.missing}
	for _, m := range d.missing {
		if m.Increment != "" {
			p.Unapplied++
		}
	}
	if m := d.newest; m != nil {
		p.Newest = &Newest{Increment: m.File, LastTID: m.LastTID, Created: m.Created, Age: now.Sub(m.Created).Round(time.Second).Seconds()}
	}
	return p
}
