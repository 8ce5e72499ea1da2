package incremental

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// The weaknesses of repozo, each beaten. Those of recovering are with package restore.

// packAndGrowPast packs Data.fs, and grows it beyond the size that it had.
func (w *world) packAndGrowPast() {
	w.t.Helper()
	size := w.g.Size()
	w.pack()
	for w.g.Size() <= size {
		w.grow(1)
	}
}

func TestWeakness_ZeroLengthDeltaHidingAPack(t *testing.T) {
	t.Run("zodbrepl writes none, and sees the pack", func(t *testing.T) {
		w := newWorld(t)
		w.grow(6)
		w.backup()
		require.Equal(t, "none", w.backup().Action)
		require.Len(t, repozoFiles(t, w.repo), 1)
		w.packAndGrowPast()
		res := w.backup()
		require.Equal(t, "full", res.Action)
		require.True(t, res.Unasked)
		w.whole()
	})
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprintf("one that repozo -Q wrote, Data.fs packed since: %v", packed), func(t *testing.T) {
			w := newWorld(t)
			w.grow(6)
			w.backup()
			w.byRepozo()
			end := w.g.Size()
			dat := names(t, w.repo, datExt)[0]
			writeFile(t, w.repo.Path("2024-05-06-09-00-00.deltafs"), "")
			appendTo(t, w.repo.Path(dat), fmt.Sprintf("/old/place/2024-05-06-09-00-00.deltafs %d %d d41d8cd98f00b204e9800998ecf8427e\n", end, end))
			w.verifiesInFull()
			if packed {
				w.packAndGrowPast()
			} else {
				w.grow(1)
			}
			res := w.backup()
			require.Equal(t, packed, res.Action == "full", res.Action)
			w.whole()
		})
	}
}

// byRepozo makes the repository one that repozo wrote, without manifests.
func (w *world) byRepozo() {
	w.t.Helper()
	for _, name := range append(names(w.t, w.repo, manifestExt), lockName) {
		require.NoError(w.t, os.Remove(w.repo.Path(name)))
	}
}

func (w *world) verifiesInFull() {
	w.t.Helper()
	res, err := Verify(w.t.Context(), w.repo, VerifyOptions{})
	require.NoError(w.t, err)
	require.True(w.t, res.OK)
}

func appendTo(t testing.TB, path, text string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	writeFile(t, path, string(b)+text)
}

// withoutLine removes the line of a file from a .dat.
func withoutLine(t testing.TB, path, file string) {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	kept := ""
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, file) {
			kept += line
		}
	}
	require.Less(t, len(kept), len(b))
	writeFile(t, path, kept)
}

func TestWeakness_ClockGoingBack(t *testing.T) {
	w := newWorld(t)
	var want []string
	for i, now := range []string{"2024-06-01T12:00:00Z", "2024-06-01T11:00:00Z", "2023-01-01T00:00:00Z", "2024-06-02T00:00:00Z", "2024-03-31T02:30:00+02:00"} {
		w.grow(1)
		at, err := time.Parse(time.RFC3339, now)
		require.NoError(t, err)
		o := w.options()
		o.Now = func() time.Time { return at }
		res, err := Backup(t.Context(), o)
		require.NoError(t, err)
		require.Equal(t, i > 0, res.Action == "delta")
		want = append(want, res.File)
		w.whole()
	}
	require.Equal(t, want, repozoFiles(t, w.repo), "the order of names is the order of the chain")
	// A full must not sort before the chain that it replaces.
	past := func(o *BackupOptions) { o.Full, o.Now = true, func() time.Time { return time.Unix(0, 0) } }
	res, err := w.try(past)
	require.NoError(t, err)
	require.Equal(t, []string{res.File}, repozoFiles(t, w.repo))
	w.whole()
}

// onRead calls a function once, before the nth read.
type onRead struct {
	filestorage.Reader
	n  *int
	do func()
}

func (r onRead) ReadAt(p []byte, off int64) (int, error) {
	if *r.n--; *r.n == 0 {
		r.do()
	}
	return r.Reader.ReadAt(p, off)
}

