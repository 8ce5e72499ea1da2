package restore

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// takenOver is a promoted node that is backed up into the shared directory, a second standby that reads it, and the former
// master, which goes on writing without knowing.
type takenOver struct {
	*pair         // the promoted node; shipped is the shared directory
	third  *pair  // the other standby
	master *pair  // the stale master; shipped is its own repository
	own    func() // backs the promoted node up once
}

func newTakenOver(t *testing.T) *takenOver {
	p := following(t)
	f := &takenOver{pair: p, third: p.node("third", p.shipped), master: p.node("stale", p.repo)}
	f.master.data = p.g.Path()
	_, err := f.third.watch()
	require.NoError(t, err)
	require.NoError(t, p.g.Close())
	_, err = p.promote()
	require.NoError(t, err)
	f.own = func() {
		f.tick()
		f.write(2)
		res := f.mustSave(f.shipped)
		require.Equal(t, "delta", res.Action, res.Reason)
		f.remember(f.data, res)
	}
	return f
}

func (f *takenOver) tick() {
	f.clock = f.clock.Add(time.Hour)
	f.third.clock, f.master.clock = f.clock, f.clock
}

// staleSaves backs the stale master up into its own repository.
func (f *takenOver) staleSaves(change ...func(*incremental.BackupOptions)) {
	f.tick()
	f.master.write(2)
	f.master.mustSave(f.master.shipped, change...)
}

// stray are the names in the shared directory that were set aside.
func (f *takenOver) stray() (names []string) {
	for _, n := range fileNames(f.t, string(f.shipped)) {
		if strings.HasSuffix(n, ".stale") {
			names = append(names, n)
		}
	}
	return names
}

// Whatever a stale master writes into the shared directory, and however: the promoted node's backup sets it aside, goes on
// with a delta, and the directory is a good repository afterwards.
func TestAPromotedNodeSetsAsideWhatAStaleMasterWrites(t *testing.T) {
	shipped := func(f *takenOver) { // replaces the .dat too
		require.NoError(f.t, carry(f.master.shipped, f.shipped))
	}
	for _, c := range []struct {
		name  string
		write func(f *takenOver)
	}{
		{"a delta that is shipped", func(f *takenOver) { f.staleSaves(); shipped(f) }},
		{"several deltas, of several weeks", func(f *takenOver) {
			f.staleSaves()
			f.clock = f.clock.Add(30 * 24 * time.Hour)
			f.staleSaves()
			shipped(f)
		}},
		{"a full", func(f *takenOver) { f.staleSaves(full); shipped(f) }},
		{"a full and deltas after a pack", func(f *takenOver) {
			f.master.write(1)
			f.master.pack()
			f.staleSaves()
			f.staleSaves()
			shipped(f)
		}},
		{"a delta without its manifest", func(f *takenOver) { f.staleSaves(); shipped(f); f.unmanifest() }},
		{"a full without its manifest, as repozo writes it", func(f *takenOver) { f.staleSaves(full); shipped(f); f.unmanifest() }},
		{"a delta that nothing lists", func(f *takenOver) {
			f.staleSaves()
			for _, n := range fileNames(f.t, string(f.master.shipped)) {
				if _, err := os.Stat(f.shipped.Path(n)); err != nil && strings.HasSuffix(n, ".deltafsz") {
					b, err := os.ReadFile(f.master.shipped.Path(n))
					require.NoError(f.t, err)
					require.NoError(f.t, os.WriteFile(f.shipped.Path(n), b, 0o644))
				}
			}
		}},
	} {
		for _, backups := range []int{0, 1, 3} { // of the promoted node before
			for _, late := range []bool{false, true} { // made by the stale master before that, and shipped after it
				t.Run(c.name, func(t *testing.T) {
					f := newTakenOver(t)
					if late {
						hidden := f.shipped
						f.shipped = incremental.Dir(mkdir(t, f.dir, "elsewhere"))
						copyDir(t, string(hidden), string(f.shipped))
						c.write(f)
						made := f.shipped
						f.shipped = hidden
						for range backups {
							f.own()
						}
						require.NoError(t, carryAll(made, f.shipped))
					} else {
						for range backups {
							f.own()
						}
						c.write(f)
					}
					files := tree(t, string(f.shipped))
					f.own()
					require.NotEmpty(t, f.stray())
					after := tree(t, string(f.shipped))
					for _, n := range f.stray() {
						require.Equal(t, files[strings.TrimSuffix(n, ".stale")], after[n], "it was not kept as it was")
					}
					aside := f.stray()
					f.own()
					require.Equal(t, aside, f.stray(), "nothing more is set aside")

					res, err := incremental.Verify(context.Background(), f.shipped, incremental.VerifyOptions{})
					require.NoError(t, err)
					require.Len(t, res.Chains, 1)
					w, err := f.third.watch()
					require.NoError(t, err)
					require.Equal(t, backups+2, w.Increments)
					requireSame(t, f.standbyBytes(), f.third.standbyBytes())
					_, err = f.master.save(f.shipped)
					require.ErrorIs(t, err, fault.Refused, "the stale master's backup into it")
				})
			}
		}
	}
}

