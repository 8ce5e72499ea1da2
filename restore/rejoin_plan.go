package restore

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// plan finds the new history, the last position that Data.fs has in common with it, and what that asks for. It
// changes nothing.
func (r *rejoin) plan(ctx context.Context) (err error) {
	if r.repo, err = incremental.Open(ctx, r.Source); err != nil {
		return unreadable(err)
	}
	if err := r.findHead(ctx); err != nil {
		return err
	}
	res := &r.res
	res.Lineage, res.Host, res.Newest = r.head.Lineage, r.head.Host, markAt(r.head.End, r.head.LastTID)
	follows, err := r.follows(ctx)
	if err != nil {
		return err
	}
	if follows {
		res.Way, res.Common, res.Applied = RejoinNothing, markAt(r.state.Applied.Position, r.state.Applied.LastTID), &r.state.Applied
		return nil
	}
	if err := r.mayFollow(ctx); err != nil {
		return err
	}
	if r.file == nil {
		return errors.Join(r.planNone(), r.space())
	}
	at, next, err := r.search()
	if err != nil {
		return err
	}
	if at == nil {
		err = r.planFull(ctx, next)
	} else {
		err = r.planDeltas(ctx, at, next)
	}
	return errors.Join(err, r.space())
}

// planNone is for a standby that has no Data.fs: a former run has moved it away, or something else stands in its place.
func (r *rejoin) planNone() (err error) {
	res := &r.res
	res.Way, res.Needed = RejoinFull, r.head.End
	if p := r.state.Rejoin; r.size == 0 && p.pending() {
		res.Common, res.Saved = p.Common, p.Saved
	}
	if r.size > 0 {
		r.extra = true
		res.Saved, err = r.wholeName(0)
	}
	return err
}

func (r *rejoin) space() (err error) {
	r.res.Free, err = freeSpace(r.Data)
	return err
}

// findHead finds the newest increment of the newest epoch. A host that was promoted and has backed up nothing yet has
// told what it ends with.
func (r *rejoin) findHead(ctx context.Context) error {
	all, problems, err := r.repo.Manifests(ctx)
	if err != nil {
		return unreadable(err)
	}
	r.ms = make(map[incremental.Stamp]*incremental.Manifest, len(all))
	for _, m := range all {
		switch {
		case r.state.Lineage != "" && m.Lineage != r.state.Lineage:
			return r.foreign(m)
		case m.Lineage != all[0].Lineage:
			return fault.New(fault.Diverged, "%s holds two lineages: %s (%s) and %s (%s)", r.Source, all[0].Lineage, all[0].File, m.Lineage, m.File).
				Keeping("nothing was changed").Remedy("give every database a directory of its own")
		}
		r.ms[m.Stamp] = m
		if r.head == nil || m.Epoch >= r.head.Epoch {
			r.head = m
		}
	}
	r.problems = problems
	if r.head == nil {
		return r.noOther(ctx, fault.New(fault.Refused, "%s holds no increment to compare %s with: no other host was promoted, as far as it tells", r.Source, r.Data).
			Keeping("nothing was changed").Remedy("check the path given with --from; the new master fills it: zodbrepl backup"))
	}
	r.res.Epoch, r.branch = r.head.Epoch, r.head.Promotions
	if err := oneBranch(r.repo, all, r.head); err != nil {
		return err
	}
	return r.findPromoted(ctx)
}

func (r *rejoin) foreign(m *incremental.Manifest) error {
	return fault.New(fault.Diverged, "%s is of lineage %s (%s of host %s), this node is of lineage %s", r.Source, m.Lineage, m.File, m.Host, r.state.Lineage).
		Keeping("nothing was changed").
		Remedy("point --from at the repository of this database; to follow another one, move %s and %s away and start watch", r.Data, statePath(r.Data))
}

