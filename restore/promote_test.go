package restore

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestAPromotionAppliesWhatIsCompleteFirst(t *testing.T) {
	p := following(t)
	p.step(2)
	p.step(1)
	res, err := p.promote()
	require.NoError(t, err)
	require.Equal(t, 2, res.Applied)
	require.Equal(t, 2, res.Epoch)
	require.Empty(t, res.Missing)
	require.False(t, res.Already)
	require.Equal(t, p.g.LastTID(), res.LastTID)
	require.Equal(t, p.g.LastTID().Time(), res.LastTime)
	p.requireTrue()
	p.requireFreshIndex()
	st := p.state()
	require.Equal(t, Promoted, st.Role)
	require.Equal(t, "promoted", st.Condition.Name)
	require.NoFileExists(t, p.data+promoteExt)
	_, held, err := filestorage.LockHolder(p.data)
	require.NoError(t, err)
	require.False(t, held)

	before := tree(t, filepath.Dir(p.data))
	again, err := p.promote()
	require.NoError(t, err)
	require.True(t, again.Already)
	require.Equal(t, 2, again.Epoch)
	require.Equal(t, res.Position, again.Position)
	p.requireUntouched(before)
}

func TestAPromotionWithoutDrainingTakesTheStandbyAsItIs(t *testing.T) {
	p := following(t)
	old := p.standbyBytes()
	p.step(2)
	require.NoError(t, os.Remove(p.data+".index"))
	res, err := p.promote(func(o *PromoteOptions) { o.Source = nil })
	require.NoError(t, err)
	require.Zero(t, res.Applied)
	requireSame(t, old, p.standbyBytes())
	p.requireFreshIndex()
}

func TestAPromotionTellsWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		name    string
		do      func(p *pair, res incremental.BackupResult)
		missing []string // files, "" for a reason only
	}{
		{"a source that is gone", func(p *pair, _ incremental.BackupResult) {
			require.NoError(p.t, os.RemoveAll(string(p.shipped)))
		}, []string{""}},
		{"an increment that is damaged", func(p *pair, res incremental.BackupResult) {
			change(p.t, p.shipped.Path(res.File), func(b []byte) []byte { return b[:9] })
		}, []string{"", "delta"}},
		{"an increment that is not there", func(p *pair, res incremental.BackupResult) {
			require.NoError(p.t, os.Remove(p.shipped.Path(res.File)))
		}, []string{"", "delta"}},
		{"a manifest that cannot be read", func(p *pair, res incremental.BackupResult) {
			change(p.t, p.shipped.Path(incremental.ManifestName(resultStamp(res))), func(b []byte) []byte { return b[9:] })
		}, []string{"", "manifest"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			old := p.standbyBytes()
			c.do(p, p.step(2))
			res, err := p.promote()
			require.NoError(t, err)
			require.Len(t, res.Missing, len(c.missing))
			for i, m := range res.Missing {
				require.Contains(t, m.Increment, c.missing[i])
				require.NotEmpty(t, m.Why)
			}
			requireSame(t, old, p.standbyBytes())
			require.Equal(t, res.Missing, p.state().Promotion.Missing)
			again, err := p.promote()
			require.NoError(t, err)
			require.Equal(t, res.Missing, again.Missing)
		})
	}
}

// What arrived and cannot be applied is read for its tids: after a failover, people ask for these transactions.
func TestAPromotionNamesTheTransactionsThatAreMissing(t *testing.T) {
	p := following(t)
	last := p.state().Applied.LastTID
	gone := p.step(2)
	p.step(3)
	lost := tidsOf(t, p.g.Path())
	require.NoError(t, os.Remove(p.shipped.Path(gone.File)))
	p.clock = p.clock.Add(10 * time.Minute)
	res, err := p.promote()
	require.NoError(t, err)
	require.Equal(t, last, res.LastTID)
	require.Equal(t, 2, res.Unapplied)
	require.Len(t, res.Missing, 3)
	require.Empty(t, res.Missing[1].TIDs, "its file is not there")
	require.EqualValues(t, 2, res.Missing[1].Transactions)
	require.Equal(t, lost[len(lost)-3:], res.Missing[2].TIDs)
	require.InDelta(t, lost[len(lost)-1].Time().Sub(last.Time()).Seconds(), res.Lag, 0.001)
	require.Equal(t, lost[len(lost)-1], res.Newest.LastTID)
	require.GreaterOrEqual(t, res.Newest.Age, 600.0)
	require.Equal(t, res.Missing, p.state().Promotion.Missing)
	again, err := p.promote()
	require.NoError(t, err)
	again.Already = false
	require.Equal(t, res, again)
}

