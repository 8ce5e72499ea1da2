package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestAFormerMasterRejoinsWithDeltas(t *testing.T) {
	f := following(t).failOver(4)
	f.goOn(3)
	f.goOn(2)
	before := raw(t, f.former)
	files := formerTree(t, f)

	dryRes, err := f.rejoin(dry)
	require.NoError(t, err)
	require.Equal(t, files, formerTree(t, f), "a dry run changes nothing")

	res, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinDeltas, res.Way)
	require.Equal(t, f.common, res.Common.Position)
	require.EqualValues(t, 4, res.Only.Transactions)
	require.EqualValues(t, int64(len(before))-f.common, res.Only.Bytes)
	require.Zero(t, res.Only.InFlight)
	require.Len(t, res.Shown, 4)
	require.Equal(t, 2, res.Epoch)
	require.Equal(t, f.common, res.Applied.Position)
	require.Zero(t, res.Again)

	require.Equal(t, res.Saved, dryRes.Saved)
	require.Equal(t, res.Common, dryRes.Common)
	require.Equal(t, res.Shown, dryRes.Shown)
	require.Equal(t, f.former+".diverged-"+res.Common.LastTID.String(), res.Saved)
	requireKept(t, res.Saved, before, f.common)
	listing := string(raw(t, res.Listing))
	for _, c := range res.Shown {
		require.Contains(t, listing, c.TID.String())
		require.Contains(t, listing, fmt.Sprintf("%q", c.User))
		require.Contains(t, listing, fmt.Sprintf("%q", c.Description))
		require.NotEmpty(t, c.OIDs)
		for _, oid := range c.OIDs {
			require.Contains(t, listing, oid.String())
		}
	}
	requireSame(t, before[:f.common], raw(t, f.former))
	f.follow()

	again, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinNothing, again.Way)
	f.goOn(1)
	f.follow()
}

func TestRejoinFindsTheLastCommonCommitWhereverItIs(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(f *failover)
		// only is how many transactions are here alone; again says that common ones come again.
		only  int64
		again bool
	}{
		{"nothing diverged", func(f *failover) {}, 0, false},
		{"nothing diverged, and Data.fs ends in the middle of an increment", func(f *failover) {
			f.cutFormer(f.endsOf()[6])
		}, 0, true},
		{"Data.fs ends before the last increment", func(f *failover) { f.cutFormer(f.endsOf()[5]) }, 0, true},
		{"a transaction in flight", func(f *failover) {
			g := f.reopen()
			txn := g.BeginRandom(f.rng, 2, 300)
			require.NoError(f.t, txn.Vote())
			require.NoError(f.t, g.Close())
		}, 0, false},
		{"the first bytes of a header at the end", func(f *failover) {
			change(f.t, f.former, func(b []byte) []byte { return append(b, b[4:14]...) })
		}, 0, false},
		{"a torn transaction at the end", func(f *failover) {
			change(f.t, f.former, func(b []byte) []byte { return append(b, b[4:80]...) })
		}, 0, false},
		{"one transaction", func(f *failover) { f.commitFormer(1) }, 1, false},
		{"a transaction instead of a shipped one", func(f *failover) {
			f.cutFormer(f.endsOf()[6])
			f.commitFormer(1)
		}, 1, true},
		{"the whole last increment is another one", func(f *failover) {
			f.cutFormer(f.endsOf()[4])
			f.commitFormer(6)
		}, 6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := following(t).failOver(0)
			require.NoError(t, f.g.Close())
			c.do(f)
			f.goOn(2)
			before := raw(t, f.former)
			res, err := f.rejoin()
			require.NoError(t, err)
			require.Equal(t, RejoinDeltas, res.Way)
			require.Equal(t, c.only, res.Only.Transactions)
			require.Equal(t, c.again, res.Again > 0)
			requireSame(t, before[:res.Common.Position], f.at[f.newest()][:res.Common.Position])
			if int64(len(before)) > res.Common.Position {
				requireKept(t, res.Saved, before, res.Common.Position)
				require.FileExists(t, res.Listing)
			} else {
				require.Empty(t, res.Saved)
				require.ElementsMatch(t, []string{"Data.fs", "Data.fs.lock", "Data.fs.zodbrepl"}, fileNames(t, filepath.Dir(f.former)))
			}
			f.follow()
		})
	}
}