// findPromoted looks for a host that was promoted after the head was written.
func (r *rejoin) findPromoted(ctx context.Context) error {
	answers, _, err := incremental.ReadAnswers(ctx, r.Source)
	if err != nil {
		return unreadable(err)
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	for _, a := range answers {
		if a.Lineage != r.head.Lineage || a.Role != string(Promoted) || a.Epoch <= r.res.Epoch || a.Host == host && a.Data == r.Data {
			continue
		}
		m := r.ms[a.Stamp]
		if m == nil {
			return fault.New(fault.Gap, "%s of %s was promoted (epoch %d), and %s does not have the increment %s that it ended with", a.Data, a.Host, a.Epoch, r.Source, a.Stamp).
				Keeping("nothing was changed").Remedy("back up there into this directory, then run it again: zodbrepl backup -f %s -r %s", a.Data, r.Source)
		}
		r.head, r.res.Epoch, r.branch = m, a.Epoch, nil
		if a.Promotion.ID != "" {
			r.branch = m.Promotions.With(a.Promotion)
		}
	}
	return nil
}

// epoch is the node's own: that of what it wrote.
func (r *rejoin) epoch() int {
	if r.state.Rejoin.pending() {
		return r.state.Rejoin.Epoch
	}
	return max(r.state.Epoch, 1)
}

// noOther returns refusal, which says that no other host was promoted after this one. It is another error when the source has
// something that cannot be read or followed, and that may tell of one: a cluster manager lets a former master serve again
// on the refusal, and on nothing else.
func (r *rejoin) noOther(ctx context.Context, refusal error) error {
	own := max(r.state.Epoch, 1)
	gap := func(format string, args ...any) *fault.Error {
		return fault.New(fault.Gap, format, args...).Keeping("nothing was changed").
			Remedy("let the host that was promoted back up into %s; then run it again", r.Source)
	}
	for _, p := range r.problems {
		if r.head == nil || p.File > incremental.ManifestName(r.head.Stamp) {
			return gap("%s holds %s, which cannot be read: it may be of a host that was promoted", r.Source, p.File).Because(p.Err)
		}
	}
	fence, err := incremental.ReadFence(ctx, r.Source)
	if err != nil {
		return unreadable(err)
	}
	if fence.Epoch > own && (r.state.Lineage == "" || fence.Lineage == r.state.Lineage) {
		return gap("another host was promoted: epoch %d was seen at %s, and %s holds no increment of it", fence.Epoch, fence.Where, r.Source)
	}
	last := r.state.Promotions.Last()
	if p := fence.Promotion; p != nil && last.ID != "" && p.Epoch == last.Epoch && p.ID != last.ID && fence.Lineage == r.state.Lineage {
		return r.twoMasters(*p).Remedy("decide which is the master; if it is %s, let it commit and back up into %s, then run this with --give-up", p.Host, r.Source)
	}
	if r.head != nil {
		return refusal // the answers were read
	}
	answers, _, err := incremental.ReadAnswers(ctx, r.Source)
	if err != nil {
		return unreadable(err)
	}
	for _, a := range answers {
		if a.Role == string(Promoted) && a.Epoch > own && (r.state.Lineage == "" || a.Lineage == r.state.Lineage) {
			return gap("%s of %s was promoted (epoch %d), and %s holds no increment", a.Data, a.Host, a.Epoch, r.Source)
		}
	}
	return refusal
}

func (r *rejoin) twoMasters(other incremental.Promotion) *fault.Error {
	return fault.New(fault.Diverged, "%s was promoted to epoch %d, and so was %s, which %s is of: two masters", r.Data, other.Epoch, other.Host, r.Source).
		Keeping("nothing was changed").
		Remedy("see what each has: zodbrepl diff %s %s; decide which is the master; if it is %s, run this with --give-up", r.Data, r.Source, other.Host)
}

// mayFollow refuses to make a standby of a node whose history is not over.
func (r *rejoin) mayFollow(ctx context.Context) error {
	own, epoch := max(r.state.Epoch, 1), r.res.Epoch
	if r.state.Role == Standby && epoch >= own {
		return nil
	}
	if own == epoch && !r.stateless && !r.state.Promotions.ContinuedBy(r.branch) {
		if r.GiveUp {
			return nil
		}
		return r.twoMasters(r.branch.Last())
	}
	if epoch > own {
		host, err := os.Hostname()
		if err == nil && r.stateless && r.head.Epoch == epoch && r.head.Host == host && r.head.Source.Path == r.Data {
			return fault.New(fault.Refused, "%s of epoch %d was made of this very file, %s on %s: this node is the master", r.head.File, epoch, r.Data, host).
				Keeping("nothing was changed").
				Remedy("if it has lost its state file %s: zodbrepl promote --data %s --from %s", statePath(r.Data), r.Data, r.Source)
		}
		return err
	}
	e := fault.New(fault.Refused, "%s is of epoch %d (written by %s), this node is of epoch %d: no other host was promoted after it", r.Source, epoch, r.head.Host, own).
		Keeping("nothing was changed")
	if r.stateless {
		return r.noOther(ctx, e.Remedy("promote the other host first, and back up there into %s; a mere copy of the master's file is taken over by watch", r.Source))
	}
	return r.noOther(ctx, e.Remedy("this node is the master; if it is not to be, promote the other host first, and point --from at the directory that it backs up into"))
}

// planDeltas looks inside the increment that differs for the last common commit.
func (r *rejoin) planDeltas(ctx context.Context, at, next *incremental.Manifest) error {
	common := markAt(at.End, at.LastTID)
	if next != nil {
		same, err := r.sameUntil(ctx, next, at.End)
		if err != nil {
			return err
		}
		if common, err = r.lastCommit(ctx, common, same); err != nil {
			return err
		}
	}
	res := &r.res
	res.Way, res.Common, res.Again = RejoinDeltas, common, common.Position-at.End
	res.Applied = &Applied{Chain: at.Chain, Stamp: at.Stamp, Position: at.End, LastTID: at.LastTID, Tail: at.Tail}
	if err := r.count(ctx); err != nil {
		return err
	}
	if r.size > common.Position {
		r.extra = true
		res.Saved, res.Needed = divergedPath(r.Data, common.LastTID, 1), r.size-common.Position
	} else if p := r.state.Rejoin; p.pending() { // it had been cut already
		res.Common, res.Saved = p.Common, p.Saved
	}
	return nil
}

// planFull finds the last common transaction when no increment's end is in Data.fs: that is built anew.
func (r *rejoin) planFull(ctx context.Context, full *incremental.Manifest) error {
	same, err := r.sameUntil(ctx, full, 0)
	if err != nil {
		return err
	}
	res := &r.res
	res.Way, res.Needed = RejoinFull, r.head.End
	if same == r.ext.End {
		// All that was committed here is in the full. It stays until the full replaces it, unless something hangs behind.
		if res.Common, err = r.lastCommit(ctx, markAt(filestorage.MagicSize, 0), same); err != nil {
			return err
		}
	} else if err := r.merge(ctx); err != nil {
		return err
	}
	if res.Common.LastTID == 0 && r.stateless && r.ext.End > filestorage.MagicSize {
		return fault.New(fault.Diverged, "%s shares no transaction with %s, which holds %s of host %s: another database", r.Data, r.Source, r.head.Source.Path, r.head.Host).
			Keeping("nothing was changed").Remedy("point --from at the repository of this database")
	}
	if err := r.count(ctx); err != nil {
		return err
	}
	if r.size > same {
		r.extra = true
		res.Saved, err = r.wholeName(res.Common.LastTID)
	}
	return err
}

// wholeName finds a name for the whole Data.fs: one that is free, and whose listing is, or that a former run has chosen.
func (r *rejoin) wholeName(last filestorage.TID) (string, error) {
	for n := 1; ; n++ {
		path := divergedPath(r.Data, last, n)
		free, err := absent(path)
		if p := r.state.Rejoin; err == nil && free && !(p.pending() && p.Saved == path) {
			free, err = absent(path + listingExt)
		}
		if err != nil || free {
			return path, err
		}
	}
}

func absent(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}