func TestAPromotionRunsTheCommandAndStandsWhenItFails(t *testing.T) {
	p := following(t)
	out := filepath.Join(p.dir, "out")
	cmd := func(o *PromoteOptions) { o.Exec = `test ! -e "$ZODBREPL_DATA.none" && echo "$ZODBREPL_DATA" >> ` + out }
	_, err := p.promote(cmd)
	require.NoError(t, err)
	_, err = p.promote(cmd)
	require.NoError(t, err)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, p.data+"\n"+p.data+"\n", string(b), "it runs again")

	p = following(t)
	res, err := p.promote(func(o *PromoteOptions) { o.Exec = "exit 7" })
	require.ErrorContains(t, err, "exit status 7")
	require.Equal(t, 1, fault.ExitCode(err))
	require.Contains(t, fault.Kept(err), "the promotion stands")
	require.Equal(t, 2, res.Epoch)
	require.Equal(t, Promoted, p.state().Role)
}

func TestAPromotionIsRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*testing.T, *pair)
		opt  func(*PromoteOptions)
		code int
		says string
	}{
		{"while a stranger holds the lock", func(t *testing.T, p *pair) { p.holdLock(t) }, nil, 3, "is in use by process"},
		{"of a file that somebody wrote to", func(t *testing.T, p *pair) {
			change(t, p.data, func(b []byte) []byte { return append(b, 0) })
		}, nil, 5, "nobody applied"},
		{"while another promotion goes on", func(t *testing.T, p *pair) {
			l, err := announcePromotion(p.data)
			require.NoError(t, err)
			t.Cleanup(func() { l.Close() })
		}, nil, 75, "promotion of"},
		{"of something that is no standby", func(t *testing.T, p *pair) { require.NoError(t, os.Remove(statePath(p.data))) },
			func(o *PromoteOptions) { o.Source = nil }, 1, "is no standby"},
		{"of nothing", func(t *testing.T, p *pair) { p.data = filepath.Join(mkdir(t, p.dir, "new"), "Data.fs") },
			func(o *PromoteOptions) { o.Source = incremental.Dir(filepath.Dir(o.Data)) }, 6, "holds nothing yet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			p.step(1)
			c.do(t, p)
			before := tree(t, filepath.Dir(p.data))
			_, err := p.promote(func(o *PromoteOptions) {
				o.Wait = time.Millisecond
				if c.opt != nil {
					c.opt(o)
				}
			})
			require.Error(t, err)
			require.Equal(t, c.code, fault.ExitCode(err))
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err))
			p.requireUntouched(before)
		})
	}
}

func TestAPromotionWaitsByTheRealClock(t *testing.T) {
	p := following(t)
	_, release := p.holdLock(t)
	tries := 0
	_, err := p.promote(func(o *PromoteOptions) {
		o.Wait = waitLimit
		o.Log = nil
		o.Tell = func(context.Context, incremental.Answer) error { tries++; return nil }
		go func() {
			for !promotionUnderWay(p.data) {
				runtime.Gosched()
			}
			release()
		}()
	})
	require.NoError(t, err)
	require.Equal(t, 1, tries)
}

func TestARunningWatchStepsAsideForAPromotion(t *testing.T) {
	p := newPair(t)
	p.step(2)
	w := p.start()
	p.untilApplied(p.newest())
	p.g.LastTID()
	res, err := p.promote(func(o *PromoteOptions) { o.Now = nil })
	require.NoError(t, err)
	require.Equal(t, 2, res.Epoch)
	require.ErrorIs(t, w.end(t), fault.Refused)
	p.requireTrue()
	_, err = p.watch()
	require.ErrorIs(t, err, fault.Refused)
	require.ErrorContains(t, err, "was promoted")
}

