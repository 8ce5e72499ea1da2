package incremental

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// choose decides between a delta and a full, and in which lineage and epoch it is made. It writes nothing.
func (b *backup) choose(ctx context.Context) error {
	last, err := b.repo.last(ctx)
	if err != nil && !errors.Is(err, errNoChain) && !b.Full {
		return fault.New(nil, "the newest increment cannot be used").Because(err).Keeping("nothing was written").
			Remedy("bring it back from another copy of the repository, or begin a new chain: zodbrepl backup --full")
	}
	if err == nil && last.Manifest == nil || err != nil && !errors.Is(err, errNoChain) {
		// A full was asked for because that chain is damaged: any manifest tells the lineage.
		last, err = b.newestReadable(ctx)
	}
	if errors.Is(err, errNoChain) {
		b.lineage, b.epoch, b.reason = b.Lineage, max(b.Epoch, 1), "the repository is empty"
		if b.Full {
			b.reason = "asked for"
		}
		if b.lineage == "" {
			b.lineage = newLineage()
		}
		return b.fenced()
	}
	if err != nil {
		return err
	}
	b.lineage, b.epoch = last.Manifest.Lineage, last.Manifest.Epoch
	if err := b.mayContinue(last); err != nil {
		return err
	}
	same, why, err := b.unchanged(ctx, last)
	if err != nil {
		return err
	}
	switch {
	case b.Full:
		b.reason = "asked for"
	case !same:
		b.reason, b.unasked = why, true
	default:
		b.prev = &last
	}
	if !same {
		return b.mustShareHistory(ctx, last)
	}
	return nil
}

// newestReadable finds an increment that tells the lineage when the newest does not. The error is errNoChain when
// there is no manifest at all: repozo alone wrote here.
func (b *backup) newestReadable(ctx context.Context) (Increment, error) {
	ms, problems, err := b.repo.Manifests(ctx)
	if err != nil {
		return Increment{}, err
	}
	switch {
	case len(ms) == 0 && len(problems) == 0:
		return Increment{}, errNoChain
	case len(ms) == 0:
		return Increment{}, fault.New(nil, "repository %s: no manifest can be read, so the lineage is not known", b.Repository).Because(problems[0]).
			Keeping("nothing was written").Remedy("bring a manifest back from another copy of the repository, or begin anew in an empty directory")
	}
	// The highest epoch counts: a stale master may have written after the promotion.
	best := ms[0]
	for _, m := range ms {
		if m.Epoch >= best.Epoch {
			best = m
		}
	}
	return best.Increment()
}

