//go:build interop

package kill

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// everyRepozo is how often the real repozo looks at what a kill has left. It looks always when all has come to its end.
const everyRepozo = 5

func init() { realRepozo = askRepozo }

// askRepozo lets the real repozo verify and restore a repository.
func askRepozo(w *world, dir string, settled bool) {
	if !settled && w.rng.IntN(everyRepozo) > 0 {
		return
	}
	// Several backups in a second have stamps that lie ahead of the clock, and repozo looks at none of those: a
	// verification takes no date, so its clock is set.
	w.python("import sys; from ZODB.scripts import repozo; repozo.gen_filedate = lambda _: (9999, 12, 31, 23, 59, 59); repozo.main(sys.argv[1:])",
		"-V", "-r", w.path(dir))
	out := filepath.Join(w.t.TempDir(), "Data.fs")
	w.repozo("-R", "-r", w.path(dir), "-o", out, "-D", "9999-12-31-23-59-59")
	ours, ok, err := asRepozo(w.path(dir))
	require.NoError(w.t, err)
	require.True(w.t, ok)
	theirs, err := stored(out)
	require.NoError(w.t, err)
	require.True(w.t, string(ours) == string(theirs), "the real repozo reads %d bytes, this test %d", len(theirs), len(ours))
	require.NoError(w.t, w.history().explain("what repozo restored from "+dir, theirs))
}

func (w *world) repozo(args ...string) {
	out, err := exec.Command(inVenv(w.t, "repozo"), args...).CombinedOutput()
	require.NoError(w.t, err, "repozo %v:\n%s", args, out)
}

func (w *world) python(program string, args ...string) {
	out, err := exec.Command(inVenv(w.t, "python"), append([]string{"-c", program}, args...)...).CombinedOutput()
	require.NoError(w.t, err, "repozo %v:\n%s", args, out)
}

func inVenv(t *testing.T, name string) string {
	path, err := filepath.Abs("../../.venv/bin/" + name)
	require.NoError(t, err)
	require.FileExists(t, path, "the real repozo is missing: scripts/venv.sh .venv")
	return path
}
