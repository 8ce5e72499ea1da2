package restore

import (
	"context"
	"errors"

	"zodbrepl/incremental"
)

// catchUp applies what the source offers, and returns how many increments that were.
func (s *standby) catchUp(ctx context.Context, src incremental.Source) (applied int, err error) {
	if s.state.Next != nil {
		if err := s.resume(ctx, src); err != nil {
			return 0, err
		}
	}
	adopting := s.file != nil && s.state.Applied.Position == 0 && s.found == 0
	if !adopting {
		if err := s.unchanged(); err != nil {
			return 0, err
		}
	}
	for {
		listing := s.health.clocked()
		repo, err := incremental.Open(ctx, src)
		if err != nil {
			return applied, unreadable(err)
		}
		if adopting {
			if err := s.adopt(ctx, repo); err != nil {
				return applied, err
			}
			adopting = false
		}
		p, err := planFor(ctx, repo, s.state)
		if err != nil {
			return applied, err
		}
		s.health.saw(listing, p.head)
		for _, m := range p.steps {
			if err := s.apply(ctx, repo, m); err != nil {
				return applied, errors.Join(p.stale, err)
			}
			applied++
		}
		s.strays, s.strayed = p.strays, repo
		s.offers = repo.Offers(s.state.Applied.Stamp)
		if p.stale != nil || p.blocked != nil || len(p.steps) == 0 {
			return applied, errors.Join(p.stale, p.blocked)
		}
	}
}

func (s *standby) apply(ctx context.Context, repo *incremental.Repository, m *incremental.Manifest) error {
	if s.allowed != nil {
		if err := s.allowed(); err != nil {
			return err
		}
	}
	seg, err := segmentOf(repo, m)
	if err != nil {
		return err
	}
	if seg.Whole {
		return s.replace(ctx, seg)
	}
	return s.append(ctx, seg)
}