// endsOf returns the commit boundaries of the former master.
func (f *failover) endsOf() (ends []int64) {
	file, c, err := filestorage.Open(f.former)
	require.NoError(f.t, err)
	defer c.Close()
	for t, err := range file.Transactions(filestorage.MagicSize) {
		require.NoError(f.t, err)
		ends = append(ends, t.End())
	}
	return ends
}

func (f *failover) cutFormer(size int64) { require.NoError(f.t, os.Truncate(f.former, size)) }

func (f *failover) reopen() *fixtures.Grower {
	g, err := fixtures.Open(f.former, fixtures.Options{NoSync: true, Now: f.now})
	require.NoError(f.t, err)
	return g
}

func (f *failover) commitFormer(n int) {
	g := f.reopen()
	for range n {
		_, err := g.CommitRandom(f.rng, 3, 400)
		require.NoError(f.t, err)
	}
	require.NoError(f.t, g.Close())
}

func TestAFormerMasterRejoinsANewMasterThatWasPacked(t *testing.T) {
	f := following(t).failOver(4)
	f.goOn(3)
	require.NoError(t, f.next.Pack(f.next.LastTID()))
	f.goOn(2)
	before, tids := raw(t, f.former), tidsFrom(t, f.former, 0)
	require.NoError(t, os.WriteFile(f.former+".index", []byte("an index"), 0o644))
	files := formerTree(t, f)
	dryRes, err := f.rejoin(dry)
	require.NoError(t, err)
	require.Equal(t, files, formerTree(t, f))
	require.Equal(t, RejoinFull, dryRes.Way)
	require.EqualValues(t, len(f.at[f.newest()]), dryRes.Needed)
	require.Positive(t, dryRes.Free)

	res, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, dryRes.Saved, res.Saved)
	require.Nil(t, res.Applied)
	require.Contains(t, tids[:len(tids)-4], res.Common.LastTID)
	require.GreaterOrEqual(t, res.Only.Transactions, int64(4))
	require.True(t, res.Only.Packed)
	requireSame(t, before, raw(t, res.Saved))
	require.Equal(t, "an index", string(raw(t, res.Saved+".index")))
	listing := string(raw(t, res.Listing))
	for _, tid := range tids[len(tids)-4:] {
		require.Contains(t, listing, tid.String())
	}
	require.NoFileExists(t, f.former)
	require.NoFileExists(t, f.former+".index")
	again, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinNothing, again.Way)
	f.follow()
	requireSame(t, before, raw(t, res.Saved))
}

func TestAFullOfTheNewMasterThatWasNotPacked(t *testing.T) {
	t.Run("of which Data.fs is a beginning replaces it", func(t *testing.T) {
		f := following(t).failOver(0)
		f.goOn(3, full)
		res, err := f.rejoin()
		require.NoError(t, err)
		require.Equal(t, RejoinFull, res.Way)
		require.Empty(t, res.Saved)
		require.Equal(t, f.common, res.Common.Position)
		f.follow()
	})
	t.Run("with what Data.fs has not", func(t *testing.T) {
		f := following(t).failOver(2)
		f.goOn(3, full)
		before := raw(t, f.former)
		res, err := f.rejoin()
		require.NoError(t, err)
		require.Equal(t, RejoinFull, res.Way)
		require.Equal(t, f.common, res.Common.Position)
		require.EqualValues(t, 2, res.Only.Transactions)
		require.False(t, res.Only.Packed)
		requireSame(t, before, raw(t, res.Saved))
		f.follow()
	})
	t.Run("whose end Data.fs has", func(t *testing.T) {
		f := following(t).failOver(2)
		f.goOn(0, full)
		res, err := f.rejoin()
		require.NoError(t, err)
		require.Equal(t, RejoinDeltas, res.Way)
		require.EqualValues(t, 2, res.Only.Transactions)
		f.goOn(1)
		f.follow()
	})
}

func TestAHostThatWasPromotedAndBackedUpNothingIsFollowed(t *testing.T) {
	f := following(t).failOver(3)
	f.step(0, full) // a stale master's, after the promotion
	_, err := f.rejoin()
	require.ErrorIs(t, err, fault.Refused)
	tell(t, f)
	before := raw(t, f.former)
	res, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinDeltas, res.Way)
	require.Equal(t, 2, res.Epoch)
	require.EqualValues(t, 3, res.Only.Transactions)
	requireKept(t, res.Saved, before, f.common)
}

