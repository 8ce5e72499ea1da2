package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

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
	// strays are a stale master's increments, which belong to no history.
	strays []*incremental.Manifest
}

// planFor works out what brings the state to the repository's head. It reads only the manifests that are newer than
// the state, and the state's own. An error is about the repository as a whole: it cannot be read, is of another lineage,
// or has another history.
func planFor(ctx context.Context, repo *incremental.Repository, st State) (plan, error) {
	var p plan
	ms := make(map[incremental.Stamp]*incremental.Manifest)
	var sorted []*incremental.Manifest
	var unread incremental.Stamp // the last that is newer than the state
	known := st.Applied.Position == 0
	for _, stamp := range repo.ManifestStamps() {
		known = known || stamp >= st.Applied.Stamp
		if stamp <= st.Applied.Stamp {
			continue
		}
		m, err := incremental.ReadManifest(ctx, repo.Source(), stamp)
		if ctx.Err() != nil {
			return p, ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			if !errors.Is(err, fault.Unverified) {
				err = unreadable(err)
			}
			if p.blocked == nil {
				p.blocked = err
			}
			unread = stamp
			continue
		}
		if st.Lineage != "" && m.Lineage != st.Lineage {
			return p, foreign(repo, m, st)
		}
		if m.Epoch >= st.Epoch && !st.Promotions.ContinuedBy(m.Promotions) {
			return p, parted(repo, m, st)
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
	if err := oneBranch(repo, sorted, p.head); err != nil {
		return p, err
	}
	if err := overtaken(ctx, repo, p.head, st); err != nil {
		return p, err
	}
	p.stale = p.strayed(sorted, st)
	if p.head == nil {
		if p.blocked == nil && p.stale == nil {
			if !known {
				if err := elsewhere(ctx, repo, st); err != nil {
					return p, err
				}
			}
			p.blocked = nothing(repo, st, known)
		}
		return p, nil
	}
	var broken error
	if p.steps, broken = pathTo(ms, p.head, st); broken == nil {
		if unread < p.head.Stamp {
			p.blocked = nil // the head is reached without it
		}
		return p, sameHistory(ctx, repo, p.steps, st)
	}
	if errors.Is(broken, fault.Diverged) {
		return p, broken
	}
	p.steps = p.forward(ms, sorted, st)
	if p.blocked == nil {
		p.blocked = broken
	}
	return p, sameHistory(ctx, repo, p.steps, st)
}

// nothing says why a repository that has nothing new should have something. known says whether it has the state's
// increment: an empty mount point has not.
func nothing(repo *incremental.Repository, st State, known bool) error {
	switch {
	case st.Applied.Position == 0:
		return fault.New(fault.Gap, "%s holds no full to begin with", repo.Source()).
			Keeping("nothing was changed").Remedy("run on the master: zodbrepl backup, then zodbrepl ship")
	case !known:
		return fault.New(fault.Gap, "%s has neither the increment %s, which was applied last, nor a newer one", repo.Source(), st.Applied.Stamp).
			Keeping("Data.fs is as it was").Remedy("see whether it is the right directory, and mounted; then ship again from the master")
	}
	return nil
}

// overtaken refuses to wait for more where a new master writes increments with older stamps than the last that was applied
// here, which was a stale master's: the clock of that one was ahead. The place's fence tells of the new master; where it
// tells of no other, no older manifest is read.
func overtaken(ctx context.Context, repo *incremental.Repository, head *incremental.Manifest, st State) error {
	if st.Applied.Position == 0 || head != nil && head.Epoch > st.Epoch || !repo.Fenced() {
		return nil
	}
	fence, err := incremental.ReadFence(ctx, repo.Source())
	if err != nil {
		return unreadable(err)
	}
	if fence.Lineage != st.Lineage || fence.Epoch <= st.Epoch {
		return nil
	}
	for _, stamp := range slices.Backward(repo.ManifestStamps()) {
		if stamp > st.Applied.Stamp {
			continue
		}
		m, err := incremental.ReadManifest(ctx, repo.Source(), stamp)
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fault.Unverified):
			return unreadable(err)
		case err == nil && m.Epoch > st.Epoch:
			return leftBehind(m, st)
		}
	}
	return nil
}