func TestWeakness_PackRacingABackup(t *testing.T) {
	for _, kind := range []string{"full", "delta"} {
		for n := 1; n <= 12; n++ {
			t.Run(fmt.Sprintf("a %s, the pack comes before read %d", kind, n), func(t *testing.T) {
				w := newWorld(t)
				w.grow(10)
				if kind == "delta" {
					w.backup()
					w.grow(3)
				}
				old := w.committed()
				left := n
				res := w.backup(through(func(r filestorage.Reader) filestorage.Reader {
					return onRead{r, &left, func() { w.pack(); w.grow(2) }}
				}))
				require.Equal(t, kind, res.Action)
				if left > 0 { // so few reads
					w.whole()
					return
				}
				w.verifies()
				same(t, old, lastChain(t, w.repo))
				same(t, old, repozoRecovers(t, w.repo))

				res = w.backup()
				require.Equal(t, "full", res.Action)
				require.True(t, res.Unasked)
				w.whole()
			})
		}
	}
	t.Run("between open and the first read", func(t *testing.T) {
		w := newWorld(t)
		w.grow(10)
		w.backup()
		w.grow(2)
		old := w.committed()
		res := w.backup(through(func(r filestorage.Reader) filestorage.Reader { w.packAndGrowPast(); return r }))
		require.Equal(t, "delta", res.Action)
		same(t, old, lastChain(t, w.repo))
		require.Equal(t, "full", w.backup().Action)
		w.whole()
	})
	t.Run("in the moment without Data.fs", func(t *testing.T) {
		w := newWorld(t)
		w.grow(3)
		w.backup()
		w.grow(1)
		require.NoError(t, os.Rename(w.data, w.data+".old"))
		asked := 0
		ctx := askedContext{t.Context(), func() {
			if asked++; asked == 3 {
				require.NoError(t, os.Rename(w.data+".old", w.data))
			}
		}}
		res, err := Backup(ctx, w.options())
		require.NoError(t, err)
		require.Equal(t, 3, asked)
		require.Equal(t, "delta", res.Action)
		w.whole()
	})
	t.Run("without Data.fs and without Data.fs.old it does not wait", func(t *testing.T) {
		w := newWorld(t)
		require.NoError(t, os.Remove(w.data))
		ctx := askedContext{t.Context(), func() { t.Error("waits") }}
		_, err := Backup(ctx, w.options())
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NotEmpty(t, fault.Kept(err))
		require.NotEmpty(t, fault.Next(err))
	})
}

// askedContext tells when somebody is about to wait for its end.
type askedContext struct {
	context.Context
	asked func()
}

func (c askedContext) Done() <-chan struct{} {
	c.asked()
	return c.Context.Done()
}

func TestWeakness_TwoRunsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.grow(3)
	var second []error
	var during, after map[string]string
	try := func() {
		during = contents(t, w.repo)
		_, err := w.try()
		second = append(second, err)
		after = contents(t, w.repo)
		require.Equal(t, during, after)
	}
	w.backup(through(func(r filestorage.Reader) filestorage.Reader { try(); return r }), // it has written nothing yet
		func(o *BackupOptions) { o.crash = func(string) { try() } })
	require.Len(t, second, 5)
	for i, err := range second {
		require.ErrorIs(t, err, fault.Busy)
		require.Equal(t, 75, fault.ExitCode(err))
		require.NotEmpty(t, fault.Kept(err))
		if i > 0 {
			require.ErrorContains(t, err, fmt.Sprintf("process %d is at it", os.Getpid()))
		}
	}
	w.whole()
	lock, err := LockRepository(w.repo)
	require.NoError(t, err, "the lock is free again")
	require.NoError(t, lock.Close())
}

func TestTheLockOfAKilledRunNamesNobody(t *testing.T) {
	w := newWorld(t)
	writeFile(t, w.repo.Path(lockName), "4711\n")
	lock, err := LockRepository(w.repo)
	require.NoError(t, err)
	_, err = LockRepository(w.repo)
	require.ErrorIs(t, err, fault.Busy)
	require.NotContains(t, err.Error(), "4711")
	lock.Announce()
	_, err = LockRepository(w.repo)
	require.ErrorContains(t, err, fmt.Sprint(os.Getpid()))
	require.NoError(t, lock.Close())
}

func TestWeakness_SameSecond(t *testing.T) {
	w := newWorld(t)
	for i := range 5 {
		w.grow(1)
		res, err := w.try(at(time.Date(2024, 5, 6, 0, 0, 0, 0, time.UTC)))
		require.NoError(t, err)
		stamp, _ := stampOf(res.File)
		require.Equal(t, Stamp(fmt.Sprintf("2024-05-06-00-00-%02d", i)), stamp)
	}
	w.whole()
}

func TestWeakness_PathWithSpaces(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		w := newWorld(t)
		dir := filepath.Join(t.TempDir(), "my database", "all my  backups")
		require.NoError(t, os.MkdirAll(dir, 0o755))
		w.repo = Dir(dir)
		for range 3 {
			w.grow(1)
			w.backup()
			w.whole() // repozoVerifies splits as repozo does
		}
	})
	t.Run("a .dat that repozo wrote with such a path", func(t *testing.T) {
		w := newWorld(t)
		w.grow(1)
		w.backup()
		w.grow(1)
		w.backup()
		w.byRepozo()
		path := w.repo.Path(names(t, w.repo, datExt)[0])
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		spaced := ""
		for line := range strings.Lines(string(b)) {
			spaced += "/my database/all my  backups/" + line
		}
		writeFile(t, path, spaced)
		w.verifiesInFull()
		w.grow(1)
		require.Equal(t, "delta", w.backup().Action)
		w.whole()
	})
}