// tell leaves the new master's answer in the shared directory.
func tell(t *testing.T, f *failover) {
	t.Helper()
	a := answerOf(f.data, f.state())
	doc, err := a.Encode()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(f.shipped.Path(a.Name()), doc, 0o644))
}

func TestRejoinRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, f *failover)
		kind error
		says string
	}{
		{"a source of the node's own epoch", func(t *testing.T, f *failover) {
			st := f.state()
			st.Applied = Applied{Chain: st.Applied.Chain, Stamp: st.Applied.Stamp, Position: st.Applied.Position, LastTID: st.Applied.LastTID, Tail: st.Applied.Tail}
			require.NoError(t, st.write(f.former))
		}, fault.Refused, "no other host was promoted after it"},
		{"a source where nobody was promoted", func(t *testing.T, f *failover) {
			require.NoError(t, os.RemoveAll(string(f.shipped)))
			require.NoError(t, os.CopyFS(string(f.shipped), os.DirFS(string(f.repo))))
		}, fault.Refused, "no other host was promoted after it"},
		{"another lineage", func(t *testing.T, f *failover) {
			st := f.state()
			st.Lineage = "another"
			st.Epoch, st.Promotions = 1, nil
			require.NoError(t, st.write(f.former))
		}, fault.Diverged, "lineage"},
		{"another database without a state", func(t *testing.T, f *failover) {
			require.NoError(t, os.Remove(f.former))
			g, err := fixtures.Create(f.former, fixtures.Options{Now: f.now})
			require.NoError(t, err)
			_, err = g.Commit("u", "d", fixtures.Record{OID: 1, Data: []byte("x")})
			require.NoError(t, err)
			require.NoError(t, g.Close())
		}, fault.Diverged, "another database"},
		{"an empty directory", func(t *testing.T, f *failover) {
			require.NoError(t, os.RemoveAll(string(f.shipped)))
			require.NoError(t, os.Mkdir(string(f.shipped), 0o755))
		}, fault.Refused, "no increment to compare"},
		{"an empty directory with the answer of a promoted host", func(t *testing.T, f *failover) {
			require.NoError(t, os.RemoveAll(string(f.shipped)))
			require.NoError(t, os.Mkdir(string(f.shipped), 0o755))
			f.tells(t, 2)
		}, fault.Gap, "was promoted (epoch 2)"},
		{"the fence of a host that was promoted and has backed up nothing", func(t *testing.T, f *failover) {
			require.NoError(t, os.RemoveAll(string(f.shipped)))
			require.NoError(t, os.CopyFS(string(f.shipped), os.DirFS(string(f.repo))))
			require.NoError(t, incremental.Fence{Lineage: f.state().Lineage, Epoch: 2, Where: "the promotion of host bms2"}.Raise(f.shipped))
		}, fault.Gap, "epoch 2 was seen at the promotion of host bms2"},
		{"a newest manifest that cannot be read", func(t *testing.T, f *failover) {
			require.NoError(t, os.RemoveAll(string(f.shipped)))
			require.NoError(t, os.CopyFS(string(f.shipped), os.DirFS(string(f.repo))))
			require.NoError(t, os.WriteFile(f.shipped.Path(incremental.ManifestName("2030-01-01-00-00-00")), []byte("{"), 0o644))
		}, fault.Gap, "it may be of a host that was promoted"},
		{"a directory that is not there", func(t *testing.T, f *failover) {
			require.NoError(t, os.RemoveAll(string(f.shipped)))
		}, nil, "does not exist"},
		{"no Data.fs", func(t *testing.T, f *failover) {
			require.NoError(t, os.Remove(f.former))
		}, fault.Gap, "nothing to compare"},
		{"a Data.fs that is none", func(t *testing.T, f *failover) {
			require.NoError(t, os.WriteFile(f.former, []byte("#!/bin/sh"), 0o644))
		}, nil, "nothing to compare"},
		{"a running server", func(t *testing.T, f *failover) {
			l, err := filestorage.AcquireLock(f.former)
			require.NoError(t, err)
			t.Cleanup(func() { l.Release() })
		}, fault.Refused, "in use by process"},
		{"a promotion under way", func(t *testing.T, f *failover) {
			l, err := announcePromotion(f.former)
			require.NoError(t, err)
			t.Cleanup(func() { l.Close() })
		}, fault.Refused, "being promoted"},
		{"the master itself, without its state", func(t *testing.T, f *failover) {
			f.former = f.data
			require.NoError(t, os.Remove(statePath(f.data)))
		}, fault.Refused, "this node is the master"},
		{"a gap before the common position", func(t *testing.T, f *failover) {
			f.cutFormer(f.endsOf()[2])
			require.NoError(t, os.Remove(f.shipped.Path(incremental.ManifestName(f.state().Applied.Stamp))))
		}, fault.Gap, "which is not here"},
		{"an increment that is damaged where it differs", func(t *testing.T, f *failover) {
			m := f.newest()
			change(t, f.shipped.Path(string(m)+".deltafsz"), func(b []byte) []byte { return append(b[:40:40], 'x', 'y', 'z') })
		}, fault.Unverified, "comparing"},
		{"a state file that cannot be read", func(t *testing.T, f *failover) {
			require.NoError(t, os.WriteFile(statePath(f.former), []byte("{"), 0o644))
		}, nil, "state file"},
		{"an answer of a promoted host that ended with something else", func(t *testing.T, f *failover) {
			f.tells(t, 3)
		}, fault.Gap, "was promoted (epoch 3)"},
	} {
		for _, dryRun := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, dry run %v", c.name, dryRun), func(t *testing.T) {
				t.Parallel()
				f := following(t).failOver(2)
				f.goOn(2)
				require.NoError(t, f.g.Close())
				c.do(t, f)
				before := formerTree(t, f)
				_, err := f.rejoin(func(o *RejoinOptions) { o.DryRun = dryRun })
				require.Error(t, err)
				if c.kind != nil {
					require.ErrorIs(t, err, c.kind)
				} else {
					require.Equal(t, 1, fault.ExitCode(err))
				}
				require.ErrorContains(t, err, c.says)
				require.NotEmpty(t, fault.Kept(err))
				require.NotEmpty(t, fault.Next(err))
				require.Equal(t, before, formerTree(t, f), "nothing was changed")
			})
		}
	}
}