// unmanifest takes the stale master's manifests away from the shared directory.
func (f *takenOver) unmanifest() {
	repo, err := incremental.Open(context.Background(), f.shipped)
	require.NoError(f.t, err)
	ms, _, err := repo.Manifests(context.Background())
	require.NoError(f.t, err)
	for _, m := range ms {
		if m.Epoch == 1 && m.Stamp > f.state().Promotions.Last().Stamp {
			require.NoError(f.t, os.Remove(f.shipped.Path(incremental.ManifestName(m.Stamp))))
		}
	}
}

// carryAll copies what differs, as rsync does.
func carryAll(from, to incremental.Dir) error {
	entries, err := os.ReadDir(string(from))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".standby" || filepath.Ext(e.Name()) == ".lock" {
			continue
		}
		b, err := os.ReadFile(from.Path(e.Name()))
		if err == nil {
			err = os.WriteFile(to.Path(e.Name()), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestAStandbyOfTheNewEpochSetsAsideWhatAStaleMasterWrites(t *testing.T) {
	f := newTakenOver(t)
	f.own()
	_, err := f.third.watch()
	require.NoError(t, err)
	f.staleSaves()
	require.NoError(t, carry(f.master.shipped, f.shipped))
	before := f.third.standbyBytes()
	tell := func(o *WatchOptions) { o.Tell = tellIn(f.shipped) }
	_, err = f.third.watch(tell)
	require.ErrorIs(t, err, fault.Refused)
	require.ErrorContains(t, err, "a stale master is still writing")
	requireSame(t, before, f.third.standbyBytes())
	require.Len(t, f.stray(), 2, "increment and manifest")
	require.Equal(t, "stale-epoch", f.third.state().Condition.Name)
	answers, _, err := incremental.ReadAnswers(context.Background(), f.shipped)
	require.NoError(t, err)
	require.Len(t, answers, 1)
	require.Equal(t, "stale-epoch", answers[0].Condition)
	_, err = f.third.watch(tell)
	require.NoError(t, err, "it is out of the way")
	f.own()
	_, err = f.third.watch(tell)
	require.NoError(t, err)
	requireSame(t, f.standbyBytes(), f.third.standbyBytes())
}

// readOnly is a source that cannot be changed.
type readOnly struct{ incremental.Dir }

func (readOnly) Rename(context.Context, string, string) error { return os.ErrPermission }

func TestAStaleMastersIncrementIsRejectedWhereItCannotBeSetAside(t *testing.T) {
	f := newTakenOver(t)
	f.staleSaves() // after the promotion, before the promoted node's first backup
	require.NoError(t, carry(f.master.shipped, f.shipped))
	stolen := f.clock
	f.own()
	f.staleSaves()
	require.NoError(t, carry(f.master.shipped, f.shipped))
	require.True(t, f.clock.After(stolen))
	before := tree(t, string(f.shipped))
	for range 2 {
		_, err := f.third.watch(func(o *WatchOptions) { o.Source = readOnly{f.shipped} })
		require.ErrorIs(t, err, fault.Refused)
	}
	require.Equal(t, before, tree(t, string(f.shipped)))
	requireSame(t, f.standbyBytes(), f.third.standbyBytes())
}

// The stale master's own backup refuses as soon as anything in its repository tells of a higher epoch.
func TestAStaleMastersBackupRefusesWhenItCanKnow(t *testing.T) {
	for _, c := range []struct {
		name string
		tell func(f *takenOver)
	}{
		{"from the answer of the promoted node", func(f *takenOver) {
			require.NoError(f.t, tellIn(f.master.shipped)(context.Background(), answerOf(f.data, f.state())))
		}},
		{"from the answer of another standby of the new epoch", func(f *takenOver) {
			f.own()
			_, err := f.third.watch()
			require.NoError(f.t, err)
			require.NoError(f.t, tellIn(f.master.shipped)(context.Background(), answerOf(f.third.data, f.third.state())))
		}},
		{"from the fence that the promoted node's backup has brought", func(f *takenOver) {
			f.own()
			b, err := os.ReadFile(f.shipped.Path("zodbrepl.fence"))
			require.NoError(f.t, err)
			require.NoError(f.t, os.WriteFile(f.master.shipped.Path("zodbrepl.fence"), b, 0o644))
		}},
		{"from an increment", func(f *takenOver) {
			f.own()
			require.NoError(f.t, carry(f.shipped, f.master.shipped))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newTakenOver(t)
			f.staleSaves()
			c.tell(f)
			f.tick()
			f.master.write(1)
			before := tree(t, string(f.master.shipped))
			_, err := f.master.save(f.master.shipped)
			require.ErrorIs(t, err, fault.Refused)
			require.ErrorContains(t, err, "another host was promoted")
			require.NotEmpty(t, fault.Next(err))
			require.Equal(t, before, tree(t, string(f.master.shipped)))
		})
	}
}

// Neither of two that were promoted to one epoch writes into the other's repository, and nothing is set aside.
func TestAPromotedNodeRefusesTheRepositoryOfTheOther(t *testing.T) {
	one, two, _ := split(t)
	two.write(1)
	two.mustSave(two.shipped)
	for _, dir := range []incremental.Dir{one.shipped, two.shipped} {
		p := map[incremental.Dir]*pair{one.shipped: two, two.shipped: one}[dir]
		before := tree(t, string(dir))
		_, err := p.save(dir)
		require.ErrorIs(t, err, fault.Diverged)
		require.ErrorContains(t, err, "two masters")
		require.Equal(t, before, tree(t, string(dir)))
	}
	// Also when the other has only told of its promotion.
	one, two, _ = split(t)
	require.NoError(t, tellIn(one.shipped)(context.Background(), func() incremental.Answer {
		a := answerOf(two.data, two.state())
		a.Host = "bms3"
		return a
	}()))
	_, err := one.save(one.shipped)
	require.ErrorIs(t, err, fault.Diverged)
	require.ErrorContains(t, err, "host bms3 was promoted to epoch 2 as well")
}

func TestAStatusSeesTheOtherMaster(t *testing.T) {
	one, two, _ := split(t)
	two.write(1)
	two.mustSave(two.shipped)
	for _, c := range []struct{ self, other *pair }{{one, two}, {two, one}} {
		before := tree(t, one.dir)
		s, err := ReadStatus(context.Background(), StatusOptions{Data: c.self.data, Source: c.other.shipped})
		require.NoError(t, err)
		require.Equal(t, "split-brain", s.Condition.Name)
		require.NotEmpty(t, s.Condition.Next)
		require.Len(t, s.Others, 1)
		o := s.Others[0]
		tids := tidsOf(t, c.other.data)
		require.Equal(t, tids[len(tids)-1], o.LastTID)
		require.Equal(t, 2, o.Epoch)
		require.Equal(t, c.self.state().Promotions.Last().LastTID, o.CommonTID)
		require.Equal(t, c.self.state().Promotions.Last().Position, o.CommonPosition)
		require.Equal(t, before, tree(t, one.dir))
		s, err = ReadStatus(context.Background(), StatusOptions{Data: c.self.data, Source: c.self.shipped})
		require.NoError(t, err)
		require.Empty(t, s.Others)
		require.Equal(t, "promoted", s.Condition.Name)
	}

	// A promoted node sees a stale master, and the stale master, which has no state, that it is superseded.
	f := newTakenOver(t)
	f.staleSaves()
	s, err := ReadStatus(context.Background(), StatusOptions{Data: f.data, Source: f.master.shipped})
	require.NoError(t, err)
	require.Equal(t, "promoted", s.Condition.Name)
	require.Len(t, s.Others, 1)
	require.Equal(t, "stale", s.Others[0].Relation)
	require.Equal(t, f.state().Promotions.Last().LastTID, s.Others[0].CommonTID)
	f.own()
	s, err = ReadStatus(context.Background(), StatusOptions{Data: f.master.data, Source: f.shipped})
	require.NoError(t, err)
	require.Equal(t, "superseded", s.Condition.Name)
	require.Contains(t, s.Condition.Next, "rejoin")
}

// A cascade: the master's increments come to X, which feeds the first standby, and are shipped on from X to Y, which feeds
// the second and the third. One of them is promoted and backed up into the place that it reads; the others follow it without
// a full copy, wherever they stand in the cascade.
func TestInACascadeTheOthersFollowThePromotedOneWithoutAFull(t *testing.T) {
	for promoted := range 3 {
		t.Run([]string{"the first", "the second", "the third"}[promoted], func(t *testing.T) {
			p := newPair(t)
			x := p.shipped
			y := incremental.Dir(mkdir(t, p.dir, "y"))
			nodes := []*pair{p.node("first", x), p.node("second", y), p.node("third", y)}
			for range 3 {
				p.step(2)
				require.NoError(t, carry(x, y))
				for _, n := range nodes {
					_, err := n.watch()
					require.NoError(t, err)
				}
			}
			inodes := make([]os.FileInfo, len(nodes))
			for i, n := range nodes {
				fi, err := os.Stat(n.data)
				require.NoError(t, err)
				inodes[i] = fi
			}
			head := nodes[promoted]
			head.clock = p.clock.Add(time.Hour)
			_, err := head.promote()
			require.NoError(t, err)
			for range 2 {
				head.write(2)
				require.Equal(t, "delta", head.mustSave(head.shipped).Action)
				other := map[incremental.Dir]incremental.Dir{x: y, y: x}[head.shipped]
				require.NoError(t, carry(head.shipped, other))
				for i, n := range nodes {
					if n == head {
						continue
					}
					n.clock = head.clock
					res, err := n.watch()
					require.NoError(t, err)
					require.Equal(t, 1, res.Increments)
					requireSame(t, head.standbyBytes(), n.standbyBytes())
					fi, err := os.Stat(n.data)
					require.NoError(t, err)
					require.True(t, os.SameFile(inodes[i], fi), "a whole copy was made")
				}
			}
		})
	}
}
