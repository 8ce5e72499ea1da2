package restore

import (
	"context"
	"errors"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// choose finds the chain and the increments that give the moment.
func (r *recovery) choose(ctx context.Context) error {
	chains, others, err := r.repo.Chains(ctx)
	if err != nil {
		return err
	}
	if len(chains) == 0 {
		e := fault.New(fault.Gap, "%s holds nothing that can be recovered", r.Source).Keeping("nothing was written")
		if len(others) > 0 {
			return e.Because(others[0])
		}
		return e.Remedy("check the path given with --repository")
	}
	var chain incremental.Chain
	if r.Until != "" {
		chain, err = r.chooseStamp(chains)
	} else {
		chain, err = r.chooseMoment(chains)
	}
	if err != nil {
		return err
	}
	r.res.At, r.res.Chain, r.res.DryRun, r.res.Output = r.At, chain.Stamp, r.DryRun, r.Output
	for _, inc := range chain.Increments {
		if r.Until != "" && inc.Stamp > r.Until {
			break
		}
		if m := inc.Manifest; r.At.TID != 0 && m != nil && m.FirstTID > r.At.TID {
			break
		}
		r.increments = append(r.increments, inc)
		r.res.Increments = append(r.res.Increments, inc.Stamp)
		r.res.Size = inc.End
	}
	if len(r.increments) == 0 {
		return fault.New(fault.Gap, "%s holds nothing of %s", r.Source, r.At).Keeping("nothing was written")
	}
	return r.reaches(chain)
}

// reaches refuses when the chain is broken before the moment.
func (r *recovery) reaches(c incremental.Chain) error {
	if len(c.Problems) == 0 || len(r.increments) < len(c.Increments) {
		return nil
	}
	if m := c.Last().Manifest; r.At.TID != 0 && m != nil && m.LastTID >= r.At.TID {
		return nil
	}
	var p incremental.Problem
	for _, p = range c.Problems {
		if errors.Is(p, fault.Gap) || errors.Is(p, fault.Unverified) {
			break
		}
	}
	if errors.Is(p, fault.Refused) {
		return nil // of a stale master: not a part of the history
	}
	if r.Until != "" && p.File > string(r.Until)+"~" {
		return nil
	}
	e := fault.New(fault.Gap, "the chain %s is broken after position %d", c.Stamp, c.End()).Because(p).Keeping("nothing was written")
	if m := c.Last().Manifest; m != nil {
		return e.Remedy("bring the missing file back; or recover what is whole: --at %s (%s)", m.LastTID, stamp(m.LastTID))
	}
	return e.Remedy("bring the missing file back; or recover what is whole: zodbrepl repozo -R -D %s", c.Last().Stamp)
}

// chooseStamp does what repozo does: the newest full that is not newer than the date.
func (r *recovery) chooseStamp(chains []incremental.Chain) (incremental.Chain, error) {
	for i := len(chains) - 1; i >= 0; i-- {
		if chains[i].Stamp <= r.Until {
			return chains[i], nil
		}
	}
	return incremental.Chain{}, fault.New(fault.Gap, "no files in repository before %s", r.Until).Keeping("nothing was written")
}

// chooseMoment finds the chain that gives the moment: the one that was current then, or, when its last increment is
// older than the moment, the next, unless a pack has removed that moment from it.
func (r *recovery) chooseMoment(chains []incremental.Chain) (incremental.Chain, error) {
	newest := chains[len(chains)-1]
	if r.At.TID == 0 {
		return newest, nil
	}
	i := len(chains) - 1
	for i > 0 && made(chains[i]).After(r.At.Time) {
		i--
	}
	for ; i < len(chains); i++ {
		c := chains[i]
		packed, first := bounds(c)
		if r.At.TID < first && first != 0 {
			return c, fault.New(fault.Gap, "%s lies before the first transaction that is backed up, %s (%s)", r.At, first, stamp(first)).
				Keeping("nothing was written").Remedy("see what there is: zodbrepl list -r %s", r.Source)
		}
		last := lastTID(c)
		if r.At.TID < packed {
			e := fault.New(fault.Gap, "%s was removed by a pack before it was backed up", r.At).Keeping("nothing was written")
			if i > 0 {
				before := lastTID(chains[i-1])
				return c, e.Remedy("the nearest moments that can be had are %s (%s) and %s (%s): give one of these tids with --at",
					before, stamp(before), packed, stamp(packed))
			}
			return c, e.Remedy("the oldest moment that can be had is %s (%s): give this tid with --at", packed, stamp(packed))
		}
		if i == len(chains)-1 || last == 0 || r.At.TID <= last {
			return c, nil
		}
	}
	return newest, nil
}

// made returns when a chain's full was made.
func made(c incremental.Chain) time.Time { return c.Stamp.Time() }

// bounds returns the transaction that the chain's states begin with, and its first. What repozo wrote tells neither.
func bounds(c incremental.Chain) (packed, first filestorage.TID) {
	for _, inc := range c.Increments {
		if inc.Manifest == nil {
			continue
		}
		packed = max(packed, inc.Manifest.PackedTo)
		if inc.Kind == incremental.Full {
			first = inc.Manifest.FirstTID
		}
	}
	return packed, first
}

func lastTID(c incremental.Chain) filestorage.TID {
	if m := c.Last().Manifest; m != nil {
		return m.LastTID
	}
	return 0
}
