package incremental

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestLinksInTheRepository(t *testing.T) {
	t.Run("in the place of an increment", func(t *testing.T) {
		w := newWorld(t)
		w.grow(2)
		w.backup()
		w.grow(1)
		last := w.backup()
		require.NoError(t, os.Rename(w.repo.Path(last.File), w.repo.Path("elsewhere")))
		require.NoError(t, os.Symlink("elsewhere", w.repo.Path(last.File)))
		before := contents(t, w.repo)
		res, err := Verify(t.Context(), w.repo, VerifyOptions{})
		require.ErrorIs(t, err, fault.Unverified)
		require.ErrorContains(t, err, last.File+" is not a regular file")
		require.Len(t, res.Chains[0].Increments, 1)
		w.grow(1)
		_, err = w.try()
		require.ErrorIs(t, err, fault.Unverified)
		require.ErrorContains(t, err, last.File)
		require.Equal(t, before, contents(t, w.repo))
		_, err = w.repo.Open(t.Context(), last.File)
		require.ErrorIs(t, err, fault.Unverified, "nor when it is asked for by name")
	})
	t.Run("in the place of a lock", func(t *testing.T) {
		w := newWorld(t)
		w.grow(2)
		victim := w.repo.Path("victim")
		writeFile(t, victim, "mine")
		require.NoError(t, os.Symlink("victim", w.repo.Path(lockName)))
		_, err := w.try()
		require.ErrorContains(t, err, "is a symbolic link, not a lock")
		require.NotEmpty(t, fault.Next(err))
		b, err := os.ReadFile(victim)
		require.NoError(t, err)
		require.Equal(t, "mine", string(b))
	})
	t.Run("in the place of a temporary file", func(t *testing.T) {
		w := newWorld(t)
		w.grow(2)
		victim := w.repo.Path("victim")
		writeFile(t, victim, "mine")
		w.now = w.now.Add(time.Hour)
		require.NoError(t, os.Symlink("victim", w.repo.Path(string(StampAt(w.now))+".fsz.tmp")))
		w.backup()
		b, err := os.ReadFile(victim)
		require.NoError(t, err)
		require.Equal(t, "mine", string(b))
		w.whole()
	})
	t.Run("in the place of a .dat", func(t *testing.T) {
		w := newWorld(t)
		w.grow(2)
		w.backup()
		dat := names(t, w.repo, datExt)[0]
		require.NoError(t, os.Rename(w.repo.Path(dat), w.repo.Path("elsewhere")))
		require.NoError(t, os.Symlink("elsewhere", w.repo.Path(dat)))
		w.grow(1)
		_, err := w.try()
		require.ErrorIs(t, err, fault.Unverified)
		require.ErrorContains(t, err, "is a symbolic link")
	})
}

func TestGarbageInTheRepositoryIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	garbage := []string{"README", ".hidden", "tmp.tmp", "2024", "2024-01-01-00-00-00", "2024-01-01-00-00-00.zip", "2024-13-01-00-00-00.fsz",
		"2024-01-01-00-00-00.fsz.bak", "x.manifest", "x.dat", "x.fs", "2024-01-01-00-00-00.manifest.old", "host.1a2b.standby", "neu\xffes"}
	for _, name := range garbage {
		writeFile(t, w.repo.Path(name), "rubbish")
	}
	require.NoError(t, os.Mkdir(w.repo.Path("lost+found"), 0o700))
	before := contents(t, w.repo)
	w.grow(2)
	w.backup()
	w.grow(2)
	w.backup()
	w.verifies()
	same(t, w.committed(), lastChain(t, w.repo))
	now := contents(t, w.repo)
	for name, what := range before {
		require.Equal(t, what, now[name], name)
	}
}

func TestTwoIncrementsWithOneStamp(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	w.grow(1)
	last := w.backup()
	writeFile(t, w.repo.Path(strings.TrimSuffix(last.File, "z")), "another")
	before := contents(t, w.repo)
	for _, with := range []Source{w.repo} {
		_, err := Verify(t.Context(), with, VerifyOptions{})
		require.ErrorIs(t, err, fault.Unverified)
		require.ErrorContains(t, err, "2 increments with one stamp")
	}
	w.grow(1)
	_, err := w.try()
	require.ErrorIs(t, err, fault.Unverified)
	require.ErrorContains(t, err, "2 increments with one stamp")
	require.Equal(t, before, contents(t, w.repo))
	require.Equal(t, "full", w.backup(full).Action)
	same(t, w.committed(), lastChain(t, w.repo))
}

