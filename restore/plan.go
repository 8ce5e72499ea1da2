package restore

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// plan is what a repository offers to a standby.
type plan struct {
	steps []*incremental.Manifest // to apply, in order; the first may be a full
	head  *incremental.Manifest   // the newest increment of the newest epoch; nil when there is none
	// blocked says why the head is not reached with the steps: a gap, a manifest that cannot be read.
	blocked error
	// stale says that an older epoch is still being written.
	stale error
}

// planFor works out what brings the state to the repository's head. It reads only the manifests that are newer than
// the state. An error is about the repository as a whole: it cannot be read, or is of another lineage.
func planFor(ctx context.Context, repo *incremental.Repository, st State) (plan, error) {
	var p plan
	ms := make(map[incremental.Stamp]*incremental.Manifest)
	var sorted []*incremental.Manifest
	for _, stamp := range repo.ManifestStamps() {
		if stamp <= st.Applied.Stamp {
			continue
		}
		m, err := incremental.ReadManifest(ctx, repo.Source(), stamp)
		if ctx.Err() != nil {
			return p, ctx.Err()
		}
		if err != nil {
			if p.blocked == nil {
				p.blocked = err
			}
			continue
		}
		if st.Lineage != "" && m.Lineage != st.Lineage {
			return p, foreign(repo, m, st)
		}
		if len(sorted) > 0 && m.Lineage != sorted[0].Lineage {
			return p, fault.New(fault.Diverged, "%s holds two lineages: %s (%s) and %s (%s)", repo.Source(),
				sorted[0].Lineage, sorted[0].File, m.Lineage, m.File).
				Keeping("nothing was applied").Remedy("give every database a directory of its own")
		}
		ms[stamp] = m
		sorted = append(sorted, m)
	}
	for _, m := range sorted {
		if p.head == nil || m.Epoch >= p.head.Epoch {
			p.head = m
		}
	}
	if p.head != nil && p.head.Epoch < st.Epoch {
		p.head = nil
	}
	p.stale = staleAfter(sorted, p.head, st)
	if p.head == nil {
		return p, nil
	}
	var gap error
	if p.steps, gap = pathTo(ms, p.head, st); gap != nil {
		p.steps = p.forward(sorted, st)
		if p.blocked == nil {
			p.blocked = gap
		}
	}
	return p, nil
}

func foreign(repo *incremental.Repository, m *incremental.Manifest, st State) error {
	return fault.New(fault.Diverged, "%s is of lineage %s (%s of host %s), this standby is of lineage %s", repo.Source(), m.Lineage, m.File, m.Host, st.Lineage).
		Keeping("nothing was applied").
		Remedy("point --from at the repository of this database; to follow another one, move Data.fs and its state file away first")
}

// staleAfter reports increments of an older epoch that were written after the head, or after the state.
func staleAfter(sorted []*incremental.Manifest, head *incremental.Manifest, st State) error {
	epoch, after := st.Epoch, st.Applied.Stamp
	if head != nil {
		epoch, after = head.Epoch, head.Stamp
	}
	for _, m := range sorted {
		if m.Epoch < epoch && m.Stamp > after {
			return fault.New(fault.Refused, "%s was written in epoch %d by host %s, this standby is at epoch %d: a stale master is still writing", m.File, m.Epoch, m.Host, epoch).
				Keeping("the increment was not applied").
				Remedy("stop ZEO and the backups on %s; then move %s and its manifest out of the directory, and start watch again", m.Host, m.File)
		}
	}
	return nil
}

// pathTo walks back from the head to the state, or to a full. A gap is an error.
func pathTo(ms map[incremental.Stamp]*incremental.Manifest, head *incremental.Manifest, st State) (path []*incremental.Manifest, gap error) {
	for m := head; ; {
		path = append(path, m)
		if m.Kind == incremental.Full {
			break
		}
		if m.Previous == st.Applied.Stamp {
			if m.Start != st.Applied.Position {
				return nil, fault.New(fault.Gap, "%s continues position %d, this standby is at %d", m.File, m.Start, st.Applied.Position).
					Keeping("Data.fs is as it was").Remedy("make a new full on the master: zodbrepl backup --full, and ship it")
			}
			break
		}
		prev := ms[m.Previous]
		if prev == nil || prev.End != m.Start || prev.Epoch > m.Epoch {
			return nil, fault.New(fault.Gap, "%s continues the increment %s at position %d, which is not here", m.File, m.Previous, m.Start).
				Keeping("Data.fs is as it was").
				Remedy("ship again from the master; if the increment is lost there too, make a new full: zodbrepl backup --full, and ship it")
		}
		m = prev
	}
	slices.Reverse(path)
	return path, nil
}

// forward returns what can be applied in front of a gap.
func (p *plan) forward(sorted []*incremental.Manifest, st State) (steps []*incremental.Manifest) {
	at, position := st.Applied.Stamp, st.Applied.Position
	for _, m := range sorted {
		if m.Epoch == p.head.Epoch && m.Chain == p.head.Chain && m.Kind == incremental.Delta && m.Previous == at && m.Start == position {
			steps = append(steps, m)
			at, position = m.Stamp, m.End
		}
	}
	return steps
}

// segmentOf makes a replay's segment of a stored increment.
func segmentOf(repo *incremental.Repository, m *incremental.Manifest, now time.Time) (Segment, error) {
	inc, err := m.Increment()
	if err != nil {
		return Segment{}, fmt.Errorf("%s: %w", m.File, err)
	}
	return Segment{
		Lineage: m.Lineage, Epoch: m.Epoch, Start: m.Start,
		Applied: Applied{Chain: m.Chain, Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID, Tail: m.Tail,
			Time: now.UTC(), Whole: m.Kind == incremental.Full},
		Raw:       func(ctx context.Context, w io.Writer) error { return repo.Copy(ctx, inc, w) },
		Describes: func(c *filestorage.Checker) error { return m.Describes(c) },
	}, nil
}
