package restore

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// seeded is a pair with a full and two deltas, and a Data.fs on the standby that has no state.
func seeded(t *testing.T, seed func(p *pair, ends []int64, all []byte) []byte) *pair {
	p := newPair(t)
	var ends []int64
	for range 3 {
		ends = append(ends, p.step(3).End)
	}
	require.NoError(t, os.WriteFile(p.data, seed(p, ends, p.at[p.newest()]), 0o644))
	return p
}

func TestADataFsWithoutAStateIsAdoptedWhenItIsAPrefix(t *testing.T) {
	for _, c := range []struct {
		name    string
		seed    func(p *pair, ends []int64, all []byte) []byte
		applied int
	}{
		{"of the whole chain", func(_ *pair, _ []int64, all []byte) []byte { return all }, 0},
		{"that ends with a delta", func(_ *pair, ends []int64, all []byte) []byte { return all[:ends[1]] }, 1},
		{"that ends with the full", func(_ *pair, ends []int64, all []byte) []byte { return all[:ends[0]] }, 2},
		{"that ends in the middle of a delta", func(_ *pair, ends []int64, all []byte) []byte { return all[:(ends[1]+ends[2])/2] }, 1},
		{"that ends with a byte of a delta", func(_ *pair, ends []int64, all []byte) []byte { return all[:ends[1]+1] }, 1},
		{"with a transaction in flight", func(p *pair, _ []int64, all []byte) []byte {
			txn := p.g.BeginRandom(p.rng, 2, 300)
			require.NoError(p.t, txn.Vote())
			b, err := os.ReadFile(p.g.Path())
			require.NoError(p.t, err)
			require.NoError(p.t, txn.Abort())
			require.Greater(p.t, len(b), len(all))
			return b
		}, 0},
		{"that is a part of the full", func(_ *pair, ends []int64, all []byte) []byte { return all[:ends[0]/2] }, 3},
		{"that is only the magic", func(_ *pair, _ []int64, all []byte) []byte { return all[:4] }, 3},
		{"that is empty", func(*pair, []int64, []byte) []byte { return nil }, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := seeded(t, c.seed)
			fi, err := os.Stat(p.data)
			require.NoError(t, err)
			res, err := p.watch()
			require.NoError(t, err)
			require.Equal(t, c.applied, res.Increments)
			p.requireCurrent()
			p.requireFreshIndex()
			if c.applied < 3 {
				now, err := os.Stat(p.data)
				require.NoError(t, err)
				require.True(t, os.SameFile(fi, now), "it was adopted, not replaced")
			}
		})
	}
}

func TestADataFsWithoutAStateIsRefusedAndNotChanged(t *testing.T) {
	for _, c := range []struct {
		name string
		seed func(p *pair, ends []int64, all []byte) []byte
		kind error
		says string
	}{
		{"when it is ahead of the chain", func(p *pair, _ []int64, _ []byte) []byte {
			p.grow(1)
			b, err := os.ReadFile(p.g.Path())
			require.NoError(p.t, err)
			return b
		}, fault.Diverged, "ahead of the repository"},
		{"when it is another database", func(*pair, []int64, []byte) []byte { return fixtures.Plain() }, fault.Diverged, "it differs from the chain"},
		{"when it differs in a delta", func(_ *pair, ends []int64, all []byte) []byte {
			b := clone(all)
			b[ends[0]+60] ^= 1
			return b
		}, fault.Diverged, "it differs from the chain"},
		{"when it differs in the middle of the last increment", func(p *pair, ends []int64, all []byte) []byte {
			return append(clone(all[:ends[1]]), otherTransaction(p, all[:ends[1]])...)
		}, fault.Diverged, "it differs from the chain"},
		{"when an increment is missing", func(p *pair, ends []int64, all []byte) []byte {
			require.NoError(p.t, os.Remove(p.dataFileOf(p.newest())))
			require.NoError(p.t, os.Remove(p.shipped.Path(incremental.ManifestName(p.newest()))))
			return all
		}, fault.Gap, "can be compared up to"},
		{"when a manifest is missing", func(p *pair, ends []int64, all []byte) []byte {
			require.NoError(p.t, os.Remove(p.shipped.Path(incremental.ManifestName(p.newest()))))
			return all
		}, fault.Diverged, "has no manifest"},
		{"when the directory is empty", func(p *pair, _ []int64, all []byte) []byte {
			p.shipped = incremental.Dir(mkdir(p.t, p.dir, "empty"))
			return all
		}, fault.Gap, "holds no chain"},
		{"when the directory is not there", func(p *pair, _ []int64, all []byte) []byte {
			p.shipped = incremental.Dir(filepath.Join(p.dir, "none"))
			return all
		}, nil, "does not exist"},
		{"when it is no Data.fs", func(*pair, []int64, []byte) []byte { return []byte("no Data.fs") }, nil, "begins with"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := seeded(t, c.seed)
			before := tree(t, filepath.Dir(p.data))
			_, err := p.watch()
			require.Error(t, err)
			if c.kind != nil {
				require.ErrorIs(t, err, c.kind)
			}
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err))
			p.requireUntouched(before)
			// Nor by a promotion.
			_, err = p.promote()
			require.Error(t, err)
			p.requireUntouched(before)
		})
	}
}