// tells leaves the answer of a promoted node that ended with an increment which is not there.
func (f *failover) tells(t *testing.T, epoch int) {
	a := answerOf("/elsewhere/Data.fs", f.state())
	a.Epoch, a.Stamp = epoch, "2030-01-01-00-00-00"
	doc, err := a.Encode()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(f.shipped.Path(a.Name()), doc, 0o644))
}

func TestAFileOfDivergedBytesIsNeverOverwritten(t *testing.T) {
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprintf("packed %v", packed), func(t *testing.T) {
			f := following(t).failOver(2)
			f.goOn(2)
			if packed {
				require.NoError(t, f.next.Pack(f.next.LastTID()))
				f.goOn(1)
			}
			plan, err := f.rejoin(dry)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(plan.Saved, []byte("precious"), 0o600))
			require.NoError(t, os.WriteFile(plan.Saved+".2.txt", []byte("precious too"), 0o600))
			res, err := f.rejoin()
			require.NoError(t, err)
			require.Equal(t, "precious", string(raw(t, plan.Saved)))
			if packed {
				require.Equal(t, plan.Saved+".3", res.Saved)
				require.Equal(t, "precious too", string(raw(t, plan.Saved+".2.txt")))
			} else {
				require.Equal(t, plan.Saved+".2", res.Saved)
			}
			f.follow()
		})
	}
}

func TestAnIndexThatIsNewerThanTheCutIsRemovedAndAnOlderOneKept(t *testing.T) {
	for _, older := range []bool{true, false} {
		t.Run(fmt.Sprintf("older %v", older), func(t *testing.T) {
			f := following(t).failOver(2)
			f.goOn(2)
			ends := f.endsOf()
			position := ends[len(ends)-1]
			if older {
				position = ends[3]
			}
			file, c, err := filestorage.Open(f.former)
			require.NoError(t, err)
			defer c.Close()
			x := &filestorage.Index{}
			_, err = file.ExtendIndex(t.Context(), x, filestorage.MagicSize, position, nil)
			require.NoError(t, err)
			require.NoError(t, filestorage.SaveIndex(f.former+".index", x, position))
			_, err = f.rejoin()
			require.NoError(t, err)
			_, err = os.Stat(f.former + ".index")
			require.Equal(t, older, err == nil)
			f.follow()
		})
	}
}