func TestTwoPromotionsAtOnceAreOne(t *testing.T) {
	p := following(t)
	type result struct {
		res PromoteResult
		err error
	}
	done := make(chan result, 4)
	for range cap(done) {
		go func() {
			res, err := Promote(context.Background(), PromoteOptions{Data: p.data, Source: p.shipped})
			done <- result{res, err}
		}()
	}
	first := 0
	for range cap(done) {
		r := <-done
		require.NoError(t, r.err)
		require.Equal(t, 2, r.res.Epoch)
		if !r.res.Already {
			first++
		}
	}
	require.Equal(t, 1, first)
}

func TestTheEpochRisesAboveEverythingSeen(t *testing.T) {
	t.Run("in manifests that cannot be applied", func(t *testing.T) {
		p := following(t)
		res := p.step(1, epoch(p, 6))
		require.NoError(t, os.Remove(p.shipped.Path(res.File)))
		got, err := p.promote()
		require.NoError(t, err)
		require.Equal(t, 7, got.Epoch)
	})
	t.Run("in the answer of another host that was promoted", func(t *testing.T) {
		p := following(t)
		a := incremental.Answer{Host: "bms3", Data: "/x", Lineage: p.state().Lineage, Epoch: 4, Role: "promoted"}
		b, err := a.Encode()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(p.shipped.Path(a.Name()), b, 0o644))
		a.Lineage, a.Epoch, a.Host = "another", 9, "bms4"
		b, err = a.Encode()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(p.shipped.Path(a.Name()), b, 0o644))
		got, err := p.promote()
		require.NoError(t, err)
		require.Equal(t, 5, got.Epoch)
	})
}

func TestAnotherStandbyFollowsThePromotedNodeWithoutAFull(t *testing.T) {
	p := following(t)
	_, err := Backup(context.Background(), incremental.BackupOptions{Data: p.data, Repository: p.shipped})
	require.ErrorIs(t, err, fault.Refused, "a standby is not backed up")

	other := *p
	other.data = filepath.Join(mkdir(t, p.dir, "other"), "Data.fs")
	_, err = other.watch()
	require.NoError(t, err)
	inode, err := os.Stat(other.data)
	require.NoError(t, err)

	// The old master goes on for a while; nothing of it arrives.
	oldRepo := p.repo
	p.grow(2)
	stale := p.backup()

	_, err = p.promote()
	require.NoError(t, err)
	g, err := fixtures.Open(p.data, fixtures.Options{Now: p.now})
	require.NoError(t, err)
	_, err = g.CommitRandom(p.rng, 2, 200)
	require.NoError(t, err)
	require.NoError(t, g.Close())
	p.clock = p.clock.Add(time.Hour)
	res, err := Backup(context.Background(), incremental.BackupOptions{Data: p.data, Repository: p.shipped, Now: p.now})
	require.NoError(t, err)
	require.Equal(t, "delta", res.Action)
	require.Equal(t, 2, res.Epoch)
	p.remember(p.data, res)

	w, err := other.watch()
	require.NoError(t, err)
	require.Equal(t, 1, w.Increments)
	require.Equal(t, 2, other.state().Epoch)
	requireSame(t, p.standbyBytes(), other.standbyBytes())
	now, err := os.Stat(other.data)
	require.NoError(t, err)
	require.True(t, os.SameFile(inode, now), "not a full copy")

	// Now an increment of the old master comes late, and then one that it makes later.
	for _, late := range []bool{false, true} {
		if late {
			p.grow(1)
			p.clock = p.clock.Add(time.Hour)
			p.repo = oldRepo
			stale = p.backup()
		}
		for _, name := range []string{stale.File, incremental.ManifestName(resultStamp(stale))} {
			b, err := os.ReadFile(oldRepo.Path(name))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(p.shipped.Path(name), b, 0o644))
		}
		before := other.standbyBytes()
		_, err = other.watch()
		if late {
			require.ErrorIs(t, err, fault.Refused)
			require.ErrorContains(t, err, "stale master")
			require.ErrorContains(t, err, stale.File)
		} else {
			require.NoError(t, err, "it is older than what was applied")
		}
		requireSame(t, before, other.standbyBytes())
	}
}
