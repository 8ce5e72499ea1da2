package incremental

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/internal/fault"
)

func TestTheLifeOfARepository(t *testing.T) {
	for _, tt := range []struct {
		name  string
		codec func(i int) string
	}{
		{"gzip", func(int) string { return "gzip" }},
		{"plain", func(int) string { return "none" }},
		{"mixed", func(i int) string { return []string{"gzip", "none"}[i%2] }},
		{"the default is gzip", func(int) string { return "" }},
		{"zstd", func(int) string { return "zstd" }},
		{"zstd once, then no codec is asked for", func(i int) string { return []string{"zstd", "", "", "", "", "", "", "", "", "", "", ""}[i] }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.zstd = tt.codec(0) == "zstd"
			i := 0
			codec := func(o *BackupOptions) { o.Codec = tt.codec(i); i++ }

			w.grow(5)
			first := w.backup(codec)
			require.Equal(t, "full", first.Action)
			require.Equal(t, "the repository is empty", first.Reason)
			require.False(t, first.Unasked)
			require.NotEmpty(t, first.Lineage)
			require.Equal(t, 1, first.Epoch)
			require.Equal(t, int64(5), first.Transactions)
			require.Equal(t, w.g.LastTID(), first.LastTID)
			w.whole()

			for range 3 {
				before := w.g.Size()
				w.grow(2)
				res := w.backup(codec)
				require.Equal(t, BackupResult{Action: "delta", File: res.File, Lineage: first.Lineage, Epoch: 1, Start: before, End: w.g.Size(),
					LastTID: w.g.LastTID(), Transactions: 2, StoredSize: res.StoredSize}, res)
				fi, err := os.Stat(w.repo.Path(res.File))
				require.NoError(t, err)
				require.Equal(t, res.StoredSize, fi.Size())
				w.whole()
			}

			res := w.backup(codec)
			require.Equal(t, "none", res.Action)
			require.Empty(t, res.File)
			require.Equal(t, w.g.LastTID(), res.LastTID)

			w.pack()
			res = w.backup(codec)
			require.Equal(t, "full", res.Action)
			require.Regexp(t, "^Data.fs has .* bytes, .* were backed up: it was packed or replaced$", res.Reason)
			require.True(t, res.Unasked, "nobody asked for it")
			require.Equal(t, first.Lineage, res.Lineage, "a pack does not begin another history")
			w.whole()

			w.grow(1)
			require.Equal(t, "delta", w.backup(codec).Action)
			res = w.backup(codec, full)
			require.Equal(t, "full", res.Action)
			require.Equal(t, "asked for", res.Reason)
			require.False(t, res.Unasked)
			w.grow(1)
			require.Equal(t, "delta", w.backup(codec, deep).Action)
			w.whole()
			require.Len(t, names(t, w.repo, manifestExt), 8)
			require.Equal(t, 3, len(names(t, w.repo, datExt)))
		})
	}
}

func TestWhenNothingChangedNothingIsWritten(t *testing.T) {
	var costs []int64
	for _, size := range []int{200 << 10, 20 << 20} {
		w := newWorld(t)
		w.grow(3)
		w.growBy(size)
		w.backup()
		w.grow(2)
		w.backup()
		before := snapshot(t, w.repo)
		var read atomic.Int64
		res := w.backup(through(func(r filestorage.Reader) filestorage.Reader { return counting{r, &read} }))
		require.Equal(t, "none", res.Action)
		require.Equal(t, before, snapshot(t, w.repo), "the lock, too, is as it was")
		costs = append(costs, read.Load())
	}
	require.Equal(t, costs[0], costs[1], "bytes of Data.fs that were read, whatever its size")
	require.Less(t, costs[0], int64(3*TailSize))
}

func TestADeltaReadsOnlyWhatIsNew(t *testing.T) {
	w := newWorld(t)
	w.growBy(20 << 20)
	w.backup()
	w.grow(5)
	var read atomic.Int64
	res := w.backup(through(func(r filestorage.Reader) filestorage.Reader { return counting{r, &read} }))
	require.Equal(t, "delta", res.Action)
	require.Less(t, read.Load(), int64(1<<20))
}

func TestDeepComparesEverythingAndTheCheapProofDoesNot(t *testing.T) {
	w := newWorld(t)
	w.growBy(300 << 10)
	w.grow(2)
	w.growBy(100 << 10)
	w.backup()
	// A byte of data far from the end: neither the structure nor the tail shows it.
	f, err := os.OpenFile(w.data, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("xyz"), 5000)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, "none", w.backup().Action)
	res := w.backup(deep)
	require.Equal(t, "full", res.Action)
	require.True(t, res.Unasked)
	require.Contains(t, res.Reason, "differs from what was backed up between positions 0 and")
	w.whole()
}

func TestTheCheapProofSeesChangedBytesNearTheEnd(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.growBy(30 << 10)
	w.backup()
	f, err := os.OpenFile(w.data, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("xyz"), w.g.Size()-1000) // in data: the last transaction's header is as it was
	require.NoError(t, err)
	require.NoError(t, f.Close())
	res := w.backup()
	require.Equal(t, "full", res.Action)
	require.Contains(t, res.Reason, "the bytes of Data.fs before position")
	w.whole()
}