func TestWeakness_TruncatedGzip(t *testing.T) {
	for _, manifest := range []bool{true, false} {
		w := newWorld(t)
		w.grow(1)
		w.backup()
		w.grow(2)
		last := w.backup()
		if !manifest {
			w.byRepozo()
		}
		whole, err := os.ReadFile(w.repo.Path(last.File))
		require.NoError(t, err)
		for n := range whole {
			if n > 30 && n < len(whole)-10 && n%53 > 0 {
				continue // the header and the trailer byte by byte
			}
			writeFile(t, w.repo.Path(last.File), string(whole[:n]))
			res, err := Verify(t.Context(), w.repo, VerifyOptions{})
			require.ErrorIs(t, err, fault.Unverified, "cut to %d bytes", n)
			require.Equal(t, 4, fault.ExitCode(err))
			require.ErrorContains(t, err, w.repo.Path(last.File))
			require.ErrorContains(t, err, fmt.Sprintf("positions %d to %d", last.Start, last.End))
			if n == 0 {
				require.ErrorContains(t, err, "the gzip file is empty")
			} else {
				require.ErrorContains(t, err, fmt.Sprintf("truncated: the gzip stream ends after %d stored bytes", n))
			}
			require.Contains(t, fault.Next(err), "another copy of the repository")
			require.False(t, res.OK)
			require.Empty(t, res.Chains[0].Increments[0].Problem)
			require.NotEmpty(t, res.Chains[0].Increments[1].Problem)
		}
		before := contents(t, w.repo)
		_, err = Verify(t.Context(), w.repo, VerifyOptions{Quick: true})
		if manifest {
			require.ErrorIs(t, err, fault.Unverified)
		}
		require.Equal(t, before, contents(t, w.repo))
	}
}

func TestWeakness_GapAndOverlapInAChain(t *testing.T) {
	for _, manifests := range []bool{true, false} {
		t.Run(fmt.Sprintf("a gap, manifests: %v", manifests), func(t *testing.T) {
			w := newWorld(t)
			var files []string
			for range 4 {
				w.grow(2)
				files = append(files, w.backup().File)
			}
			if !manifests {
				w.byRepozo()
			}
			require.NoError(t, os.Remove(w.repo.Path(files[1])))
			res, err := Verify(t.Context(), w.repo, VerifyOptions{})
			require.ErrorIs(t, err, fault.Gap)
			require.Equal(t, 6, fault.ExitCode(err))
			all := strings.Join(res.Problems, "\n")
			require.Contains(t, all, files[1]+": missing, although")
			require.Contains(t, all, files[2]+": starts at")
			require.Contains(t, all, "bytes are missing between")
			require.Len(t, res.Chains[0].Increments, 1, "what is before the gap is good")
			require.Empty(t, res.Chains[0].Increments[0].Problem)
			w.grow(1)
			if !manifests {
				before := contents(t, w.repo)
				_, err := w.try()
				require.ErrorIs(t, err, fault.Gap)
				require.Contains(t, fault.Next(err), "--full")
				require.Equal(t, before, contents(t, w.repo))
				require.Equal(t, "asked for", w.backup(full).Reason)
			} else {
				r := w.backup()
				require.Equal(t, "full", r.Action, "never a delta across a gap")
				require.True(t, r.Unasked)
				require.Contains(t, r.Reason, files[1]+" is missing")
			}
			same(t, w.committed(), lastChain(t, w.repo))
			same(t, w.committed(), repozoRecovers(t, w.repo))
		})
	}
	t.Run("an overlap", func(t *testing.T) {
		w := newWorld(t)
		w.grow(2)
		w.backup()
		w.grow(1)
		fork := copyDir(t, w.repo)
		w.backup()
		w.grow(1)
		w.now = w.now.Add(time.Hour)
		o := w.options()
		o.Repository = fork
		res, err := Backup(t.Context(), o)
		require.NoError(t, err)
		for _, ext := range []string{".deltafsz", manifestExt} {
			stamp, _ := stampOf(res.File)
			b, err := os.ReadFile(fork.Path(string(stamp) + ext))
			require.NoError(t, err)
			writeFile(t, w.repo.Path(string(stamp)+ext), string(b))
		}
		_, err = Verify(t.Context(), w.repo, VerifyOptions{})
		require.ErrorIs(t, err, fault.Gap)
		require.ErrorContains(t, err, res.File+": starts at")
		require.ErrorContains(t, err, "they overlap")
		r := w.backup()
		require.Equal(t, "full", r.Action)
		require.True(t, r.Unasked)
	})
}
