package incremental

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"zodbrepl/internal/durable"
)

// staleExt ends the names of what a stale master wrote, and of which a node of a later epoch has said that it belongs to
// no history. Nobody reads such a file, and nobody removes it: people may want its transactions.
const staleExt = ".stale"

// Renamer is what is needed to set files of a repository aside, wherever it is.
type Renamer interface {
	Rename(ctx context.Context, from, to string) error
}

// SetAside renames the files with that stamp, the manifest first, so that the increment exists no more for anybody, and
// returns their new names. names are the files of the place. A crash leaves some of them renamed; what is left without its
// manifest counts for nothing, and the next run goes on. Another node may do the same at the same time.
func SetAside(ctx context.Context, place Renamer, names []string, stamp Stamp) ([]string, error) {
	var files, aside []string
	for _, n := range names {
		if s, ok := stampOf(n); ok && s == stamp && isOurs(n) && !strings.HasSuffix(n, unpublishedExt) {
			files = append(files, n)
		}
	}
	slices.SortFunc(files, func(x, y string) int { return manifestRank(x) - manifestRank(y) })
	for _, n := range files {
		to := n + staleExt
		for i := 2; slices.Contains(names, to); i++ {
			to = fmt.Sprintf("%s.%d%s", n, i, staleExt)
		}
		err := place.Rename(ctx, n, to)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return aside, err
		}
		aside = append(aside, to)
	}
	return aside, nil
}

// SetAside sets an increment of the repository aside, in the place that it was listed in.
func (r *Repository) SetAside(ctx context.Context, place Renamer, stamp Stamp) ([]string, error) {
	return SetAside(ctx, place, r.names, stamp)
}

// setStaleAside sets aside what a stale master has written into the repository of a promoted node: everything after the
// last increment that this node had applied when it was promoted, and not of its epoch. What has no manifest, because repozo
// or a run that died wrote it, is ours when Data.fs has the same bytes there. Then the .dat is mended, for the stale master
// has its own idea of that file too. In the normal case this reads one .dat for each chain, and one manifest.
func (b *backup) setStaleAside(ctx context.Context) error {
	after := b.Promotions.Last().Stamp
	if after == "" {
		return nil
	}
	listed, err := b.listedByUs(ctx, after)
	if err != nil {
		return err
	}
	var stale []Stamp
	for i, s := range b.repo.sets {
		if s.stamp <= after || len(s.data) == 0 && !s.manifest {
			continue
		}
		if len(s.data) == 1 && s.manifest && listed[s.data[0].name] {
			continue
		}
		is, err := b.isStale(ctx, i)
		if err != nil {
			return err
		}
		if is {
			stale = append(stale, s.stamp)
		}
	}
	for _, stamp := range stale {
		b.announce()
		aside, err := b.repo.SetAside(ctx, b.Repository, stamp)
		for _, name := range aside {
			b.Log.Warn("a stale master has written into the repository: it is set aside", "increment", b.Repository.Path(name), "epoch", b.Epoch)
		}
		if err != nil {
			return err
		}
		b.crash("stale set aside")
	}
	if len(stale) > 0 {
		if err := b.open(ctx); err != nil {
			return err
		}
	}
	return b.mendDat(ctx, after)
}

// listedByUs returns the deltas that need not be looked at: those in the .dat of a chain of ours. It is none when the newest
// increment is not ours, or not listed: then somebody has replaced a .dat by his own.
func (b *backup) listedByUs(ctx context.Context, after Stamp) (map[string]bool, error) {
	listed, newest := make(map[string]bool), ""
	for i, s := range b.repo.sets {
		if len(s.data) == 1 {
			newest = s.data[0].name
		}
		if !s.isFull() {
			continue
		}
		if s.stamp > after {
			if is, err := b.isStale(ctx, i); err != nil || is {
				if err != nil {
					return nil, err
				}
				continue
			}
		}
		lines, torn, err := b.repo.dat(ctx, s.stamp)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for _, l := range lines {
			if err == nil && !torn && l.start > 0 {
				listed[l.file] = true
			}
		}
	}
	if d, ok := parseDataName(newest); ok && d.stamp > after {
		m, err := b.repo.manifest(ctx, d.stamp)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || m.Epoch != b.Epoch || m.Kind == Delta && !listed[newest] {
			return nil, nil
		}
	}
	return listed, nil
}

// isStale decides about the set at i.
func (b *backup) isStale(ctx context.Context, i int) (bool, error) {
	s := b.repo.sets[i]
	if s.manifest {
		m, err := b.repo.manifest(ctx, s.stamp)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err != nil || m.Lineage != b.Lineage: // others tell of it
			return false, nil
		case m.Epoch == b.Epoch && !b.Promotions.ContinuedBy(m.Promotions):
			return false, splitBrain(b.Repository, m.Host, b.Epoch)
		}
		return m.Epoch < b.Epoch, nil
	}
	if len(s.data) != 1 || s.irregular != "" {
		return false, nil
	}
	start, err := b.startOf(ctx, i)
	if err != nil {
		return false, err
	}
	same, err := b.sameBytes(ctx, s.data[0], start)
	return !same && err == nil, err
}