// otherTransaction is one that continues the bytes and is not the master's.
func otherTransaction(p *pair, b []byte) []byte {
	path := filepath.Join(p.dir, "other.fs")
	require.NoError(p.t, os.WriteFile(path, b, 0o644))
	g, err := fixtures.Open(path, fixtures.Options{})
	require.NoError(p.t, err)
	_, err = g.Commit("x", "other", fixtures.Record{OID: 1, Data: []byte("x")})
	require.NoError(p.t, err)
	require.NoError(p.t, g.Close())
	all, err := os.ReadFile(path)
	require.NoError(p.t, err)
	return all[len(b):]
}

func TestARunningWatchAdoptsWhenTheSourceComes(t *testing.T) {
	p := seeded(t, func(_ *pair, ends []int64, all []byte) []byte { return all[:ends[1]] })
	require.NoError(t, os.Rename(string(p.shipped), string(p.shipped)+".away"))
	w := p.start()
	require.Eventually(t, func() bool { return w.log.count("source-unreadable") == 1 }, waitLimit, waitTick)
	require.NoFileExists(t, statePath(p.data), "it is not known yet whether this is a standby")
	require.NoError(t, os.Rename(string(p.shipped)+".away", string(p.shipped)))
	p.untilApplied(p.newest())
	require.NoError(t, w.stop(t))
	p.requireCurrent()
	p.requireFreshIndex()
}

func TestAPartOfAFullThatSomebodyWritesToIsNotReplaced(t *testing.T) {
	p := seeded(t, func(_ *pair, ends []int64, all []byte) []byte { return all[:ends[0]/2] })
	_, err := p.watch(func(o *WatchOptions) {
		o.crash = func(point string) {
			if point == "staged" {
				change(t, p.data, func(b []byte) []byte { return append(b, "more"...) })
			}
		}
	})
	require.ErrorIs(t, err, fault.Diverged)
	require.Contains(t, string(p.standbyBytes()), "more")
	require.NoFileExists(t, p.data+stageExt)
	_, err = ReadStatus(context.Background(), StatusOptions{Data: p.data})
	require.NoError(t, err)
}

func TestAWatchThatIsStartedOnTheMasterByMistakeIsRefused(t *testing.T) {
	p := newPair(t)
	p.step(3)
	before := tree(t, p.dir)
	_, err := p.watch(func(o *WatchOptions) { o.Data, o.Source = p.g.Path(), p.repo })
	require.ErrorIs(t, err, fault.Refused)
	require.Contains(t, err.Error(), "this host is the master")
	require.Contains(t, fault.Next(err), "zodbrepl handover")
	require.Equal(t, before, tree(t, p.dir))
	_, err = p.promote(func(o *PromoteOptions) { o.Data, o.Source = p.g.Path(), p.repo })
	require.NoError(t, err, "a master that has lost its state file")
}
