package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestARejoinThatIsKilledAnywhereLosesNothingAndCanBeRepeated(t *testing.T) {
	for _, packed := range []bool{false, true} {
		points := []string{"saved", "listed", "intended", "unindexed", "cut", "rejoined"}
		if packed {
			points = []string{"intended", "listed", "unindexed", "cut", "rejoined"}
		}
		for i, point := range points {
			t.Run(fmt.Sprintf("at %s, packed %v", point, packed), func(t *testing.T) {
				t.Parallel()
				f := following(t).failOver(4)
				f.goOn(3)
				if packed {
					require.NoError(t, f.next.Pack(f.next.LastTID()))
					f.goOn(1)
				}
				require.NoError(t, f.g.Close())
				before := raw(t, f.former)
				index, size := indexOf(t, f.former)
				require.NoError(t, filestorage.SaveIndex(f.former+".index", index, size))
				child{Do: "rejoin", Data: f.former, Source: string(f.shipped), Kill: point, Nth: 1}.killed(t)

				st, ok, err := ReadState(f.former)
				require.NoError(t, err)
				begun := i >= indexIn(points, "intended")
				require.Equal(t, begun, ok, "the role is given up only when all is kept")
				if begun {
					require.Equal(t, Standby, st.Role)
					require.Equal(t, point != "rejoined", st.Rejoin.pending())
					_, err = Backup(t.Context(), incremental.BackupOptions{Data: f.former, Repository: f.repo, Now: f.now})
					require.ErrorIs(t, err, fault.Refused)
				}
				if st.Rejoin.pending() {
					status, err := ReadStatus(t.Context(), StatusOptions{Data: f.former, Source: f.shipped})
					require.NoError(t, err)
					require.Equal(t, "rejoin-pending", status.Condition.Name)
					require.Contains(t, status.Condition.Next, "zodbrepl rejoin --data "+f.former)
					files := formerTree(t, f)
					_, err = f.watch(func(o *WatchOptions) { o.Data = f.former })
					require.ErrorIs(t, err, fault.Refused)
					require.ErrorContains(t, err, "did not come to its end")
					_, err = Promote(t.Context(), PromoteOptions{Data: f.former})
					require.ErrorContains(t, err, "did not come to its end")
					require.Equal(t, files, formerTree(t, f))
				}
				requireNothingLost(t, f, before)

				res, err := f.rejoin()
				require.NoError(t, err)
				st, _, err = ReadState(f.former)
				require.NoError(t, err)
				require.NotEmpty(t, st.Rejoin.Saved)
				if point != "rejoined" {
					require.Equal(t, st.Rejoin.Saved, res.Saved)
				}
				require.FileExists(t, st.Rejoin.Saved+listingExt)
				if packed {
					requireSame(t, before, raw(t, st.Rejoin.Saved))
				} else {
					requireKept(t, st.Rejoin.Saved, before, f.common)
				}
				f.follow()
				kept, err := filepath.Glob(f.former + divergedExt + "*")
				require.NoError(t, err)
				for _, name := range kept {
					require.Contains(t, []string{st.Rejoin.Saved, st.Rejoin.Saved + listingExt, st.Rejoin.Saved + ".index"}, name, "nothing is left over")
				}
			})
		}
	}
}

func indexIn(list []string, s string) int {
	for i, l := range list {
		if l == s {
			return i
		}
	}
	return -1
}

// indexOf builds the index of a Data.fs.
func indexOf(t *testing.T, path string) (*filestorage.Index, int64) {
	t.Helper()
	f, c, err := filestorage.Open(path)
	require.NoError(t, err)
	defer c.Close()
	size, err := f.Size()
	require.NoError(t, err)
	x := &filestorage.Index{}
	_, err = f.ExtendIndex(t.Context(), x, filestorage.MagicSize, size, nil)
	require.NoError(t, err)
	return x, size
}

// requireNothingLost requires that every byte that the former master had is in Data.fs, in the file that keeps it, or
// common.
func requireNothingLost(t *testing.T, f *failover, before []byte) {
	t.Helper()
	if b, err := os.ReadFile(f.former); err == nil && string(b) == string(before) {
		return
	}
	kept, err := filepath.Glob(f.former + divergedExt + "????????????????")
	require.NoError(t, err)
	require.Len(t, kept, 1)
	if string(raw(t, kept[0])) != string(before) {
		requireKept(t, kept[0], before, f.common)
	}
}

func TestARejoinWithoutSpaceChangesNothing(t *testing.T) {
	f := following(t).failOver(30)
	f.goOn(3)
	require.NoError(t, f.g.Close())
	before := raw(t, f.former)
	out, err := child{Do: "rejoin", Data: f.former, Source: string(f.shipped), MaxFile: 8 << 10}.command(t).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "saving the bytes after position")
	requireSame(t, before, raw(t, f.former))
	require.NoFileExists(t, statePath(f.former))
	left, err := filepath.Glob(f.former + divergedExt + "*")
	require.NoError(t, err)
	require.Empty(t, left)
	_, err = f.rejoin()
	require.NoError(t, err)
	f.follow()
}

func TestARejoinDoesNotCutWhatWasWrittenMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(f *failover)
		kind error
	}{
		{"a transaction", func(f *failover) { f.commitFormer(1) }, fault.Busy},
		{"another file", func(f *failover) {
			b, err := os.ReadFile(f.former)
			require.NoError(f.t, err)
			require.NoError(f.t, os.WriteFile(f.former+".new", b, 0o644))
			require.NoError(f.t, os.Rename(f.former+".new", f.former))
		}, fault.Busy},
		{"a promotion", func(f *failover) {
			b, err := os.ReadFile(statePath(f.data))
			require.NoError(f.t, err)
			require.NoError(f.t, os.WriteFile(statePath(f.former), b, 0o644))
		}, fault.Busy},
		{"a server that has the file open", func(f *failover) {
			l, err := filestorage.AcquireLock(f.former)
			require.NoError(f.t, err)
			f.t.(*testing.T).Cleanup(func() { l.Release() })
		}, fault.Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := following(t).failOver(2)
			f.goOn(2)
			require.NoError(t, f.g.Close())
			var before map[string]string
			_, err := f.rejoin(func(o *RejoinOptions) {
				o.crash = func(point string) {
					if point == "planned" {
						c.do(f)
						before = formerTree(t, f)
					}
				}
			})
			require.ErrorIs(t, err, c.kind)
			require.Equal(t, before, formerTree(t, f))
		})
	}
}

func TestWhatAKilledRejoinLeftUnfinishedIsWrittenAnew(t *testing.T) {
	f := following(t).failOver(2)
	f.goOn(2)
	before := raw(t, f.former)
	plan, err := f.rejoin(dry)
	require.NoError(t, err)
	for _, name := range []string{plan.Saved, plan.Saved + listingExt} {
		require.NoError(t, os.WriteFile(name+".tmp", []byte("half"), 0o600))
	}
	res, err := f.rejoin()
	require.NoError(t, err)
	require.Equal(t, plan.Saved, res.Saved)
	requireKept(t, res.Saved, before, f.common)
	require.NoFileExists(t, plan.Saved+".tmp")
	require.NoFileExists(t, plan.Saved+listingExt+".tmp")
}
