package transport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// inventory is what a target has.
type inventory struct {
	repo   *incremental.Repository
	oldest incremental.Stamp    // of its chains; "" when it has none
	sizes  map[string]int64     // of the regular files, in bytes
	temps  map[string]time.Time // when each of our temporary files was written to last
	newest time.Time            // when any file was, by the target's clock
}

// inspect reads what the target has and refuses one that must not be written to.
func (s *shipment) inspect(ctx context.Context) (*inventory, error) {
	entries, err := s.target.List(ctx)
	if err != nil {
		return nil, err
	}
	v := &inventory{sizes: make(map[string]int64), temps: make(map[string]time.Time)}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			v.note(fi)
		}
	}
	if v.repo, err = incremental.Open(ctx, s.target); err != nil {
		return nil, err
	}
	if err := s.repo.Mixes(v.repo); err != nil {
		return nil, err
	}
	own := s.chains[len(s.chains)-1].Last().Manifest
	if err := s.targetFence(ctx, own, v); err != nil {
		return nil, err
	}
	s.strays = nil
	if err := s.sameHistory(ctx, own, v); err != nil {
		return nil, err
	}
	if err := s.answers(ctx, own, v); err != nil {
		return nil, err
	}
	if len(s.strays) > 0 {
		if err := s.setAside(ctx, v); err != nil {
			return nil, err
		}
		return s.inspect(ctx) // it is another place now
	}
	return v, s.raiseTargetFence(ctx, own)
}

// sameHistory refuses a target with another history than ours, and finds its oldest chain. It reads only the
// manifests there that are not ours, the newest, and of those that are older than all of ours the newest.
func (s *shipment) sameHistory(ctx context.Context, own *incremental.Manifest, v *inventory) error {
	mine, chain := make(map[incremental.Stamp]*incremental.Manifest), make(map[incremental.Stamp]incremental.Stamp)
	for _, c := range s.chains {
		for _, inc := range c.Increments {
			mine[inc.Stamp], chain[inc.Stamp] = inc.Manifest, c.Stamp
		}
	}
	known := s.known()
	stamps := v.repo.ManifestStamps()
	for i, stamp := range stamps {
		ours := mine[stamp]
		older := stamp < s.chains[0].Stamp // pruned here, or written before this repository was begun
		last := i == len(stamps)-1 || older && stamps[i+1] >= s.chains[0].Stamp
		if !last && (older || s.looksSame(ours, v)) {
			continue
		}
		m, err := incremental.ReadManifest(ctx, s.target, stamp)
		switch {
		case err == nil:
			err = s.compatible(own, m, ours, older || known[stamp])
		case ctx.Err() == nil && (ours != nil || errors.Is(err, fs.ErrNotExist)):
			err = nil // it is sent again; or was removed just now
		}
		if err != nil {
			return err
		}
	}
	s.unmanifested(v, known)
	if len(stamps) > 0 {
		if v.oldest = chain[stamps[0]]; v.oldest == "" {
			v.oldest = stamps[0]
		}
	}
	return nil
}

// known returns the stamps that this repository has or had, also behind a gap.
func (s *shipment) known() map[incremental.Stamp]bool {
	known := make(map[incremental.Stamp]bool)
	for _, stamp := range s.repo.ManifestStamps() {
		known[stamp] = true
	}
	for _, c := range s.chains {
		for _, p := range c.Problems {
			known[stampOf(p)] = true
		}
	}
	return known
}

// looksSame says whether the target has a manifest of the size of ours.
func (s *shipment) looksSame(ours *incremental.Manifest, v *inventory) bool {
	if ours == nil {
		return false
	}
	name := incremental.ManifestName(ours.Stamp)
	size, there := v.sizes[name]
	if !there {
		return false
	}
	fi, err := os.Lstat(s.Repository.Path(name))
	return err == nil && size == fi.Size()
}

