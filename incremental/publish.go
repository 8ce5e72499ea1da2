package incremental

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"zodbrepl/filestorage"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// write stores the bytes of ext as the next increment and publishes it. What a crash leaves at each point:
//
//	while the temporary file is written   <file>.tmp, which the next run removes
//	after the rename of a delta           an increment that the .dat does not know: complete, contiguous, and right
//	                                      for a repozo that trusts the listing; the next run measures and lists it
//	after the .dat of a full              a .dat that nobody looks at, and <file>.tmp
//	after both                            an increment as repozo makes them; the next run verifies it and gives it
//	                                      its manifest
//	after the manifest                    nothing to do
func (b *backup) write(ctx context.Context, ext filestorage.Extent) (*Manifest, error) {
	// No copy may be ahead of what the master has on disk: FileStorage makes a transaction visible before it is.
	if err := b.file.Sync(); err != nil {
		return nil, fmt.Errorf("fsync %s: %w", b.Data, err)
	}
	m := &Manifest{
		Format: ManifestFormat, Lineage: b.lineage, Epoch: b.epoch, Promotions: b.Promotions, Kind: Full, Stamp: b.lastStamp().next(b.now),
		Codec: b.codec.Name(), Start: ext.Start, End: ext.End, LastTID: ext.Last, Reason: b.reason,
		Source: b.src, Created: b.now.UTC(), Host: b.host, Version: b.Version,
	}
	if _, err := ParseStamp(string(m.Stamp)); err != nil {
		return nil, fault.New(nil, "repository %s: there is no stamp after %s", b.Repository, b.lastStamp()).
			Keeping("nothing was written").Remedy("remove the file with that stamp, or use an empty directory")
	}
	m.Chain = m.Stamp
	if b.prev != nil {
		m.Kind, m.Chain, m.Previous = Delta, b.prev.Manifest.Chain, b.prev.Stamp
	}
	m.File = fileName(m.Stamp, m.Kind, b.codec)
	path := b.Repository.Path(m.File)
	tmp := path + durable.TempSuffix
	b.announce()
	blobs, err := b.store(ctx, tmp, m)
	if err != nil {
		os.Remove(tmp)
		return nil, err
	}
	b.crash("stored")
	if exists(path) {
		os.Remove(tmp)
		return nil, fault.New(nil, "%s appeared while it was made: another program writes to the repository", path).
			Keeping("every increment that was there is as it was; nothing new was published").Remedy("find that program, then run the backup again")
	}
	if err := b.place(ctx, m, tmp, path); err != nil {
		// Not left for the next run: on a full disk it needs the room.
		return nil, errors.Join(err, b.displace(m, tmp, path))
	}
	if err := b.publish(m, blobs); err != nil {
		return nil, err
	}
	return m, nil
}

// lastStamp returns the greatest stamp that a new one must be after: of any file here, or of what a promoted node had
// applied, wherever that was.
func (b *backup) lastStamp() Stamp { return max(b.repo.lastStamp(), b.Promotions.Last().Stamp) }

// place gives the stored file its name and its line in the .dat. A delta without a line is right for repozo, but a full
// without a .dat makes its -V fail, so the .dat of a full comes first: without the full nobody looks at it.
func (b *backup) place(ctx context.Context, m *Manifest, tmp, path string) error {
	first := func() error {
		if err := durable.Rename(tmp, path); err != nil {
			return b.unwritable(err)
		}
		b.crash("renamed")
		return nil
	}
	second := func() error { return b.list(ctx, m.Chain, m.datLine()) }
	if m.Kind == Full {
		first, second = second, first
	}
	if err := first(); err != nil {
		return err
	}
	return second()
}

// displace takes back what place did. A delta that the .dat lists all the same, because only the fsync failed, stays,
// and the next run publishes it.
func (b *backup) displace(m *Manifest, tmp, path string) error {
	if m.Kind == Full {
		return durable.Remove(tmp, path, b.Repository.Path(string(m.Chain)+datExt))
	}
	lines, _, err := readDat(context.Background(), b.Repository, m.Chain)
	if err != nil || slices.Contains(lines, m.datLine()) {
		return err
	}
	return durable.Remove(tmp, path)
}