// elsewhere refuses a place that ends before what was applied, when what it ends with is of another history: of the other
// of two masters, whose clock is behind, say.
func elsewhere(ctx context.Context, repo *incremental.Repository, st State) error {
	for _, stamp := range slices.Backward(repo.ManifestStamps()) {
		m, err := incremental.ReadManifest(ctx, repo.Source(), stamp)
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fault.Unverified):
			continue
		case err != nil:
			return unreadable(err)
		case m.Lineage != st.Lineage:
			return foreign(repo, m, st)
		case m.Epoch > st.Epoch:
			return leftBehind(m, st)
		case m.Epoch == st.Epoch && !st.Promotions.ContinuedBy(m.Promotions):
			return parted(repo, m, st)
		}
		return nil
	}
	return nil
}

// leftBehind says that this standby has followed a stale master for too long.
func leftBehind(m *incremental.Manifest, st State) error {
	if m.Previous == st.Applied.Stamp { // two masters have used one stamp
		return fault.New(fault.Diverged, "%s of epoch %d continues another increment %s than the one that this standby has applied (up to transaction %s), which the host that was promoted never had",
			m.File, m.Epoch, m.Previous, st.Applied.LastTID).
			Keeping("Data.fs is as it was").Remedy(followNew)
	}
	return fault.New(fault.Diverged, "%s of epoch %d continues the increment %s; this standby has applied %s since (up to transaction %s), which the host that was promoted never had",
		m.File, m.Epoch, m.Previous, st.Applied.Stamp, st.Applied.LastTID).
		Keeping("Data.fs is as it was").Remedy(followNew)
}

const followNew = "make it a standby of that host, which keeps what only this one has: zodbrepl rejoin --data DATA.FS --from DIR"

// sameHistory refuses deltas that continue another increment of the same stamp than the one that was applied. Their
// own tail proof shows that only when they are short.
func sameHistory(ctx context.Context, repo *incremental.Repository, steps []*incremental.Manifest, st State) error {
	if len(steps) == 0 || steps[0].Kind == incremental.Full || !slices.Contains(repo.ManifestStamps(), st.Applied.Stamp) {
		return nil
	}
	m, err := incremental.ReadManifest(ctx, repo.Source(), st.Applied.Stamp)
	if err != nil {
		return ctx.Err() // it is not needed; the deltas bring their own proof
	}
	if a := st.Applied; m.End == a.Position && m.LastTID == a.LastTID && m.Tail == a.Tail && m.Lineage == st.Lineage {
		return nil
	}
	return fault.New(fault.Diverged, "%s/%s is not the increment %s that was applied here: the directory has another history", repo.Source(), m.File, st.Applied.Stamp).
		Keeping("nothing was applied").
		Remedy("point --from at the directory that was followed before; to follow this one: zodbrepl rejoin --data DATA.FS --from %s", repo.Source())
}

func foreign(repo *incremental.Repository, m *incremental.Manifest, st State) error {
	return fault.New(fault.Diverged, "%s is of lineage %s (%s of host %s), this standby is of lineage %s", repo.Source(), m.Lineage, m.File, m.Host, st.Lineage).
		Keeping("nothing was applied").
		Remedy("point --from at the repository of this database; to follow another one, move Data.fs and its state file away first")
}

// oneBranch refuses a place where two hosts write that were promoted to the same epoch, neither knowing of the other.
func oneBranch(repo *incremental.Repository, sorted []*incremental.Manifest, head *incremental.Manifest) error {
	for _, m := range sorted {
		if head != nil && m.Epoch == head.Epoch && !m.Promotions.ContinuedBy(head.Promotions) {
			return fault.New(fault.Diverged, "%s holds increments of two hosts that were promoted to epoch %d: %s of %s and %s of %s",
				repo.Source(), m.Epoch, m.File, m.Host, head.File, head.Host).
				Keeping("nothing was applied").Remedy("%s", splitBrain)
		}
	}
	return nil
}

const splitBrain = "decide which of the two is the master (zodbrepl diff shows what each has) and stop ZEO and the backups on the other; there, and on its standbys, " +
	"zodbrepl rejoin; see \"Split brain\" in docs/operations.md"

