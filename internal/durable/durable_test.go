package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func names(t *testing.T, dir string) (out []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteReplacesTheFileAsAWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, WriteFile(path, []byte("old"), 0o644))
	require.NoError(t, WriteFile(path, []byte("new"), 0o644))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(got))
	require.Equal(t, []string{"f"}, names(t, dir))
}

func TestAWriteThatFailsLeavesTheOldFileAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, WriteFile(path, []byte("old"), 0o644))
	boom := errors.New("boom")
	err := Write(path, 0o644, func(w io.Writer) error {
		_, _ = w.Write([]byte("half"))
		return boom
	})
	require.ErrorIs(t, err, boom)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "old", string(got))
	require.Equal(t, []string{"f"}, names(t, dir))
}

func TestWriteTakesOverWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path+TempSuffix, []byte("a longer half of something else"), 0o600))
	require.NoError(t, WriteFile(path, []byte("new"), 0o644))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "new", string(got))
}

func TestASymbolicLinkInThePlaceOfTheTemporaryFileIsNotFollowed(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	require.NoError(t, os.WriteFile(victim, []byte("precious"), 0o600))
	path := filepath.Join(dir, "f")
	require.NoError(t, os.Symlink(victim, path+TempSuffix))
	require.ErrorIs(t, WriteFile(path, []byte("new"), 0o644), syscall.ELOOP)
	got, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(got))
}

func TestRemoveDoesNotMindWhatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, Remove(path, filepath.Join(dir, "none")))
	require.Empty(t, names(t, dir))
	require.NoError(t, Remove())
}

func TestOwnLikeGivesTheOwnerOfTheFirstThatExistsWhenRoot(t *testing.T) {
	dir := t.TempDir()
	like := filepath.Join(dir, "Data.fs")
	require.NoError(t, os.WriteFile(like, nil, 0o600))
	want := os.Geteuid()
	if want == 0 { // nobody else may give files away
		want = 12345
		require.NoError(t, os.Chown(like, want, 54321))
	}
	f, err := Create(filepath.Join(dir, "f"), 0o600)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, OwnLike(f, filepath.Join(dir, "none"), like, dir))
	fi, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, want, fi.Sys().(*syscall.Stat_t).Uid)
}