// store writes the raw bytes from m.Start to m.End, encoded, into the file at path, checks their structure on the
// way, and sets what m says of them. It returns the blobs that they name.
func (b *backup) store(ctx context.Context, path string, m *Manifest) (*refList, error) {
	f, err := durable.Create(path, 0o644)
	if err != nil {
		return nil, b.unwritable(err)
	}
	defer f.Close()
	raw, into, err := b.share(f, m)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	defer into.Close()
	sum, storedSum := md5.New(), aside(sha256.New())
	defer storedSum.end()
	stored := &counter{w: into, sum: storedSum}
	out := &sink{w: stored}
	enc := b.codec.NewWriter(out, Effort{Level: b.Level, Jobs: b.Jobs})
	check := filestorage.NewChecker(b.Data, m.Start)
	blobs := blobCollector{data: b.data}
	check.OnRecord = blobs.add
	in := &progressReader{&meter{r: raw, ctx: ctx}, b.Progress, 0, m.End - m.Start}
	slabs := slabsEncoded
	if b.codec == (noneCodec{}) {
		slabs = slabsStored
	}
	n, err := fanOut(in, slabs, io.MultiWriter(check, enc), sum)
	err = errors.Join(err, enc.Close())
	switch {
	case out.err != nil:
		return nil, b.unwritable(out.err)
	case err != nil:
		return nil, b.unreadable(err)
	case n != m.End-m.Start:
		return nil, b.unreadable(&filestorage.ShrunkError{File: b.Data, Pos: m.End, Size: m.Start + n})
	}
	if err := check.Close(); err != nil {
		return nil, b.unreadable(err)
	}
	if err := into.Sync(); err != nil {
		return nil, b.unwritable(err)
	}
	if err := b.describe(m, check); err != nil {
		return nil, err
	}
	m.MD5 = hex.EncodeToString(sum.Sum(nil))
	m.Blobs = blobs.refs.n
	m.StoredSize, m.StoredSHA256 = stored.n, hex.EncodeToString(stored.sum.Sum(nil))
	if m.Tail, err = ProveTail(b.data, m.End); err != nil {
		return nil, b.unreadable(err)
	}
	return &blobs.refs, nil
}

// describe takes over what the stream told about its transactions.
func (b *backup) describe(m *Manifest, check *filestorage.Checker) error {
	ext := check.Extent()
	m.FirstTID, m.Transactions, m.PackedTo = ext.First, ext.Transactions, check.LastPacked()
	if ext.Last != 0 {
		m.LastTID = ext.Last
	}
	if b.prev != nil && ext.Last == 0 {
		return fmt.Errorf("%s: no transaction between %d and %d", b.Data, m.Start, m.End)
	}
	if n := check.Reversed(); n > 0 {
		b.Log.Warn("tids that do not grow: FileStorage will not be able to pack this file", "storage", b.Data, "transactions", n)
	}
	return nil
}

func (b *backup) unwritable(err error) error {
	e := fault.New(nil, "writing to repository %s", b.Repository).Because(err).
		Keeping("every increment that was there is as it was; nothing new was published")
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return e.Remedy("make room on that file system, then run the backup again")
	case errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS):
		return e.Remedy("give this user the right to write there, or mount it read-write")
	}
	return e.Remedy("run the backup again when the cause is gone")
}

// list adds a line to the .dat of a chain, where its position is. The file is replaced whole, so a crash cannot
// leave half a line.
func (b *backup) list(ctx context.Context, chain Stamp, line datLine) error {
	lines, _, err := readDat(ctx, b.Repository, chain)
	if err != nil {
		return err
	}
	at := len(lines)
	for at > 0 && lines[at-1].start >= line.end {
		at--
	}
	lines = slices.Insert(lines, at, line)
	b.announce()
	if err := durable.WriteFile(b.Repository.Path(string(chain)+datExt), formatDat(lines), 0o644); err != nil {
		return b.unwritable(err)
	}
	b.crash("listed")
	return nil
}

func (m *Manifest) datLine() datLine {
	return datLine{file: m.File, start: m.Start, end: m.End, md5: m.MD5}
}

// DatLine returns the increment's line in repozo's .dat, with its line feed.
func (m *Manifest) DatLine() string { return m.datLine().String() }

// publish writes the manifest: from now on the increment exists for others.
func (b *backup) publish(m *Manifest, blobs *refList) error {
	b.announce()
	write := func(w io.Writer) error { return m.Write(w, blobs.all()) }
	if err := durable.Write(b.Repository.Path(ManifestName(m.Stamp)), 0o644, write); err != nil {
		return b.unwritable(err)
	}
	b.crash("published")
	return nil
}

// counter counts and hashes what is written through it.
type counter struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.sum.Write(p[:n])
	return n, err
}