func TestAStandbyThatWasAheadOfThePromotedOneRejoins(t *testing.T) {
	p := following(t)
	ahead := filepath.Join(p.dir, "third", "Data.fs")
	require.NoError(t, os.MkdirAll(filepath.Dir(ahead), 0o755))
	third := func(o *WatchOptions) { o.Data = ahead }
	kept := filepath.Join(p.dir, "kept")
	require.NoError(t, os.CopyFS(kept, os.DirFS(string(p.shipped))))
	p.step(2)
	_, err := p.watch(third)
	require.NoError(t, err)
	// The increment is lost before the other standby has it.
	require.NoError(t, os.RemoveAll(string(p.shipped)))
	require.NoError(t, os.CopyFS(string(p.shipped), os.DirFS(kept)))
	f := p.failOver(0)
	f.former = ahead
	f.goOn(3)
	before := raw(t, ahead)
	_, err = p.watch(third)
	require.ErrorIs(t, err, fault.Diverged)
	require.Contains(t, fault.Next(err), "zodbrepl rejoin --data")
	res, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinDeltas, res.Way)
	require.EqualValues(t, 2, res.Only.Transactions)
	requireKept(t, res.Saved, before, f.common)
	f.follow()
}

func TestAStandbyThatAServerWroteToRejoins(t *testing.T) {
	p := following(t)
	f := &failover{pair: p, former: p.data, common: int64(len(p.standbyBytes()))}
	f.commitFormer(2)
	before := raw(t, p.data)
	_, err := p.watch()
	require.ErrorIs(t, err, fault.Diverged)
	require.Contains(t, fault.Next(err), "zodbrepl rejoin --data "+p.data)
	res, err := f.rejoin()
	require.NoError(t, err)
	require.EqualValues(t, 2, res.Only.Transactions)
	require.Equal(t, 1, res.Epoch)
	requireKept(t, res.Saved, before, f.common)
	p.step(2)
	_, err = p.watch()
	require.NoError(t, err)
	p.requireCurrent()
	p.requireFreshIndex()
}

func TestAStandbyOfAMasterThatWasPutBackRejoins(t *testing.T) {
	p := following(t)
	p.step(4)
	_, err := p.watch()
	require.NoError(t, err)
	f := &failover{pair: p, former: p.data}
	ends := f.endsOf()
	// The master was recovered to an older moment.
	require.NoError(t, p.g.Close())
	require.NoError(t, os.Truncate(p.g.Path(), ends[len(ends)-3]))
	p.g, err = fixtures.Open(p.g.Path(), fixtures.Options{NoSync: true, Now: p.now})
	require.NoError(t, err)
	p.step(0, full)
	_, err = p.watch()
	require.ErrorIs(t, err, fault.Diverged)
	require.Contains(t, fault.Next(err), "zodbrepl rejoin --data "+p.data)
	before := raw(t, p.data)
	res, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinDeltas, res.Way, "the end of the new full is in Data.fs")
	require.EqualValues(t, 2, res.Only.Transactions)
	requireKept(t, res.Saved, before, ends[len(ends)-3])
	p.step(2)
	_, err = p.watch()
	require.NoError(t, err)
	p.requireCurrent()
}

func TestADamagedFormerMasterRejoins(t *testing.T) {
	f := following(t).failOver(5)
	f.goOn(2)
	ends := f.endsOf()
	n := len(ends)
	change(t, f.former, func(b []byte) []byte {
		b[ends[n-3]+16] = 'X' // the status of the last but two, and a tail, so that it is seen
		return append(b, b[4:50]...)
	})
	before := raw(t, f.former)
	res, err := f.rejoin()
	require.NoError(t, err)
	require.EqualValues(t, 3, res.Only.Transactions, "those before the damage")
	requireKept(t, res.Saved, before, f.common)
	require.Contains(t, string(raw(t, res.Listing)), "the rest is damaged")
	f.follow()
}

func TestABackupIsRefusedAfterARejoin(t *testing.T) {
	f := following(t).failOver(2)
	f.goOn(2)
	_, err := f.rejoin()
	require.NoError(t, err)
	_, err = Backup(t.Context(), incremental.BackupOptions{Data: f.former, Repository: f.repo, Now: f.now})
	require.ErrorIs(t, err, fault.Refused)
}
