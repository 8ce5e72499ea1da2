package transport

import (
	"context"
	"fmt"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// past decides about an increment of an older epoch on the target: a part of our history, or what a stale master wrote.
func (s *shipment) past(own, m, ours *incremental.Manifest, known bool) error {
	end, ok := own.Promotions.End(m.Epoch)
	switch {
	case !ok:
		return nil // which promotion ended that epoch is not known
	case m.Stamp > end.Stamp && (ours == nil || ours.Epoch > m.Epoch):
		s.strays = append(s.strays, m)
		return nil
	case ours != nil || known:
		return nil
	}
	return fault.New(fault.Gap, "holds %s of epoch %d (host %s), which belongs to this history; this repository does not have it", m.File, m.Epoch, m.Host).
		Keeping("nothing was sent there").
		Remedy("back up into a repository that has it, such as that one; or bring it here first, with ship from there")
}

// setAside renames what a stale master wrote: before anything of ours takes its names, and so that no standby takes it.
func (s *shipment) setAside(ctx context.Context, own *incremental.Manifest, v *inventory) error {
	for _, m := range s.strays {
		aside, err := v.repo.SetAside(ctx, s.target, m.Stamp)
		for _, name := range aside {
			s.Log.Warn("a stale master has written to the target: it is set aside", "target", s.where, "increment", name, "epoch", own.Epoch)
		}
		if err != nil {
			return fmt.Errorf("%s of a stale master could not be set aside: %w", m.File, err)
		}
	}
	return nil
}

// targetFence learns from the target's fence that another host was promoted.
func (s *shipment) targetFence(ctx context.Context, own *incremental.Manifest, v *inventory) error {
	s.fenced = 0
	if _, ok := v.sizes[incremental.FenceName]; !ok {
		return nil
	}
	fence, err := incremental.ReadFence(ctx, s.target)
	if err != nil {
		return err
	}
	s.fenced = fence.Epoch
	if fence.Lineage == own.Lineage && fence.Epoch > s.epoch {
		return s.raiseFence(fence.Lineage, fence.Epoch, fmt.Sprintf("the fence on %s (%s)", s.where, fence.Where))
	}
	return nil
}

// raiseTargetFence makes our epoch known on the target before the first of our increments is there: a stale master that
// ships may not look at every manifest.
func (s *shipment) raiseTargetFence(ctx context.Context, own *incremental.Manifest) error {
	if len(own.Promotions) == 0 || s.fenced >= own.Epoch {
		return nil
	}
	p := own.Promotions.Last()
	doc, err := incremental.Fence{Lineage: own.Lineage, Epoch: p.Epoch, Where: "the promotion of host " + p.Host, Seen: p.Time}.Encode()
	if err != nil {
		return err
	}
	return s.small(ctx, incremental.FenceName, doc)
}