func TestThingsWithoutTheirOtherHalf(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	w.grow(1)
	last := w.backup()
	stamp, _ := stampOf(last.File)
	require.NoError(t, os.Remove(w.repo.Path(last.File)))
	res, err := Verify(t.Context(), w.repo, VerifyOptions{})
	require.ErrorIs(t, err, fault.Gap)
	require.Contains(t, strings.Join(res.Problems, "\n"), ManifestName(stamp)+": a manifest without its increment")

	dir := Dir(t.TempDir())
	writeFile(t, dir.Path("2024-01-01-00-00-00.deltafs"), "x")
	res, err = Verify(t.Context(), dir, VerifyOptions{})
	require.ErrorIs(t, err, fault.Gap)
	require.Equal(t, []string{"2024-01-01-00-00-00.deltafs: a delta without a full before it"}, res.Problems)

	res, err = Verify(t.Context(), Dir(t.TempDir()), VerifyOptions{})
	require.ErrorIs(t, err, fault.Gap)
	require.ErrorContains(t, err, "holds no increment")
	require.False(t, res.OK)
}

func TestAnotherDatabaseIsRefused(t *testing.T) {
	for _, with := range []func(*BackupOptions){func(*BackupOptions) {}, full, deep} {
		w, other := newWorld(t), newWorld(t)
		w.grow(3)
		w.backup()
		other.now = other.now.AddDate(0, 0, 1)
		other.grow(5)
		for _, m := range manifestsOf(t, w.repo) { // as of another host: the same path on the same host would count
			m.Host = "elsewhere"
			writeFile(t, w.repo.Path(ManifestName(m.Stamp)), string(encode(t, m)))
		}
		before := contents(t, w.repo)
		other.repo = w.repo
		_, err := other.try(with)
		require.ErrorIs(t, err, fault.Diverged)
		require.Equal(t, 5, fault.ExitCode(err))
		require.ErrorContains(t, err, "another database")
		require.ErrorContains(t, err, other.data)
		require.Equal(t, "nothing was backed up", fault.Kept(err))
		require.Equal(t, before, contents(t, w.repo))
	}
}

func TestTheSameDatabaseElsewhereAfterAPack(t *testing.T) {
	w := newWorld(t)
	w.grow(8)
	w.backup()
	w.grow(8)
	w.backup()
	moved := w.data + ".moved"
	require.NoError(t, w.g.Pack(manifestsOf(t, w.repo)[0].LastTID))
	require.NoError(t, os.WriteFile(moved, w.committed(), 0o644))
	res := w.backup(func(o *BackupOptions) { o.Data = moved })
	require.Equal(t, "full", res.Action, "one tid that the repository knows is enough")
	require.True(t, res.Unasked)
	w.whole()
}

func TestTheFence(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	first := w.backup()
	f, err := ReadFence(t.Context(), w.repo)
	require.NoError(t, err)
	require.Zero(t, f)

	fence := Fence{Lineage: first.Lineage, Epoch: 3, Where: "/mnt/bms2", Seen: time.Date(2024, 5, 6, 0, 0, 0, 0, time.UTC)}
	require.NoError(t, fence.Raise(w.repo))
	require.NoError(t, Fence{Lineage: first.Lineage, Epoch: 2}.Raise(w.repo), "it is never lowered")
	require.NoError(t, Fence{Lineage: first.Lineage, Epoch: 3}.Raise(w.repo))
	f, err = ReadFence(t.Context(), w.repo)
	require.NoError(t, err)
	require.Equal(t, fence, f)

	w.grow(1)
	before := snapshot(t, w.repo)
	for e := range 3 {
		for _, with := range []func(*BackupOptions){func(*BackupOptions) {}, full} {
			_, err := w.try(epoch("", e), with)
			require.ErrorIs(t, err, fault.Refused)
			require.Equal(t, 3, fault.ExitCode(err))
			require.ErrorContains(t, err, "epoch 3 was seen at /mnt/bms2 on 2024-05-06T00:00:00Z: another host was promoted")
			require.NotEmpty(t, fault.Kept(err))
			require.NotEmpty(t, fault.Next(err))
		}
	}
	require.Equal(t, before, snapshot(t, w.repo))
	for _, e := range []int{3, 4} {
		w.grow(1)
		require.Equal(t, e, w.backup(epoch(first.Lineage, e)).Epoch)
	}

	writeFile(t, w.repo.Path(fenceName), "{")
	w.grow(1)
	_, err = w.try(epoch(first.Lineage, 4))
	require.ErrorContains(t, err, fenceName, "a fence that cannot be read is no permission")
	require.Error(t, Fence{Epoch: 9}.Raise(w.repo), "nor is it overwritten")
}