// compatible refuses a target whose manifest m shows another history than that of our newest increment, own, and of the
// promoted node that has written none since. ours is our manifest with the stamp of m, nil when there is none; known says
// that we had one.
func (s *shipment) compatible(own, m, ours *incremental.Manifest, known bool) error {
	switch {
	case m.Lineage != own.Lineage:
		return fault.New(fault.Diverged, "holds lineage %s (%s of host %s), this repository is of lineage %s", m.Lineage, m.File, m.Host, own.Lineage).
			Keeping("nothing was sent there").Remedy("give every database a target directory of its own")
	case m.Epoch > s.epoch:
		return s.raiseFence(m.Lineage, m.Epoch, fmt.Sprintf("%s on %s, written by host %s", m.File, s.where, m.Host))
	case m.Epoch < s.epoch && (m.Epoch != own.Epoch || s.stale(m, ours)):
		return s.past(m, ours, known)
	case len(m.Promotions) > 0 && len(s.branch) > 0 && !s.branch.Has(m.Promotions.Last()):
		return fault.New(fault.Diverged, "holds %s of host %s, which was promoted to epoch %d as well as this one: two masters", m.File, m.Host, m.Epoch).
			Keeping("nothing was sent there").Remedy("decide which of the two is the master; see \"Split brain\" in docs/operations.md")
	case ours != nil && ours.Start == m.Start && ours.End == m.End && ours.MD5 == m.MD5 && ours.Tail == m.Tail:
		return nil
	case ours == nil && known:
		return nil
	case ours != nil:
		return fault.New(fault.Diverged, "holds another %s than this repository, written by host %s in this epoch (%d) at %s", m.File, m.Host, m.Epoch, m.Created.Format(time.RFC3339)).
			Keeping("nothing was sent there").
			Remedy("find out which host is the master; one repository feeds one target. If both are this host, the manifest there is damaged: remove it there and ship again")
	}
	return fault.New(fault.Diverged, "holds %s, written by host %s in this epoch (%d), which this repository does not have", m.File, m.Host, m.Epoch).
		Keeping("nothing was sent there").Remedy("find out which host is the master; one repository feeds one target")
}

// raiseFence records a higher epoch and refuses. That it could not be recorded does not make it less of a refusal.
func (s *shipment) raiseFence(lineage string, epoch int, where string) error {
	fence := incremental.Fence{Lineage: lineage, Epoch: epoch, Where: where, Seen: time.Now()}
	s.fence.Lock()
	err := fence.Raise(s.Repository)
	s.fence.Unlock()
	refusal := superseded(epoch, where)
	if err != nil {
		return refusal.Because(fmt.Errorf("this could not be recorded in %s: %w", s.Repository, err)).
			Remedy("stop the ZEO server and the backups here; keep this Data.fs, it may hold transactions that the new master lacks")
	}
	return refusal
}

func superseded(epoch int, where string) *fault.Error {
	return fault.New(fault.Refused, "another host was promoted: epoch %d was seen at %s", epoch, where).
		Keeping("nothing was sent there").
		Remedy("stop the ZEO server here; keep this Data.fs, it may hold transactions that the new master lacks; backup and ship refuse from now on")
}

// answers reads what the standbys say that read the target.
func (s *shipment) answers(ctx context.Context, own *incremental.Manifest, v *inventory) error {
	answers, problems, err := incremental.ReadAnswers(ctx, s.target)
	if err != nil {
		return err
	}
	for _, p := range problems {
		s.Log.Warn("a standby's answer cannot be read", "target", s.where, "cause", p)
	}
	s.res.Standbys = append(s.res.Standbys, answers...)
	for _, a := range answers {
		if a.Lineage == own.Lineage && a.Epoch > s.epoch {
			return s.raiseFence(a.Lineage, a.Epoch, fmt.Sprintf("the standby %s on host %s", a.Data, a.Host))
		}
		if a.Lineage == own.Lineage && a.Role == "standby" {
			s.tellLag(a, v)
		}
		if a.Condition != "" && a.Condition != "current" {
			s.Log.Warn("a standby does not follow", "target", s.where, "standby", a.Host, "condition", a.Condition, "cause", a.Message)
		}
	}
	return nil
}