// parted refuses an increment of another branch than the standby's: it follows another promotion.
func parted(repo *incremental.Repository, m *incremental.Manifest, st State) error {
	own := st.Promotions.Last()
	return fault.New(fault.Diverged, "%s/%s (epoch %d, of host %s) does not continue the promotion to epoch %d of host %s, which this node follows: two hosts were promoted",
		repo.Source(), m.File, m.Epoch, m.Host, own.Epoch, own.Host).
		Keeping("nothing was applied").Remedy("%s", splitBrain)
}

// strayed finds the increments of a stale master. A promotion tells after which increment its epoch is over; where no
// promotion is known, what comes after the head is. An error when one is newer than all that can be applied: it is
// still being written.
func (p *plan) strayed(sorted []*incremental.Manifest, st State) error {
	epoch, branch, after := st.Epoch, st.Promotions, st.Applied.Stamp
	if p.head != nil {
		epoch, branch, after = p.head.Epoch, p.head.Promotions, p.head.Stamp
	}
	var newest *incremental.Manifest
	for _, m := range sorted {
		end, known := branch.End(m.Epoch)
		switch {
		case m.Epoch >= epoch, known && m.Stamp <= end.Stamp, !known && m.Stamp <= after:
			continue
		}
		p.strays = append(p.strays, m)
		if m.Stamp > after {
			newest = m
		}
	}
	if newest == nil {
		return nil
	}
	return fault.New(fault.Refused, "%s was written in epoch %d by host %s, this standby is at epoch %d: a stale master is still writing", newest.File, newest.Epoch, newest.Host, epoch).
		Keeping("the increment was not applied").
		Remedy("stop ZEO and the backups on %s; see that no %s is left in the directory (or move it out), and start watch again", newest.Host, newest.File)
}

// pathTo walks back from the head to the state, or to a full. A gap is an error.
func pathTo(ms map[incremental.Stamp]*incremental.Manifest, head *incremental.Manifest, st State) (path []*incremental.Manifest, gap error) {
	for m := head; ; {
		path = append(path, m)
		if m.Kind == incremental.Full {
			break
		}
		if m.Previous == st.Applied.Stamp {
			if m.Start != st.Applied.Position && m.Epoch > st.Epoch {
				return nil, leftBehind(m, st)
			}
			if m.Start != st.Applied.Position {
				return nil, fault.New(fault.Gap, "%s continues position %d, this standby is at %d", m.File, m.Start, st.Applied.Position).
					Keeping("Data.fs is as it was").Remedy("make a new full on the master: zodbrepl backup --full, and ship it")
			}
			break
		}
		prev := ms[m.Previous]
		if prev == nil && m.Epoch > st.Epoch && m.Previous < st.Applied.Stamp {
			return nil, leftBehind(m, st)
		}
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

// forward returns what can be applied in front of a gap: the way to the last increment that there is one to. Those
// of an older epoch than the head's may be a stale master's.
func (p *plan) forward(ms map[incremental.Stamp]*incremental.Manifest, sorted []*incremental.Manifest, st State) []*incremental.Manifest {
	for _, m := range slices.Backward(sorted) {
		if m.Epoch != p.head.Epoch {
			continue
		}
		if path, gap := pathTo(ms, m, st); gap == nil {
			return path
		}
	}
	return nil
}

// segmentOf makes a replay's segment of a stored increment.
func segmentOf(repo *incremental.Repository, m *incremental.Manifest) (Segment, error) {
	inc, err := m.Increment()
	if err != nil {
		return Segment{}, fmt.Errorf("%s: %w", m.File, err)
	}
	return Segment{
		Lineage: m.Lineage, Epoch: m.Epoch, Promotions: m.Promotions, Start: m.Start,
		Applied: Applied{Chain: m.Chain, Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID, Tail: m.Tail,
			Whole: m.Kind == incremental.Full},
		Raw:       func(ctx context.Context, w io.Writer) error { return repo.Copy(ctx, inc, w) },
		Describes: func(c *filestorage.Checker) error { return m.Describes(c) },
	}, nil
}
