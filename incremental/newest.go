package incremental

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"zodbrepl/internal/fault"
)

// Unpublished returns the names of increments that have neither a manifest nor a line in a .dat: what a run that
// was killed left, or one that is being written.
func (r *Repository) Unpublished(ctx context.Context) ([]string, error) {
	var names []string
	for i, s := range r.sets {
		if s.manifest || len(s.data) == 0 {
			continue
		}
		listed := make(map[string]bool)
		if f := r.full(i); f >= 0 {
			lines, _, err := r.dat(ctx, r.sets[f].stamp)
			if err != nil {
				return nil, err
			}
			for _, l := range lines {
				listed[l.file] = true
			}
		}
		for _, d := range s.data {
			if !listed[d.name] {
				names = append(names, d.name)
			}
		}
	}
	return names, nil
}

// Manifests reads every manifest, oldest first. One that cannot be read is among the problems.
func (r *Repository) Manifests(ctx context.Context) (ms []*Manifest, problems []Problem, err error) {
	for _, s := range r.sets {
		if !s.manifest {
			continue
		}
		m, err := r.manifest(ctx, s.stamp)
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case errors.Is(err, fs.ErrNotExist): // removed since the listing
		case err != nil:
			problems = append(problems, Problem{ManifestName(s.stamp), err})
		default:
			ms = append(ms, m)
		}
	}
	return ms, problems, nil
}

// errNoChain says that a repository has no usable increment.
var errNoChain = errors.New("no increment")

// last returns the last published increment and its chain's full, reading as little as it can: when the newest
// increment has its manifest, only that. chain is the stamp of the full.
func (r *Repository) last(ctx context.Context) (inc Increment, err error) {
	for i := len(r.sets) - 1; i >= 0; i-- {
		s := r.sets[i]
		if s.manifest && len(s.data) == 1 && s.irregular == "" {
			m, err := r.manifest(ctx, s.stamp)
			if err != nil {
				return inc, err
			}
			if m.File != s.data[0].name {
				return inc, fault.New(fault.Unverified, "%s/%s: the manifest is of %s", r.src, s.data[0].name, m.File)
			}
			return incrementOf(m, s.data[0].codec), nil
		}
		if len(s.data) > 0 {
			return r.lastListed(ctx, i)
		}
	}
	return inc, errNoChain
}

// lastListed finds the last increment when the newest one is not ours.
func (r *Repository) lastListed(ctx context.Context, i int) (inc Increment, err error) {
	for f := r.full(i); f >= 0; f = r.full(f - 1) {
		c, err := r.chain(ctx, r.sets[f:i+1])
		if err != nil {
			return inc, err
		}
		if len(c.Problems) > 0 {
			return inc, fmt.Errorf("%s: chain %s: %w", r.src, c.Stamp, c.Problems[0])
		}
		if len(c.Increments) > 0 {
			return c.Last(), nil
		}
		i = f - 1 // that full was never published
	}
	return inc, errNoChain
}