// permitted refuses a node that may not write here, before anything is changed.
func (b *backup) permitted(ctx context.Context) error {
	stamps := b.repo.ManifestStamps()
	if len(stamps) > 0 {
		m, err := b.repo.manifest(ctx, stamps[len(stamps)-1])
		if err == nil {
			if err := b.superseded(ctx, m.Lineage); err != nil {
				return err
			}
			return b.mayContinue(incrementOf(m, nil))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	b.epoch = max(b.Epoch, 1)
	if err := b.superseded(ctx, b.Lineage); err != nil {
		return err
	}
	return b.fenced()
}

// superseded refuses when a file beside the increments tells of another master: an offer that was made here, or the
// answer of a host that was promoted and has written no increment yet.
func (b *backup) superseded(ctx context.Context, lineage string) error {
	offers, err := offersAmong(ctx, b.Repository, b.repo.names)
	if err != nil {
		return err
	}
	node := max(b.Epoch, 1)
	if o, ok := openOffer(offers, node); ok {
		return o.refuse(b.Repository)
	}
	answers, _, err := answersAmong(ctx, b.Repository, b.repo.names)
	if err != nil {
		return err
	}
	for _, a := range answers {
		switch own := b.Promotions.Last(); {
		case lineage != "" && a.Lineage != lineage:
		case a.Epoch > node:
			return Fence{Lineage: a.Lineage, Epoch: a.Epoch, Where: "the answer of " + a.Data + " on host " + a.Host, Seen: a.Updated}.Check(b.Repository, node)
		case a.Epoch == node && a.Role == "promoted" && a.Promotion.ID != "" && own.ID != "" && a.Promotion.ID != own.ID:
			return splitBrain(b.Repository, a.Host, node)
		}
	}
	return nil
}

// refuse says that the master of the repository in dir has handed over.
func (o Offer) refuse(dir Dir) error {
	e := fault.New(fault.Refused, "repository %s: this master has offered to hand over to %s since %s (increment %s)", dir, o.Successor, o.Created.UTC().Format(time.RFC3339), o.Stamp).
		Keeping("nothing was backed up")
	if o.State == Taken {
		e.What = fmt.Sprintf("repository %s: this master has handed over to %s (increment %s, epoch %d)", dir, o.Successor, o.Stamp, o.Epoch)
		return e.Remedy("finish here, where the handover was begun: zodbrepl handover with the same options; no ZEO server may run on this Data.fs")
	}
	return e.Remedy("go on with it: zodbrepl handover with the same options; or take it back: the same with --cancel")
}

func splitBrain(dir Dir, host string, epoch int) error {
	return fault.New(fault.Diverged, "repository %s: host %s was promoted to epoch %d as well as this one: two masters", dir, host, epoch).
		Keeping("nothing was written").
		Remedy("decide which of the two is the master and stop ZEO and the backups on the other; see \"Split brain\" in docs/operations.md")
}

// mayContinue refuses to write after last into a history that is not this node's.
func (b *backup) mayContinue(last Increment) error {
	m := last.Manifest
	if b.Lineage != "" && b.Lineage != m.Lineage {
		return fault.New(fault.Diverged, "repository %s holds lineage %s, this node is of lineage %s", b.Repository, m.Lineage, b.Lineage).
			Keeping("nothing was written").Remedy("use the repository of this database, or an empty directory")
	}
	node := max(b.Epoch, 1)
	if m.Epoch > node {
		return Fence{Lineage: m.Lineage, Epoch: m.Epoch, Where: "increment " + last.File + " of host " + m.Host, Seen: m.Created}.Check(b.Repository, node)
	}
	if m.Epoch == node && len(m.Promotions) > 0 && len(b.Promotions) > 0 && m.Promotions.Last().ID != b.Promotions.Last().ID {
		return splitBrain(b.Repository, m.Host, node)
	}
	b.epoch = node
	return b.fenced()
}

func (b *backup) fenced() error {
	fence, err := ReadFence(context.Background(), b.Repository)
	if err != nil {
		return err
	}
	return fence.Check(b.Repository, b.epoch)
}

// unchanged says whether Data.fs still begins with what is backed up, and if not, why not. The cheap proof takes
// constant time: the same inode, no shorter than it was, the last transaction where it was, and the same bytes
// before its end. Without it, or with Deep, every increment of the chain is compared.
func (b *backup) unchanged(ctx context.Context, last Increment) (same bool, why string, err error) {
	m := last.Manifest
	size, err := b.data.Size()
	if err != nil {
		return false, "", err
	}
	if size < last.End {
		return false, fmt.Sprintf("Data.fs has %d bytes, %d were backed up: it was packed or replaced", size, last.End), nil
	}
	if missing, err := b.missing(ctx, last); err != nil || missing != "" {
		return false, missing, err
	}
	holds, err := m.Tail.Holds(b.data, last.End)
	if err == nil && holds && m.LastTID != 0 {
		var t filestorage.Transaction
		t, holds, err = b.data.LastBefore(last.End)
		holds = holds && t.TID == m.LastTID
	}
	if err != nil {
		return false, "", fmt.Errorf("%s: %w", b.Data, err)
	}
	if !holds {
		return false, fmt.Sprintf("the bytes of Data.fs before position %d are not those that were backed up: it was packed or replaced", last.End), nil
	}
	// The device is not asked for: its number changes when a host starts, on LVM and NFS say.
	if m.Source.Inode != 0 && m.Source.Inode == b.src.Inode && !b.Deep {
		return true, "", nil
	}
	return b.samePrefix(ctx, last)
}

// missing says what the .dat lists of last's chain but is not there: a delta is not written across a gap.
func (b *backup) missing(ctx context.Context, last Increment) (string, error) {
	lines, _, err := b.repo.dat(ctx, last.Manifest.Chain)
	switch {
	case err != nil && b.Full && ctx.Err() == nil:
		return err.Error(), nil
	case err != nil:
		return "", fault.New(nil, "the newest chain cannot be continued").Because(err).Keeping("nothing was written").
			Remedy("bring the .dat back from another copy of the repository, or begin a new chain: zodbrepl backup --full")
	}
	have := make(map[string]bool)
	for _, s := range b.repo.sets {
		for _, d := range s.data {
			have[d.name] = true
		}
	}
	end := int64(0)
	for _, l := range lines {
		if !have[l.file] {
			return fmt.Sprintf("the chain %s is broken: %s is missing", last.Manifest.Chain, l.file), nil
		}
		if l.start != end {
			return fmt.Sprintf("the chain %s is broken: %s starts at %d, the one before it ends at %d", last.Manifest.Chain, l.file, l.start, end), nil
		}
		end = l.end
	}
	if end != last.End {
		return fmt.Sprintf("the chain %s is broken: its .dat ends at %d, its last increment at %d", last.Manifest.Chain, end, last.End), nil
	}
	return "", nil
}

// samePrefix compares Data.fs with every increment of last's chain.
func (b *backup) samePrefix(ctx context.Context, last Increment) (same bool, why string, err error) {
	chain, err := b.chainOf(ctx, last)
	if err != nil {
		return false, "", err
	}
	if len(chain.Increments) == 0 || chain.Last().Stamp != last.Stamp {
		return false, fmt.Sprintf("the chain %s is broken: %v", last.Manifest.Chain, firstProblem(chain)), nil
	}
	b.Log.Info("comparing Data.fs with all that is backed up", "storage", b.Data, "bytes", last.End)
	for _, inc := range chain.Increments {
		sum := md5.New()
		in := &meter{r: b.data.Section(inc.Start, inc.End), ctx: ctx}
		if _, err := io.CopyBuffer(sum, &progressReader{in, b.Progress, inc.Start, last.End}, make([]byte, 1<<20)); err != nil {
			return false, "", fmt.Errorf("%s: %w", b.Data, err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != inc.MD5 {
			return false, fmt.Sprintf("Data.fs differs from what was backed up between positions %d and %d: it was packed or replaced", inc.Start, inc.End), nil
		}
	}
	return true, "", nil
}

func firstProblem(c Chain) error {
	if len(c.Problems) == 0 {
		return errNoChain
	}
	return c.Problems[0]
}

func (b *backup) chainOf(ctx context.Context, last Increment) (Chain, error) {
	for i, s := range b.repo.sets {
		if s.stamp == last.Manifest.Chain {
			end := i + 1
			for end < len(b.repo.sets) && !b.repo.sets[end].isFull() {
				end++
			}
			return b.repo.chain(ctx, b.repo.sets[i:end])
		}
	}
	return Chain{Stamp: last.Manifest.Chain}, nil
}

// mustShareHistory refuses a full of another database in this repository, where every standby would take it for
// this one. A pack keeps the tids of what it keeps, so one tid that the repository knows is enough. A tiny database
// may have none left after a pack: then the same path on the same host counts.
func (b *backup) mustShareHistory(ctx context.Context, last Increment) error {
	ms, _, err := b.repo.Manifests(ctx)
	if err != nil {
		return err
	}
	known := make(map[filestorage.TID]bool)
	newest := filestorage.TID(0)
	for _, m := range ms {
		known[m.FirstTID], known[m.LastTID] = true, true
		newest = max(newest, m.LastTID)
		// Not only last: one that was completed after a crash does not know the file that it was read from.
		if m.Lineage == last.Manifest.Lineage && m.Host == b.host && m.Source.Path == b.src.Path {
			return nil
		}
	}
	if last.Manifest.LastTID == 0 {
		return nil
	}
	var tids []filestorage.TID
	for t, err := range b.data.Transactions(filestorage.MagicSize) {
		if err != nil {
			return b.unreadable(err)
		}
		if known[t.TID] {
			return nil
		}
		if t.TID > newest {
			break
		}
		tids = append(tids, t.TID)
	}
	if shares, err := b.holdsAny(ctx, last, tids); err != nil || shares {
		return err
	}
	return fault.New(fault.Diverged, "%s shares no transaction with the repository %s, which holds %s of host %s: another database",
		b.Data, b.Repository, last.Manifest.Source.Path, last.Manifest.Host).
		Keeping("nothing was backed up").Remedy("give every database a repository of its own")
}

// holdsAny says whether last's chain holds one of the tids, for which it is read. A pack may well have removed the first
// and the last transaction of every increment. What cannot be read holds none.
func (b *backup) holdsAny(ctx context.Context, last Increment, tids []filestorage.TID) (bool, error) {
	chain, err := b.chainOf(ctx, last)
	if err != nil {
		return false, err
	}
	slices.Sort(tids)
	found := false
	for _, inc := range chain.Increments {
		check := filestorage.NewChecker(b.Repository.Path(inc.File), inc.Start)
		check.OnRecord = func(r filestorage.Record, _ []byte) error {
			if _, found = slices.BinarySearch(tids, r.TID); found {
				return io.EOF // enough
			}
			return nil
		}
		if err := b.repo.Copy(ctx, inc, check); found || ctx.Err() != nil {
			return found, ctx.Err()
		} else if err != nil {
			b.Log.Warn("an increment cannot be read", "increment", inc.File, "cause", err)
		}
	}
	return false, nil
}

// progressReader tells how far a reader has come.
type progressReader struct {
	r           io.Reader
	tell        Progress
	done, total int64
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	p.tell(p.done, p.total)
	return n, err
}
