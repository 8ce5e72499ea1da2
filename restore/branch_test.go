package restore

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// node is a Data.fs with the directory that it is backed up into, or fed from.
func (p *pair) node(name string, source incremental.Dir) *pair {
	q := *p
	q.data, q.shipped = filepath.Join(mkdir(p.t, p.dir, name), "Data.fs"), source
	return &q
}

// write commits to a node's Data.fs as its ZEO server does.
func (p *pair) write(transactions int) {
	p.forward(time.Minute)
	g, err := fixtures.Open(p.data, fixtures.Options{Now: p.now, NoSync: true})
	require.NoError(p.t, err)
	for range transactions {
		_, err := g.CommitRandom(p.rng, 3, 300)
		require.NoError(p.t, err)
	}
	require.NoError(p.t, g.Close())
}

// pack packs a node's Data.fs as its ZEO server does.
func (p *pair) pack() {
	g, err := fixtures.Open(p.data, fixtures.Options{Now: p.now, NoSync: true})
	require.NoError(p.t, err)
	require.NoError(p.t, g.Pack(g.LastTID()))
	require.NoError(p.t, g.Close())
}

// save backs a node up into a directory, as the command does.
func (p *pair) save(dir incremental.Dir, change ...func(*incremental.BackupOptions)) (incremental.BackupResult, error) {
	p.forward(time.Minute)
	o := incremental.BackupOptions{Data: p.data, Repository: dir, Now: p.now}
	for _, c := range change {
		c(&o)
	}
	return Backup(context.Background(), o)
}

func (p *pair) mustSave(dir incremental.Dir, change ...func(*incremental.BackupOptions)) incremental.BackupResult {
	res, err := p.save(dir, change...)
	require.NoError(p.t, err)
	return res
}

// split is two standbys of one master that were promoted to the same epoch without seeing each other, and a third that
// follows the first. Each of the two has its own directory.
func split(t *testing.T) (one, two, third *pair) {
	p := newPair(t)
	p.step(4)
	p.step(2)
	dirs := [2]incremental.Dir{incremental.Dir(filepath.Join(p.dir, "dir1")), incremental.Dir(filepath.Join(p.dir, "dir2"))}
	for _, d := range dirs {
		copyDir(t, string(p.shipped), string(d))
	}
	one, two, third = p.node("one", dirs[0]), p.node("two", dirs[1]), p.node("third", dirs[0])
	for _, q := range []*pair{one, two, third} {
		_, err := q.watch()
		require.NoError(t, err)
	}
	for _, q := range []*pair{one, two} {
		res, err := q.promote()
		require.NoError(t, err)
		require.Equal(t, 2, res.Epoch)
	}
	one.write(2)
	one.mustSave(dirs[0])
	_, err := third.watch()
	require.NoError(t, err)
	require.Equal(t, one.standbyBytes(), third.standbyBytes())
	require.Equal(t, one.state().Promotions, third.state().Promotions)
	two.clock = two.clock.Add(time.Hour)
	return one, two, third
}

// Two standbys promoted in a partition reach the same epoch. What one of them writes is never taken for the other's: not
// a delta, not a full that has every transaction which the standby has, and not one whose tids say nothing.
func TestAStandbyOfOnePromotedNodeRefusesTheOthersIncrements(t *testing.T) {
	for name, make := range map[string]func(two *pair){
		"deltas":        func(two *pair) { two.write(1); two.mustSave(two.shipped); two.write(1); two.mustSave(two.shipped) },
		"a full":        func(two *pair) { two.write(1); two.mustSave(two.shipped, full) },
		"a packed full": func(two *pair) { two.write(2); two.pack(); two.mustSave(two.shipped) },
		"a full of an epoch that is higher": func(two *pair) {
			st := two.state()
			st.Epoch++
			st.Promotions = st.Promotions.With(incremental.Promotion{Epoch: st.Epoch, ID: "a", Host: "bms9", Stamp: st.Applied.Stamp})
			require.NoError(two.t, st.write(two.data))
			two.write(2)
			two.pack()
			two.mustSave(two.shipped)
		},
	} {
		t.Run(name, func(t *testing.T) {
			one, two, third := split(t)
			make(two)
			for _, shared := range []bool{false, true} {
				third.shipped = two.shipped
				if shared { // both wrote into one directory
					for _, n := range fileNames(t, string(one.shipped)) {
						b, err := os.ReadFile(one.shipped.Path(n))
						require.NoError(t, err)
						if filepath.Ext(n) != ".dat" {
							require.NoError(t, os.WriteFile(two.shipped.Path(n), b, 0o644))
						}
					}
				}
				before, source := third.standbyBytes(), tree(t, string(two.shipped))
				_, err := third.watch()
				require.ErrorIs(t, err, fault.Diverged)
				require.ErrorContains(t, err, "promot")
				require.NotEmpty(t, fault.Next(err))
				requireSame(t, before, third.standbyBytes())
				require.Equal(t, "divergence", third.state().Condition.Name)
				require.Equal(t, source, tree(t, string(two.shipped)), "nothing is set aside: neither is stale")
			}
		})
	}
}

func TestANewStandbyDoesNotChooseBetweenTwoPromotedNodes(t *testing.T) {
	one, two, _ := split(t)
	two.write(1)
	res := two.mustSave(two.shipped)
	for _, n := range []string{res.File, incremental.ManifestName(resultStamp(res))} {
		b, err := os.ReadFile(two.shipped.Path(n))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(one.shipped.Path(n), b, 0o644))
	}
	fresh := one.node("fresh", one.shipped)
	_, err := fresh.watch()
	require.ErrorIs(t, err, fault.Diverged)
	require.ErrorContains(t, err, "two hosts that were promoted to epoch 2")
	require.NoFileExists(t, fresh.data)
}

func TestAPromotionIsInTheStateAndInEveryIncrementAfterIt(t *testing.T) {
	p := following(t)
	_, err := p.promote()
	require.NoError(t, err)
	st := p.state()
	require.Len(t, st.Promotions, 1)
	require.Equal(t, st.Applied.Stamp, st.Promotions.Last().Stamp)
	require.Equal(t, st.Applied.LastTID, st.Promotions.Last().LastTID)
	p.write(1)
	res := p.mustSave(p.shipped)
	m, err := incremental.ReadManifest(context.Background(), p.shipped, resultStamp(res))
	require.NoError(t, err)
	require.Equal(t, st.Promotions.Last().ID, m.Promotions.Last().ID)
}
