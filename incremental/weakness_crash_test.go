package incremental

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestWeakness_CrashBetweenDataAndDat(t *testing.T) {
	for _, then := range []struct {
		name   string
		do     func(*world)
		action string
	}{
		{"and nothing changed", func(*world) {}, "none"},
		{"and Data.fs grew", func(w *world) { w.grow(2) }, "delta"},
		{"and Data.fs was packed", func(w *world) { w.packAndGrowPast() }, "full"},
	} {
		t.Run("repozo's last delta is not listed, "+then.name, func(t *testing.T) {
			w := newWorld(t)
			w.grow(4)
			w.backup()
			w.grow(3)
			last := w.backup()
			before := w.committed()
			w.byRepozo()
			withoutLine(t, w.repo.Path(names(t, w.repo, datExt)[0]), last.File)
			then.do(w)
			res := w.backup()
			require.Equal(t, then.action, res.Action)
			w.whole()
			require.FileExists(t, w.repo.Path(last.File), "it was whole: nobody else may have its transactions")
			repo, err := Open(t.Context(), w.repo)
			require.NoError(t, err)
			chains, _, err := repo.Chains(t.Context())
			require.NoError(t, err)
			same(t, before, chainBytes(t, repo, chains[0])[:len(before)])
		})
	}
	t.Run("repozo went on after the crash: the unlisted delta fills the gap", func(t *testing.T) {
		w := newWorld(t)
		w.grow(4)
		w.backup()
		w.grow(3)
		lost := w.backup()
		w.grow(1)
		w.backup()
		w.byRepozo()
		withoutLine(t, w.repo.Path(names(t, w.repo, datExt)[0]), lost.File)
		_, err := Verify(t.Context(), w.repo, VerifyOptions{})
		require.ErrorIs(t, err, fault.Gap)
		require.Equal(t, "none", w.backup().Action)
		w.whole()
	})
	t.Run("an unlisted delta that does not fill the gap is left alone", func(t *testing.T) {
		w := newWorld(t)
		w.grow(4)
		w.backup()
		w.grow(3)
		lost := w.backup()
		w.grow(1)
		w.backup()
		w.byRepozo()
		withoutLine(t, w.repo.Path(names(t, w.repo, datExt)[0]), lost.File)
		writeFile(t, w.repo.Path(lost.File), "damaged")
		before := contents(t, w.repo)
		_, err := w.try()
		require.ErrorIs(t, err, fault.Gap)
		require.Contains(t, fault.Next(err), "--full")
		require.Equal(t, before, contents(t, w.repo), "it is for people")
		w.backup(full)
		require.FileExists(t, w.repo.Path(lost.File))
		same(t, w.committed(), lastChain(t, w.repo))
		same(t, w.committed(), repozoRecovers(t, w.repo))
	})
	t.Run("repozo -Q went on after the crash: two deltas overlap", func(t *testing.T) {
		w := newWorld(t)
		w.grow(4)
		w.backup()
		copied := copyDir(t, w.repo)
		w.grow(3)
		lost := w.backup()
		w.repo, copied = copied, w.repo
		w.grow(1)
		w.backup()
		b, err := os.ReadFile(copied.Path(lost.File))
		require.NoError(t, err)
		writeFile(t, w.repo.Path(lost.File), string(b))
		w.byRepozo()
		require.NotEqual(t, w.committed(), repozoRecovers(t, w.repo), "the weakness: repozo overlaps them")
		w.grow(1)
		require.Equal(t, "delta", w.backup().Action)
		w.whole()
		require.Equal(t, []string{lost.File + unpublishedExt}, names(t, w.repo, unpublishedExt), "kept for people")
		res, err := Verify(t.Context(), w.repo, VerifyOptions{})
		require.NoError(t, err)
		require.Contains(t, strings.Join(res.Warnings, "\n"), lost.File+unpublishedExt)
	})
	t.Run("a damaged delta that is not listed is set aside", func(t *testing.T) {
		w := newWorld(t)
		w.grow(4)
		w.backup()
		writeFile(t, w.repo.Path("2024-12-01-00-00-00.deltafs"), "half a transaction")
		w.grow(1)
		require.Equal(t, "delta", w.backup().Action)
		w.whole()
		require.FileExists(t, w.repo.Path("2024-12-01-00-00-00.deltafs.unpublished"))
		require.NoFileExists(t, w.repo.Path("2024-12-01-00-00-00.deltafs"))
	})
	t.Run("one in an old chain is history and left alone", func(t *testing.T) {
		w := newWorld(t)
		w.grow(4)
		w.backup()
		w.grow(3)
		lost := w.backup()
		dat := names(t, w.repo, datExt)[0]
		w.byRepozo()
		w.backup(full)
		withoutLine(t, w.repo.Path(dat), lost.File)
		require.NoError(t, os.Remove(w.repo.Path(lost.File[:len("2024-05-06-00-00-00")]+manifestExt)))
		w.grow(1)
		w.backup()
		require.FileExists(t, w.repo.Path(lost.File))
		res, err := Verify(t.Context(), w.repo, VerifyOptions{})
		require.NoError(t, err)
		require.Equal(t, []string{lost.File}, res.Unpublished)
	})
	t.Run("half a line", func(t *testing.T) {
		w := newWorld(t)
		w.grow(4)
		w.backup()
		w.grow(1)
		w.backup()
		w.byRepozo()
		path := w.repo.Path(names(t, w.repo, datExt)[0])
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		writeFile(t, path, string(b[:len(b)-20]))
		w.grow(1)
		require.Equal(t, "delta", w.backup().Action)
		w.whole()
	})
}