// startOf returns where the increment at i, which has no manifest, begins: what the .dat says, or the end of the one before.
func (b *backup) startOf(ctx context.Context, i int) (int64, error) {
	d := b.repo.sets[i].data[0]
	if d.kind == Full {
		return 0, nil
	}
	if f := b.repo.full(i); f >= 0 {
		lines, _, err := b.repo.dat(ctx, b.repo.sets[f].stamp)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		for _, l := range lines {
			if err == nil && l.file == d.name {
				return l.start, nil
			}
		}
	}
	for j := i - 1; j >= 0 && b.repo.sets[j].stamp > b.Promotions.Last().Stamp; j-- {
		if m, err := b.repo.manifest(ctx, b.repo.sets[j].stamp); err == nil && m.Epoch == b.Epoch {
			return m.End, nil
		}
	}
	return b.Promotions.Last().Position, ctx.Err()
}

// sameBytes says whether the raw bytes of a stored file are those of Data.fs from the position start on. What cannot be
// decoded is not.
func (b *backup) sameBytes(ctx context.Context, d dataFile, start int64) (bool, error) {
	stored, err := b.Repository.Open(ctx, d.name)
	if err != nil {
		return false, err
	}
	defer stored.Close()
	in := &meter{r: stored, ctx: ctx}
	raw, err := d.codec.NewReader(in, b.Jobs)
	if err != nil {
		return false, in.err
	}
	defer raw.Close()
	size, err := b.data.Size()
	if err != nil {
		return false, err
	}
	own := b.data.Section(start, max(start, size))
	x, y := make([]byte, 256<<10), make([]byte, 256<<10)
	for pos := start; ; {
		n, err := io.ReadFull(raw, x)
		if n > 0 {
			if _, rerr := io.ReadFull(own, y[:n]); rerr == io.EOF || rerr == io.ErrUnexpectedEOF || rerr == nil && !bytes.Equal(x[:n], y[:n]) {
				return false, nil
			} else if rerr != nil {
				return false, rerr
			}
			pos += int64(n)
		}
		switch {
		case in.err != nil:
			return false, fmt.Errorf("%s: %w", b.Repository.Path(d.name), in.err)
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return pos > start, nil
		case err != nil:
			return false, nil
		}
	}
}

// mendDat makes the .dat of the chains since the promotion list what is there: a stale master that shipped has replaced
// it by his own.
func (b *backup) mendDat(ctx context.Context, after Stamp) error {
	for f, s := range b.repo.sets {
		if !s.isFull() || len(s.data) != 1 {
			continue
		}
		next := f + 1
		for next < len(b.repo.sets) && !b.repo.sets[next].isFull() {
			next++
		}
		if b.repo.sets[next-1].stamp <= after && next < len(b.repo.sets) {
			continue
		}
		lines, _, err := b.repo.dat(ctx, s.stamp)
		if err != nil {
			return ctx.Err() // others tell of it
		}
		there := make(map[string]bool)
		for _, m := range b.repo.sets[f:next] {
			for _, d := range m.data {
				there[d.name] = true
			}
		}
		want := slices.DeleteFunc(slices.Clone(lines), func(l datLine) bool {
			stamp, _ := stampOf(l.file)
			return stamp > after && !there[l.file] && slices.ContainsFunc(b.repo.names, func(n string) bool {
				return strings.HasPrefix(n, l.file) && strings.HasSuffix(n, staleExt)
			})
		})
		if len(want) == len(lines) && !b.shortDat(f, next, lines) {
			continue
		}
		for _, o := range b.repo.sets[f:next] {
			if !o.manifest || len(o.data) != 1 {
				continue
			}
			m, err := b.repo.manifest(ctx, o.stamp)
			if err != nil {
				return ctx.Err()
			}
			if !slices.ContainsFunc(want, func(l datLine) bool { return l.file == m.File }) {
				want = append(want, m.datLine())
			}
		}
		slices.SortFunc(want, func(x, y datLine) int { return int(min(1, max(-1, x.start-y.start))) })
		b.announce()
		if err := durable.WriteFile(b.Repository.Path(string(s.stamp)+datExt), formatDat(want), 0o644); err != nil {
			return b.unwritable(err)
		}
		b.crash("dat mended")
		if err := b.open(ctx); err != nil {
			return err
		}
	}
	return nil
}

// shortDat says whether the newest published increment of a chain is not listed: somebody has replaced the .dat.
func (b *backup) shortDat(f, next int, lines []datLine) bool {
	for _, s := range slices.Backward(b.repo.sets[f:next]) {
		if s.manifest && len(s.data) == 1 {
			return !slices.ContainsFunc(lines, func(l datLine) bool { return l.file == s.data[0].name })
		}
	}
	return false
}
