package transport

import (
	"context"
	"fmt"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// stale says whether m is an increment that a stale master wrote: of an epoch that was over when it was made.
func (s *shipment) stale(m, ours *incremental.Manifest) bool {
	end, ok := s.branch.End(m.Epoch)
	return ok && m.Stamp > end.Stamp && (ours == nil || ours.Epoch > m.Epoch)
}

// past decides about an increment of an older epoch on the target: a part of our history, or what a stale master wrote.
func (s *shipment) past(m, ours *incremental.Manifest, known bool) error {
	_, ok := s.branch.End(m.Epoch)
	switch {
	case !ok:
		return nil // which promotion ended that epoch is not known
	case s.stale(m, ours):
		s.strays = append(s.strays, m.Stamp)
		return nil
	case ours != nil || known:
		return nil
	}
	return fault.New(fault.Gap, "holds %s of epoch %d (host %s), which belongs to this history; this repository does not have it", m.File, m.Epoch, m.Host).
		Keeping("nothing was sent there").
		Remedy("back up into a repository that has it, such as that one; or bring it here first, with ship from there")
}

// unmanifested finds increments without a manifest that are not ours, and newer than the promotion: a stale master has put
// them there with repozo or rsync, or his ship was cut off.
func (s *shipment) unmanifested(v *inventory, known map[incremental.Stamp]bool) {
	after := s.branch.Last().Stamp
	if after == "" {
		return
	}
	seen := make(map[incremental.Stamp]bool)
	for name := range v.sizes {
		stamp, ok := incremental.StampOfData(name)
		if _, has := v.sizes[incremental.ManifestName(stamp)]; !ok || has || stamp <= after || known[stamp] || seen[stamp] {
			continue
		}
		seen[stamp] = true
		s.strays = append(s.strays, stamp)
	}
}

// setAside renames what a stale master wrote: before anything of ours takes its names, and so that no standby takes it.
func (s *shipment) setAside(ctx context.Context, v *inventory) error {
	for _, stamp := range s.strays {
		aside, err := v.repo.SetAside(ctx, s.target, stamp)
		for _, name := range aside {
			s.Log.Warn("a stale master has written to the target: it is set aside", "target", s.where, "increment", name, "epoch", s.epoch)
		}
		if err != nil {
			return fmt.Errorf("increment %s of a stale master could not be set aside: %w", stamp, err)
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
	if len(s.branch) == 0 || s.fenced >= s.epoch {
		return nil
	}
	p := s.branch.Last()
	doc, err := incremental.Fence{Lineage: own.Lineage, Epoch: p.Epoch, Where: "the promotion of host " + p.Host, Seen: p.Time}.Encode()
	if err != nil {
		return err
	}
	return s.small(ctx, incremental.FenceName, doc)
}
