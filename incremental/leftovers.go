package incremental

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"zodbrepl/filestorage"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// recoverRepository takes away what a run that died left half-written, and completes what it had stored whole but
// not published.
func (b *backup) recoverRepository(ctx context.Context) error {
	if err := b.removeTemporary(); err != nil {
		return err
	}
	for {
		changed, err := b.settleOrphan(ctx)
		if err != nil {
			return err
		}
		if !changed {
			return b.adopt(ctx)
		}
		if err = b.open(ctx); err != nil {
			return err
		}
	}
}

// removeTemporary removes the temporary files of a run that died: ours only, not repozo's tmp.tmp.
func (b *backup) removeTemporary() error {
	var dead []string
	for _, name := range b.repo.names {
		if stem, ok := strings.CutSuffix(name, durable.TempSuffix); ok && (isOurs(stem) || stem == fenceName) {
			dead = append(dead, b.Repository.Path(name))
		}
	}
	return durable.Remove(dead...)
}

// settleOrphan looks in the newest chain for the first increment that neither a manifest nor the .dat knows. A run
// that died leaves one, ours or repozo's. It is given its line in the .dat when it is whole and lies where it must:
// Data.fs may have been packed since, so nobody else may have its transactions. Otherwise it is set aside, where
// repozo does not see it, but never removed. changed says that the directory must be read again.
func (b *backup) settleOrphan(ctx context.Context) (changed bool, err error) {
	f := b.repo.full(len(b.repo.sets) - 1)
	if f < 0 {
		return false, nil
	}
	var sets []*fileSet
	for _, s := range b.repo.sets[f:] {
		if len(s.data) > 1 || s.irregular != "" {
			return false, nil // Chains tells of it
		}
		if len(s.data) == 1 {
			sets = append(sets, s)
		}
	}
	if !slices.ContainsFunc(sets, func(s *fileSet) bool { return !s.manifest }) {
		return false, nil
	}
	lines, _, err := b.repo.dat(ctx, sets[0].stamp)
	if err != nil {
		return false, ctx.Err() // Chains tells of it
	}
	known := func(s *fileSet) bool {
		return s.manifest || slices.ContainsFunc(lines, func(l datLine) bool { return l.file == s.data[0].name })
	}
	i := slices.IndexFunc(sets, func(s *fileSet) bool { return !known(s) })
	if i < 0 {
		return false, nil
	}
	var start, next int64
	if i > 0 {
		if _, start, err = b.extentOf(ctx, sets[i-1], lines); err != nil {
			return false, ctx.Err()
		}
	}
	after := slices.IndexFunc(sets[i:], known)
	if after >= 0 {
		if next, _, err = b.extentOf(ctx, sets[i+after], lines); err != nil {
			return false, ctx.Err()
		}
	}
	return b.settle(ctx, sets[0].stamp, sets[i].data[0], start, next)
}

// settle decides about an orphan between the position start and the next published increment's start, 0 for none.
func (b *backup) settle(ctx context.Context, chain Stamp, d dataFile, start, next int64) (changed bool, err error) {
	if next > 0 && next <= start { // it was made again by a run that did not trust it
		return true, b.setAside(d.name, "a later increment has its transactions")
	}
	line, err := b.measure(ctx, d, start)
	switch {
	case errors.Is(err, fault.Unverified) && next == 0:
		return true, b.setAside(d.name, err.Error())
	case errors.Is(err, fault.Unverified) || err == nil && next > 0 && line.end != next:
		return false, nil // the gap was there before; it is for people
	case err != nil:
		return false, err
	}
	b.Log.Warn("an increment was stored but not published, a former run died: completing it", "increment", d.name, "position", line.end)
	return true, b.list(ctx, chain, line)
}

func (b *backup) setAside(name, why string) error {
	b.announce()
	b.Log.Warn("an increment was never published: it is set aside; remove it when you are sure that nobody needs it",
		"increment", b.Repository.Path(name+unpublishedExt), "cause", why)
	if err := durable.Rename(b.Repository.Path(name), b.Repository.Path(name+unpublishedExt)); err != nil {
		return err
	}
	b.crash("set aside")
	return nil
}

// extentOf returns the positions of a published increment.
func (b *backup) extentOf(ctx context.Context, s *fileSet, lines []datLine) (start, end int64, err error) {
	if s.manifest {
		m, err := b.repo.manifest(ctx, s.stamp)
		if err != nil {
			return 0, 0, err
		}
		return m.Start, m.End, nil
	}
	for _, l := range lines {
		if l.file == s.data[0].name {
			return l.start, l.end, nil
		}
	}
	return 0, 0, errNoChain
}

// measure reads a stored increment of which only the name and the start are known, and returns its line for the
// .dat. Every data record tells its transaction's position, so bytes that belong elsewhere do not pass.
func (b *backup) measure(ctx context.Context, d dataFile, start int64) (line datLine, err error) {
	bad := func(err error) error {
		return fault.New(fault.Unverified, "%s (from position %d)", b.Repository.Path(d.name), start).Because(err)
	}
	if (d.kind == Full) != (start == 0) {
		return line, bad(errors.New("a full begins a chain, and nothing else does"))
	}
	stored, err := b.Repository.Open(ctx, d.name)
	if err != nil {
		return line, err
	}
	defer stored.Close()
	in := &meter{r: stored, ctx: ctx}
	raw, err := d.codec.NewReader(in, b.Jobs)
	check := filestorage.NewChecker(b.Repository.Path(d.name), start)
	sum := md5.New()
	var n int64
	if err == nil {
		defer raw.Close()
		n, err = io.CopyBuffer(io.MultiWriter(check, sum), raw, make([]byte, 256<<10))
	}
	switch {
	case in.err != nil:
		return line, fmt.Errorf("%s: %w", b.Repository.Path(d.name), in.err)
	case err == nil:
		err = check.Close()
	}
	if err == nil && n == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return line, bad(err)
	}
	return datLine{file: d.name, start: start, end: start + n, md5: hex.EncodeToString(sum.Sum(nil))}, nil
}

// removeChainsBefore removes every chain before the full keep. A chain goes from its end to its beginning, its .dat
// first, so that what is left when the host dies in the middle is a chain still, and no list of missing files.
func (b *backup) removeChainsBefore(keep Stamp) error {
	byStamp := make(map[Stamp][]string)
	var dats, dead []string
	for _, name := range b.repo.names {
		s, ok := stampOf(name)
		switch {
		case !ok || s >= keep || !isOurs(name):
		case strings.HasSuffix(name, datExt):
			dats = append(dats, name)
		default:
			byStamp[s] = append(byStamp[s], name)
		}
	}
	slices.Reverse(dats)
	dead = append(dead, dats...)
	for _, s := range slices.Backward(b.repo.sets) {
		names := byStamp[s.stamp]
		// The manifest goes first: what has none does not exist for others.
		slices.SortFunc(names, func(x, y string) int {
			return manifestRank(x) - manifestRank(y)
		})
		dead = append(dead, names...)
	}
	if len(dead) == 0 {
		return nil
	}
	for _, name := range dead {
		b.crash("removing")
		if err := os.Remove(b.Repository.Path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return durable.SyncDir(string(b.Repository))
}

func manifestRank(name string) int {
	if strings.HasSuffix(name, manifestExt) {
		return 0
	}
	return 1
}
