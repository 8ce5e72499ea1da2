//go:build interop

package interop

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// xfs makes a file system in a file and mounts it.
func xfs(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 512<<20))
	out, err := exec.Command("mkfs.xfs", "-q", "-m", "reflink=1", image).CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command("mount", "-o", "loop", image, dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() {
		out, err := exec.Command("umount", dir).CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	return dir
}

// TestAPlainFullSharesItsBlocksWithDataFs on a file system that can do that, and is a copy all the same.
func TestAPlainFullSharesItsBlocksWithDataFs(t *testing.T) {
	t.Parallel()
	dir := xfs(t)
	used := func() int64 {
		d, err := os.Open(dir)
		require.NoError(t, err)
		defer d.Close()
		require.NoError(t, unix.Syncfs(int(d.Fd())))
		var st unix.Statfs_t
		require.NoError(t, unix.Statfs(dir, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	p := newPeer(t, versions["ZODB 6.4"])
	data, repo, out := filepath.Join(dir, "Data.fs"), mkdir(t, dir, "repo"), filepath.Join(dir, "out.fs")
	var want []byte
	for len(want) < 8<<20 {
		want = p.grow(data, "big", "plain")
	}
	before := used()
	zodbreplAt(t, moment(0), "backup", "-f", data, "-r", repo, "--codec", "none")
	require.Less(t, used()-before, int64(len(want))/4, "%d bytes were backed up", len(want))
	for n := 1; n < 3; n++ { // what the server writes into its file is not in the copy
		first, err := filepath.Glob(filepath.Join(repo, "*.fs"))
		require.NoError(t, err)
		stored, err := os.ReadFile(first[0])
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(want, stored))
		want = p.grow(data, "abort", "big", "plain")
		zodbreplAt(t, moment(n), "backup", "-f", data, "-r", repo, "--codec", "none")
	}
	zodbrepl(t, "verify", "-r", repo)
	p.good(later, "-V", "-r", repo)
	zodbrepl(t, "recover", "-r", repo, "-o", out)
	got, err := os.ReadFile(out)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}
