package restore

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
)

func TestAStandbyFollowsStepByStep(t *testing.T) {
	p := newPair(t)
	for i, step := range []struct {
		name    string
		do      func()
		applied int
	}{
		{"the first full", func() { p.step(5) }, 1},
		{"a delta", func() { p.step(1) }, 1},
		{"several deltas at once", func() { p.step(2); p.step(1); p.step(4) }, 3},
		{"nothing new", func() {}, 0},
		{"a delta that is not compressed", func() { p.step(2, plain) }, 1},
		{"a full that was asked for", func() { p.step(1, full) }, 1},
		{"a full after a pack", func() { require.NoError(t, p.g.Pack(p.g.LastTID())); p.step(1) }, 1},
		{"a full and deltas behind it", func() { p.step(1, full); p.step(1); p.step(1) }, 3},
		{"deltas in a chain that is over", func() { p.step(1); p.step(1, full); p.step(1) }, 2},
		{"an aborted transaction on the master", func() {
			txn := p.g.BeginRandom(p.rng, 2, 300)
			require.NoError(t, txn.Vote())
			p.backup()
			require.NoError(t, txn.Abort())
			p.step(1)
		}, 1},
		{"a transaction in flight on the master", func() {
			p.grow(1)
			txn := p.g.BeginRandom(p.rng, 2, 300)
			require.NoError(t, txn.Vote())
			p.backup()
			p.ship()
			_, err := txn.Finish()
			require.NoError(t, err)
		}, 1},
		{"what was in flight", func() { p.backup(); p.ship() }, 1},
	} {
		step.do()
		res, err := p.watch()
		require.NoError(t, err, step.name)
		require.Equal(t, step.applied, res.Increments, "%d: %s", i, step.name)
		p.requireCurrent()
		p.requireFreshIndex()
		f, c, err := filestorage.Open(p.data)
		require.NoError(t, err)
		ext, err := f.Committed(context.Background(), filestorage.MagicSize)
		require.NoError(t, err)
		require.EqualValues(t, len(p.standbyBytes()), ext.End, "it ends on a commit boundary")
		require.Equal(t, ext.Last, p.state().Applied.LastTID)
		require.NoError(t, c.Close())
		status, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
		require.NoError(t, err)
		require.Equal(t, "current", status.Condition.Name)
		require.Zero(t, status.Pending)
	}
}

func TestADatabaseOfOnlyTheMagicIsFollowed(t *testing.T) {
	p := newPair(t)
	p.step(0)
	_, err := p.watch()
	require.NoError(t, err)
	p.requireCurrent()
	p.step(1)
	_, err = p.watch()
	require.NoError(t, err)
	p.requireCurrent()
}

func TestTheStateNamesItsPlacesInFull(t *testing.T) {
	p := newPair(t)
	p.step(1)
	t.Chdir(p.dir)
	p.data, p.shipped = filepath.Join("standby", "Data.fs"), "shipped"
	var told incremental.Answer
	_, err := p.watch(func(o *WatchOptions) {
		o.Tell = func(_ context.Context, a incremental.Answer) error { told = a; return nil }
	})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(p.dir, "shipped"), p.state().Source)
	require.Equal(t, filepath.Join(p.dir, "standby", "Data.fs"), told.Data)

	// Another directory, and nothing new in it.
	require.NoError(t, os.Rename("shipped", "moved"))
	p.shipped = "moved"
	_, err = p.watch()
	require.NoError(t, err)
	require.Equal(t, filepath.Join(p.dir, "moved"), p.state().Source)
}

func TestTheTimeOfAnIncrementIsWhenItWasApplied(t *testing.T) {
	p := newPair(t)
	p.step(1)
	var intended State
	_, err := p.watch(func(o *WatchOptions) {
		o.crash = func(point string) {
			if point == "swapped" {
				intended = p.state()
			}
		}
	})
	require.NoError(t, err)
	require.True(t, p.state().Applied.Time.After(intended.Next.Time))
}

func TestAReaderKeepsTheFileThatItHasOpen(t *testing.T) {
	p := following(t)
	require.NoError(t, os.Chmod(p.data, 0o640))
	old := p.standbyBytes()
	reader, err := os.Open(p.data)
	require.NoError(t, err)
	defer reader.Close()
	head := make([]byte, 100)
	_, err = io.ReadFull(reader, head)
	require.NoError(t, err)

	require.NoError(t, p.g.Pack(p.g.LastTID()))
	p.step(1)
	_, err = p.watch(func(o *WatchOptions) {
		o.crash = func(point string) {
			if point == "unindexed" {
				require.NoFileExists(t, p.data+".index", "an index must not meet another file")
				requireSame(t, old, p.standbyBytes())
			}
		}
	})
	require.NoError(t, err)
	p.requireCurrent()
	rest, err := io.ReadAll(reader)
	require.NoError(t, err)
	requireSame(t, old, append(head, rest...))
	fi, err := os.Stat(p.data)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), fi.Mode().Perm())
}

func TestARunningWatchHoldsTheLockAndLeavesAnIndex(t *testing.T) {
	p := newPair(t)
	p.step(2)
	w := p.start(func(o *WatchOptions) { o.Hint = string(p.shipped) })
	p.untilApplied(p.newest())
	pid, held, err := filestorage.LockHolder(p.data)
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, os.Getpid(), pid)
	f, c, err := filestorage.Open(p.data)
	require.NoError(t, err)
	_, err = f.Committed(context.Background(), filestorage.MagicSize)
	require.NoError(t, err)
	require.NoError(t, c.Close())

	for range 3 {
		p.step(2)
		p.untilApplied(p.newest())
	}
	require.NoFileExists(t, p.data+".index")
	require.NoError(t, w.stop(t))
	p.requireCurrent()
	p.requireFreshIndex()
	require.Equal(t, 4, w.res.Increments)
	_, held, err = filestorage.LockHolder(p.data)
	require.NoError(t, err)
	require.False(t, held)
}

func TestAHintMakesTheNextLookComeAtOnce(t *testing.T) {
	p := following(t)
	w := p.start(func(o *WatchOptions) { o.Hint, o.Interval = string(p.shipped), 1<<40 })
	require.Eventually(t, func() bool { return w.log.count("current") > 0 }, waitLimit, waitTick)
	p.step(1)
	p.untilApplied(p.newest())
	require.NoError(t, w.stop(t))
}

func TestAnIndexOfManyRecordsIsRightToo(t *testing.T) {
	p := following(t)
	s := &standby{data: p.data, index: &filestorage.Index{}, state: p.state(), log: discard}
	require.NoError(t, s.openFile())
	defer s.closeFile()
	require.NoError(t, s.indexed(context.Background(), make([]entry, maxEntries+1)))
	require.NoError(t, s.saveIndex(context.Background()))
	p.requireFreshIndex()
}

func TestTheAnswerIsSentAgainUntilItArrives(t *testing.T) {
	p := following(t)
	sent := make(chan incremental.Answer, 100)
	fails := 3
	w := p.start(func(o *WatchOptions) {
		o.Tell = func(_ context.Context, a incremental.Answer) error {
			if fails--; fails >= 0 {
				return io.ErrClosedPipe
			}
			sent <- a
			return nil
		}
	})
	a := <-sent
	require.Equal(t, p.newest(), a.Stamp)
	require.Equal(t, "current", a.Condition)
	p.step(1)
	b := <-sent
	require.Equal(t, p.newest(), b.Stamp, "told once for each change")
	require.NoError(t, w.stop(t))
}