func TestDataFsOfAnotherInodeIsComparedAsAWhole(t *testing.T) {
	w := newWorld(t)
	w.growBy(1 << 20)
	w.backup()
	moved := w.data + ".copy"
	require.NoError(t, os.WriteFile(moved, w.committed(), 0o644))
	require.NoError(t, os.Rename(moved, w.data))
	var read atomic.Int64
	res := w.backup(through(func(r filestorage.Reader) filestorage.Reader { return counting{r, &read} }))
	require.Equal(t, "none", res.Action, "a copy with the same bytes is the same Data.fs")
	require.Greater(t, read.Load(), w.g.Size())
}

func TestKillOldRemovesTheChainsBeforeTheFull(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	w.grow(2)
	w.backup(plain)
	w.backup(full)
	own := []string{"2024-01-01-00-00-00.notes.txt", "2024-01-01-00-00-00.deltafsz.mine", "README", "tmp.tmp"}
	for _, name := range own {
		writeFile(t, w.repo.Path(name), "mine")
	}
	writeFile(t, w.repo.Path("2024-01-01-00-00-00.index"), "repozo's, of a full that is no more")
	res := w.backup(killOld)
	require.Equal(t, "full", res.Action)
	w.whole()
	repo, err := Open(t.Context(), w.repo)
	require.NoError(t, err)
	chains, others, err := repo.Chains(t.Context())
	require.NoError(t, err)
	require.Empty(t, others)
	require.Len(t, chains, 1)
	require.Len(t, names(t, w.repo, ""), 3+1+len(own), "the full, its .dat and manifest, the lock, and what is not ours")
	for _, name := range own {
		require.FileExists(t, w.repo.Path(name))
	}
}

func TestARunThatDiesWhileItRemovesOldChainsLeavesChains(t *testing.T) {
	for n := 1; ; n++ {
		w := newWorld(t)
		for range 2 {
			w.grow(2)
			w.backup(full)
			for range 2 {
				w.grow(1)
				w.backup()
			}
		}
		died := w.dieAt("removing", n, killOld)
		w.whole()
		if !died {
			require.Equal(t, 15, n, "files to remove, and one")
			return
		}
		require.Equal(t, "none", w.backup().Action)
	}
}

func TestStampsGrowWhateverTheClockDoes(t *testing.T) {
	w := newWorld(t)
	noon := time.Date(2024, 7, 1, 12, 0, 0, 0, time.UTC)
	var stamps []Stamp
	for _, now := range []time.Time{
		noon,
		noon,                                // the same second
		noon.Add(500 * time.Millisecond),    // the same second again
		noon.Add(-time.Hour),                // the clock goes back
		noon.AddDate(-3, 0, 0),              // far
		time.Unix(0, 0),                     // a host without a clock
		noon.AddDate(20, 0, 0),              // and then wild
		noon.Add(time.Hour),                 // and right again
		noon.In(time.FixedZone("", 5*3600)), // zones do not matter
	} {
		w.grow(1)
		res, err := w.try(at(now))
		require.NoError(t, err)
		stamp, ok := stampOf(res.File)
		require.True(t, ok)
		if len(stamps) > 0 {
			require.Greater(t, stamp, stamps[len(stamps)-1])
			require.Equal(t, "delta", res.Action)
		}
		stamps = append(stamps, stamp)
	}
	require.Equal(t, []Stamp{"2024-07-01-12-00-00", "2024-07-01-12-00-01", "2024-07-01-12-00-02", "2024-07-01-12-00-03",
		"2024-07-01-12-00-04", "2024-07-01-12-00-05", "2044-07-01-12-00-00", "2044-07-01-12-00-01", "2044-07-01-12-00-02"}, stamps)
	w.whole()
}

func TestTheEnvironmentSetsTheClock(t *testing.T) {
	w := newWorld(t)
	w.grow(1)
	t.Setenv("ZODBREPL_NOW", "2031-02-03T04:05:06.7+01:00")
	o := w.options()
	o.Now = nil
	res, err := Backup(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, "2031-02-03-03-05-06.fsz", res.File)

	before := snapshot(t, w.repo)
	t.Setenv("ZODBREPL_NOW", "tomorrow")
	_, err = Backup(t.Context(), o)
	require.EqualError(t, err, `environment variable ZODBREPL_NOW: "tomorrow" is no RFC 3339 time`)
	require.Equal(t, before, snapshot(t, w.repo))
}

func TestWhenThereIsNoLaterStampNothingIsWritten(t *testing.T) {
	w := newWorld(t)
	w.grow(1)
	writeFile(t, w.repo.Path("9999-12-31-23-59-59.index"), "")
	before := contents(t, w.repo)
	_, err := w.try()
	require.ErrorContains(t, err, "there is no stamp after 9999-12-31-23-59-59")
	require.NotEmpty(t, fault.Next(err))
	require.Equal(t, before, contents(t, w.repo))
}

