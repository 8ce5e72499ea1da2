package incremental

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// adopt gives manifests to the increments of the newest chain that have none: those that repozo made, and one that
// a run of ours listed before it died. Each is verified as a whole first. The chain is continued only when all of it
// is good.
func (b *backup) adopt(ctx context.Context) error {
	i := len(b.repo.sets) - 1
	for ; i >= 0 && len(b.repo.sets[i].data) == 0; i-- {
	}
	if i < 0 || b.repo.sets[i].manifest {
		return nil
	}
	f := b.repo.full(i)
	if f < 0 {
		return nil
	}
	c, err := b.repo.chain(ctx, b.repo.sets[f:i+1])
	if err != nil {
		return err
	}
	if len(c.Problems) > 0 {
		if b.Full {
			return nil
		}
		return fault.New(nil, "the newest chain of %s cannot be continued", b.Repository).Because(c.Problems[0]).
			Keeping("nothing was written").Remedy("begin a new chain: zodbrepl backup --full")
	}
	if len(c.Increments) == 0 {
		return nil
	}
	if err := b.adoptChain(ctx, c); err != nil {
		if !b.Full || !errors.Is(err, fault.Unverified) {
			return err
		}
		// The full that was asked for does not need it. A part may have been adopted, and tells the lineage now.
		b.Log.Warn("the newest chain is damaged; it stays as it is", "storage", b.Data, "chain", c.Stamp, "cause", err)
	}
	return b.open(ctx)
}

// adoptChain verifies the increments that have no manifest and writes one for each, oldest first.
func (b *backup) adoptChain(ctx context.Context, c Chain) error {
	incs := c.Increments
	first := slices.IndexFunc(incs, func(i Increment) bool { return i.Manifest == nil })
	if first < 0 {
		return nil
	}
	lineage, err := b.knownLineage(ctx)
	if err != nil {
		return err
	}
	// The tail proof may reach into the increments before.
	from := first
	for from > 0 && incs[from].Start > max(0, incs[first].End-TailSize) {
		from--
	}
	b.Log.Info("verifying increments that have no manifest", "storage", b.Data, "increments", len(incs)-first, "chain", c.Stamp)
	known := &filestorage.Index{}
	name := func(inc Increment) error {
		return ReadBlobs(ctx, b.Repository, inc.Stamp, func(ref BlobRef) { known.Set(ref.OID, 0) })
	}
	for _, inc := range incs[:first] {
		if err := name(inc); err != nil {
			return err
		}
	}
	tail := &TailKeeper{}
	for i := from; i < len(incs); i++ {
		if incs[i].Manifest != nil {
			if err := name(incs[i]); err != nil {
				return err
			}
			if err := b.repo.Copy(ctx, incs[i], tail); err != nil {
				return err
			}
			continue
		}
		m, blobs, err := b.describeStored(ctx, incs[i], tail, known)
		if err != nil {
			return err
		}
		m.Chain, m.Lineage, m.Epoch = c.Stamp, lineage, max(b.Epoch, 1)
		if i > 0 {
			prev := incs[i-1].Manifest
			m.Previous, m.Epoch, m.Promotions = prev.Stamp, prev.Epoch, prev.Promotions
		} else {
			m.Reason = "found without a manifest: repozo made it, or a run that died"
		}
		if len(b.Promotions) > 0 && m.Stamp > b.Promotions.Last().Stamp {
			m.Epoch, m.Promotions = b.Epoch, b.Promotions // it was compared with our Data.fs
		}
		if err := b.publish(m, blobs); err != nil {
			return err
		}
		incs[i].Manifest = m
	}
	return nil
}

// describeStored reads an increment whole and makes its manifest, except for its place in the history. What file it
// was read from is not known, so the next backup compares all of Data.fs with the chain.
func (b *backup) describeStored(ctx context.Context, inc Increment, tail *TailKeeper, known *filestorage.Index) (*Manifest, *refList, error) {
	where := b.Repository.String()
	stored, err := b.Repository.Open(ctx, inc.File)
	if err != nil {
		return nil, nil, err
	}
	defer stored.Close()
	in := &meter{r: stored, ctx: ctx, sum: sha256.New()}
	check := filestorage.NewChecker(b.Repository.Path(inc.File), inc.Start)
	blobs := blobCollector{known: known}
	check.OnRecord = blobs.add
	if err := inc.decode(ctx, where, in, io.MultiWriter(check, tail), b.Jobs); err != nil {
		return nil, nil, err
	}
	if err := check.Close(); err != nil {
		return nil, nil, inc.bad(where, err)
	}
	ext := check.Extent()
	return &Manifest{
		Format: ManifestFormat, Kind: inc.Kind, Stamp: inc.Stamp, File: inc.File, Codec: inc.codec.Name(),
		Start: inc.Start, End: inc.End, FirstTID: ext.First, LastTID: ext.Last, Transactions: ext.Transactions, PackedTo: check.LastPacked(),
		MD5: inc.MD5, StoredSize: in.n, StoredSHA256: hex.EncodeToString(in.sum.Sum(nil)), Tail: tail.Proof(),
		Created: b.now.UTC(), Host: b.host, Version: b.Version, Blobs: blobs.refs.n,
	}, &blobs.refs, nil
}

// knownLineage returns the lineage of the repository's manifests, else the node's, else a new one.
func (b *backup) knownLineage(ctx context.Context) (string, error) {
	ms, _, err := b.repo.Manifests(ctx)
	switch {
	case err != nil:
		return "", err
	case len(ms) > 0:
		return ms[len(ms)-1].Lineage, nil
	case b.Lineage != "":
		return b.Lineage, nil
	}
	return newLineage(), nil
}