func TestAStaleMastersIncrementInAChain(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	first := w.backup()
	w.grow(1)
	w.backup(epoch(first.Lineage, 2))
	w.grow(1)
	w.backup(epoch(first.Lineage, 2))
	m := manifestsOf(t, w.repo)[2]
	m.Epoch = 1
	writeFile(t, w.repo.Path(ManifestName(m.Stamp)), string(encode(t, m)))
	_, err := Verify(t.Context(), w.repo, VerifyOptions{})
	require.ErrorIs(t, err, fault.Refused)
	require.ErrorContains(t, err, "a stale master wrote it")
	// The newest manifest that can be read is the stale one's; the highest epoch counts.
	stamp := m.Stamp.next(time.Time{})
	writeFile(t, w.repo.Path(ManifestName(stamp)), "{")
	writeFile(t, w.repo.Path(fileName(stamp, Delta, gzipCodec{})), "")
	_, err = w.try(full)
	require.ErrorIs(t, err, fault.Refused)
	require.ErrorContains(t, err, "epoch 2 was seen")
}

func TestNoManifestCanBeRead(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	writeFile(t, w.repo.Path(names(t, w.repo, manifestExt)[0]), "{")
	before := contents(t, w.repo)
	_, err := w.try(full)
	require.ErrorContains(t, err, "the lineage is not known")
	require.NotEmpty(t, fault.Next(err))
	require.Equal(t, before, contents(t, w.repo))
}

func TestAnswersOfStandbys(t *testing.T) {
	dir := Dir(t.TempDir())
	a := Answer{Host: "bms2", Data: "/srv/zeo/Data.fs", Lineage: "l", Epoch: 1, Role: "standby", Stamp: "2024-05-06-07-08-09", Position: 100,
		LastTID: 9, Applied: time.Unix(5, 0).UTC(), Condition: "current", Updated: time.Unix(6, 0).UTC()}
	odd := a
	odd.Host, odd.Data = "../b ms/3\n", "/elsewhere"
	for _, x := range []Answer{a, odd} {
		b, err := x.Encode()
		require.NoError(t, err)
		require.NotContains(t, x.Name(), "/")
		writeFile(t, dir.Path(x.Name()), string(b))
	}
	require.NotEqual(t, a.Name(), Answer{Host: a.Host, Data: "/srv/other/Data.fs"}.Name(), "two databases on one host")
	writeFile(t, dir.Path("broken.1.standby"), "{")
	require.NoError(t, os.Mkdir(dir.Path("dir.standby"), 0o755))
	answers, problems, err := ReadAnswers(t.Context(), dir)
	require.NoError(t, err)
	require.ElementsMatch(t, []Answer{a, odd}, answers)
	require.Len(t, problems, 1)
	require.Equal(t, "broken.1.standby", problems[0].File)
}

func TestTidsThatDoNotGrowAreAWarning(t *testing.T) {
	data := realFile(t, "tid-reduction.fs")
	dir := Dir(t.TempDir())
	_, err := Backup(t.Context(), BackupOptions{Data: data, Repository: dir})
	require.NoError(t, err)
	res, err := Verify(t.Context(), dir, VerifyOptions{})
	require.NoError(t, err)
	require.Len(t, res.Warnings, 1)
	require.Contains(t, res.Warnings[0], "FileStorage cannot pack such a file")
}
