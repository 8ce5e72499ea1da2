package restore

import (
	"context"
	"errors"
	"slices"
	"strings"

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
	} else if chains, err = r.oneHistory(chains); err == nil {
		chain, err = r.chooseMoment(ctx, chains)
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
	return r.reaches(ctx, chain, others)
}

// oneHistory leaves out the chains that a stale master began after a promotion, and refuses two databases in one
// repository, where a moment means nothing.
func (r *recovery) oneHistory(chains []incremental.Chain) (kept []incremental.Chain, err error) {
	epoch := 0
	var first *incremental.Manifest
	for _, c := range chains {
		for i, inc := range c.Increments {
			m := inc.Manifest
			if m == nil {
				continue
			}
			if i == 0 && m.Epoch < epoch {
				r.Log.Warn("left out: a stale master wrote it after a promotion", "increment", m.File, "host", m.Host, "epoch", m.Epoch, "current", epoch)
				c.Increments = nil
				break
			}
			epoch = max(epoch, m.Epoch)
			if first == nil {
				first = m
			}
			if m.Lineage != first.Lineage {
				return nil, fault.New(fault.Diverged, "%s holds two lineages: %s (%s of host %s) and %s (%s of host %s)", r.Source,
					first.Lineage, first.File, first.Host, m.Lineage, m.File, m.Host).
					Keeping("nothing was written").Remedy("move the files of the other database to a directory of their own")
			}
		}
		if len(c.Increments) > 0 {
			kept = append(kept, c)
		}
	}
	return kept, nil
}

// reaches refuses when increments before the moment are missing or cannot be used.
func (r *recovery) reaches(ctx context.Context, c incremental.Chain, others []incremental.Problem) error {
	if len(r.increments) < len(c.Increments) {
		return nil // the chain goes on beyond the moment
	}
	var behind []incremental.Problem
	for _, p := range others {
		if stampOf(p) > c.Last().Stamp {
			behind = append(behind, p)
		}
	}
	for _, p := range slices.Concat(c.Problems, behind) {
		if errors.Is(p, fault.Refused) {
			continue // of a stale master: not a part of the history
		}
		if r.Until != "" && stampOf(p) > r.Until {
			continue
		}
		if r.At.TID != 0 {
			if s, err := r.survey(ctx, c); err == nil && s.last >= r.At.TID {
				return nil
			}
		}
		e := fault.New(fault.Gap, "the chain %s is broken after position %d", c.Stamp, c.End()).Because(p).Keeping("nothing was written")
		if m := c.Last().Manifest; m != nil {
			return e.Remedy("bring the missing file back; or recover what is whole: --at %s (%s)", m.LastTID, stamp(m.LastTID))
		}
		return e.Remedy("bring the missing file back; or recover what is whole: zodbrepl repozo -R -D %s", c.Last().Stamp)
	}
	return nil
}

// stampOf returns the stamp of the file that a problem is about.
func stampOf(p incremental.Problem) incremental.Stamp {
	stem, _, _ := strings.Cut(p.File, ".")
	return incremental.Stamp(stem)
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
// older than the moment, the next, unless a pack has removed that moment from it. When neither does, any chain that
// holds the moment will do: stamps and tids are of different clocks.
func (r *recovery) chooseMoment(ctx context.Context, chains []incremental.Chain) (incremental.Chain, error) {
	newest := len(chains) - 1
	if r.At.TID == 0 {
		return chains[newest], nil
	}
	current := newest
	for current > 0 && chains[current].Stamp.Time().After(r.At.Time) {
		current--
	}
	spans := make([]span, len(chains))
	var unreadable error
	for n := range chains {
		i := current + n
		if i > newest {
			i = newest - n // current-1, and further back
		}
		var err error
		spans[i], err = r.survey(ctx, chains[i])
		switch {
		case ctx.Err() != nil:
			return chains[i], ctx.Err()
		case err != nil: // another chain may have it
			r.Log.Warn("a chain cannot be read", "chain", chains[i].Stamp, "cause", err)
			if unreadable == nil {
				unreadable = err
			}
			spans[i] = span{}
		case r.At.TID >= spans[i].from() && (r.At.TID <= spans[i].last || i == newest):
			return chains[i], nil
		}
	}
	if unreadable != nil {
		return chains[current], fault.New(nil, "looking for %s", r.At).Because(unreadable).Keeping("nothing was written")
	}
	return chains[current], r.notThere(spans)
}

// notThere says that no chain has the moment, and which moments around it can be had.
func (r *recovery) notThere(spans []span) error {
	var before, after filestorage.TID
	for _, s := range spans {
		if s.last < r.At.TID {
			before = max(before, s.last)
		}
		if from := s.from(); from > r.At.TID && (after == 0 || from < after) {
			after = from
		}
	}
	switch {
	case before != 0:
		return fault.New(fault.Gap, "%s was removed by a pack before it was backed up", r.At).Keeping("nothing was written").
			Remedy("the nearest moments that can be had are %s (%s) and %s (%s): give one of these tids with --at",
				before, stamp(before), after, stamp(after))
	case slices.ContainsFunc(spans, func(s span) bool { return s.packed != 0 }):
		return fault.New(fault.Gap, "%s was removed by a pack before it was backed up", r.At).Keeping("nothing was written").
			Remedy("the oldest moment that can be had is %s (%s): give this tid with --at", after, stamp(after))
	}
	return fault.New(fault.Gap, "%s lies before the first transaction that is backed up, %s (%s)", r.At, after, stamp(after)).
		Keeping("nothing was written").Remedy("see what there is: zodbrepl list -r %s", r.Source)
}

// span is what of the history a chain holds. The zero span holds nothing.
type span struct {
	first, last filestorage.TID
	packed      filestorage.TID // the last transaction that a pack touched
}

// from returns the first transaction whose state the chain gives.
func (s span) from() filestorage.TID { return max(s.first, s.packed) }

// survey finds the span of a chain, as far as the moment. What has no manifest must be read for that.
func (r *recovery) survey(ctx context.Context, c incremental.Chain) (span, error) {
	var s span
	for _, inc := range c.Increments {
		if inc.Manifest == nil && s.last >= r.At.TID {
			continue // nothing in it matters; reading it costs
		}
		t, err := r.spanOf(ctx, inc)
		if err != nil {
			return s, err
		}
		if s.first == 0 {
			s.first = t.first
		}
		s.last, s.packed = max(s.last, t.last), max(s.packed, t.packed)
	}
	return s, nil
}

func (r *recovery) spanOf(ctx context.Context, inc incremental.Increment) (span, error) {
	if m := inc.Manifest; m != nil {
		return span{first: m.FirstTID, last: m.LastTID, packed: m.PackedTo}, nil
	}
	if s, ok := r.spans[inc.Stamp]; ok {
		return s, nil
	}
	check := filestorage.NewChecker(inc.File, inc.Start)
	if err := r.repo.Copy(ctx, inc, check); err != nil {
		return span{}, err
	}
	s := span{first: check.Extent().First, last: check.Extent().Last, packed: check.LastPacked()}
	if r.spans == nil {
		r.spans = make(map[incremental.Stamp]span)
	}
	r.spans[inc.Stamp] = s
	return s, nil
}