// What is in flight when the backup runs, and what becomes of it.
func TestOnlyWhatIsCommittedIsBackedUp(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	for i, end := range []string{"finish", "abort", "finish"} {
		txn := w.g.BeginRandom(w.rng, 4, 5000)
		require.NoError(t, txn.Vote())
		res := w.backup()
		require.Equal(t, "none", res.Action, "voted for, round %d", i)
		require.Positive(t, res.InFlight)
		if end == "abort" {
			require.NoError(t, txn.Abort())
			require.Equal(t, "none", w.backup().Action)
			require.Zero(t, w.backup().InFlight)
			continue
		}
		_, err := txn.Finish()
		require.NoError(t, err)
		res = w.backup()
		require.Equal(t, "delta", res.Action)
		require.Zero(t, res.InFlight)
		w.whole()
	}
	// A vote that another transaction replaces in the same place, shorter or longer.
	for _, size := range []int{100, 9000} {
		w.grow(1)
		txn := w.g.BeginRandom(w.rng, 2, 1000)
		require.NoError(t, txn.Vote())
		require.Equal(t, "delta", w.backup().Action)
		require.NoError(t, txn.Abort())
		w.growBy(size)
		require.Equal(t, "delta", w.backup().Action)
		w.whole()
	}
}

func TestATornTailIsLeftOutAndTold(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	b := append(w.committed(), make([]byte, 512)...)
	require.NoError(t, os.WriteFile(w.data, b, 0o644))
	res := w.backup()
	require.Equal(t, "full", res.Action)
	require.Equal(t, w.g.Size(), res.End)
	require.Equal(t, int64(512), res.InFlight)
	w.whole()
}

func TestADataFsWithoutTransactions(t *testing.T) {
	w := newWorld(t)
	res := w.backup()
	require.Equal(t, "full", res.Action)
	require.Equal(t, int64(filestorage.MagicSize), res.End)
	require.Equal(t, "none", w.backup().Action)
	w.grow(1)
	require.Equal(t, "delta", w.backup().Action)
	w.whole()
}

func TestThePromotedNodeGoesOnInTheSameChain(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	first := w.backup()
	w.grow(1)
	res := w.backup(epoch(first.Lineage, 2))
	require.Equal(t, "delta", res.Action)
	require.Equal(t, 2, res.Epoch)
	require.Equal(t, first.Lineage, res.Lineage)
	w.whole()
}

func TestEveryRealDataFsGoesThrough(t *testing.T) {
	for _, name := range []string{"plain.fs", "fs21.fs", "undo.fs", "packed-before.fs", "packed.fs", "empty-txn.fs", "large.fs", "nothing.fs",
		"undone.fs", "tail-voted.fs", "tail-short-c.fs", "tail-garbage.fs", "blobs.fs", "blobs-zlib.fs"} {
		t.Run(name, func(t *testing.T) {
			data := realFile(t, name)
			dir := Dir(t.TempDir())
			res, err := Backup(t.Context(), BackupOptions{Data: data, Repository: dir})
			require.NoError(t, err)
			raw, err := os.ReadFile(data)
			require.NoError(t, err)
			same(t, raw[:res.End], repozoRecovers(t, dir))
			v, err := Verify(t.Context(), dir, VerifyOptions{})
			require.NoError(t, err)
			require.True(t, v.OK)
		})
	}
}

// A full in steps names the same blobs, in the same order, as one full does, back pointers included.
func TestTheBlobsOfTheTransactionsAreNamed(t *testing.T) {
	for _, name := range []string{"blobs.fs", "blobs-lawn.fs", "blobs-zlib.fs"} {
		t.Run(name, func(t *testing.T) {
			facts := goldenBlobs(t, name)
			raw, err := os.ReadFile(realFile(t, name))
			require.NoError(t, err)
			data := filepath.Join(t.TempDir(), "Data.fs")
			dir := Dir(t.TempDir())
			now := time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC)
			for _, end := range facts.ends {
				require.NoError(t, os.WriteFile(data, raw[:end], 0o644))
				_, err := Backup(t.Context(), BackupOptions{Data: data, Repository: dir, Now: func() time.Time { return now }})
				require.NoError(t, err)
			}
			require.Equal(t, facts.refs, blobsOf(t, dir, manifestsOf(t, dir)))
			require.NotEmpty(t, facts.refs)

			// The same from a repository without manifests, and from another Data.fs.
			for _, m := range manifestsOf(t, dir) {
				require.NoError(t, os.Remove(dir.Path(ManifestName(m.Stamp))))
			}
			g, err := fixtures.Open(data, fixtures.Options{Now: func() time.Time { return now }})
			require.NoError(t, err)
			require.NoError(t, g.Pack(g.LastTID()))
			require.NoError(t, g.Close())
			res, err := Backup(t.Context(), BackupOptions{Data: data, Repository: dir, Now: func() time.Time { return now }})
			require.NoError(t, err)
			require.Equal(t, "full", res.Action)
			ms := manifestsOf(t, dir)
			require.Equal(t, facts.refs, blobsOf(t, dir, ms[:len(ms)-1]))
		})
	}
}
