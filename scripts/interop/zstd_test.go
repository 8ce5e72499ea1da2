//go:build interop

package interop

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestZstdsOwnCommandReadsARepositoryOfZstd, and the real repozo neither reads nor changes it.
func TestZstdsOwnCommandReadsARepositoryOfZstd(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		data, repo := filepath.Join(dir, "Data.fs"), mkdir(t, dir, "repo")
		var want []byte
		for n, steps := range [][]string{{"plain", "big"}, {"undo"}, {"plain", "big", "abort"}} {
			want = p.grow(data, steps...)
			zodbreplAt(t, moment(n), "backup", "-f", data, "-r", repo, "--codec", "zstd", "--jobs", []string{"1", "3"}[n%2])
		}
		files, err := filepath.Glob(filepath.Join(repo, "*fszst"))
		require.NoError(t, err)
		require.Len(t, files, 3)
		slices.Sort(files)
		got, err := exec.Command("zstd", append([]string{"-dcq"}, files...)...).Output()
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))

		before := listing(t, repo)
		out := filepath.Join(dir, "out.fs")
		for _, args := range [][]string{{"-R", "-r", repo, "-o", out}, {"-V", "-r", repo}} {
			a := p.repozo(later, args...)
			require.True(t, a.Code != 0 || a.Said != "", "repozo %v finds nothing", args)
		}
		require.NoFileExists(t, out)
		require.Equal(t, before, listing(t, repo))

		r := tryAt(t, moment(4), "repozo", "-Bz", "-r", repo, "-f", data)
		require.NotZero(t, r.code)
		require.Contains(t, r.stderr, "zstd is not mixed")
		require.Equal(t, before, listing(t, repo))
	})
}

// listing tells the names and contents of a repository, without locks.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".lock" {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			all[e.Name()] = string(b)
		}
	}
	return all
}
