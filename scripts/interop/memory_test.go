//go:build interop

package interop

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
)

// Every command stays under 100 MiB on a host of many cores, where most is under way at once.
func TestEveryCommandTakesLittleMemory(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "Data.fs")
	g, err := fixtures.Create(data, fixtures.Options{NoSync: true})
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	for g.Size() < 160<<20 {
		_, err := g.CommitRandom(rng, 10, 200<<10)
		require.NoError(t, err)
	}
	require.NoError(t, g.Close())
	for _, codec := range []string{"gzip", "zstd", "none"} {
		t.Run(codec, func(t *testing.T) { takeLittleMemory(t, data, codec) })
	}
	run(t, "check-fs", data)
	run(t, "index", data)
}

// A manifest names a million blobs.
func TestManyBlobsTakeLittleMemory(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "Data.fs")
	g, err := fixtures.Create(data, fixtures.Options{NoSync: true})
	require.NoError(t, err)
	blob := []byte("\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.")
	for next := filestorage.OID(1); next < 1_000_000; {
		var records []fixtures.Record
		for range 1000 {
			records = append(records, fixtures.Record{OID: next, Data: blob})
			next++
		}
		_, err := g.Commit("", "", records...)
		require.NoError(t, err)
	}
	require.NoError(t, g.Close())
	takeLittleMemory(t, data, "gzip")
}

// takeLittleMemory goes with a Data.fs all the way to a standby.
func takeLittleMemory(t *testing.T, data, codec string) {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(data), codec)
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	repository, shipped := filepath.Join(dir, "repository"), filepath.Join(dir, "shipped")
	require.NoError(t, os.Mkdir(repository, 0o755))
	require.NoError(t, os.Mkdir(shipped, 0o755))
	run(t, "backup", "--codec", codec, "-f", data, "-r", repository)
	run(t, "backup", "-f", data, "-r", repository)
	run(t, "list", "-r", repository)
	run(t, "verify", "-r", repository)
	run(t, "recover", "-r", repository, "-o", filepath.Join(dir, "out.fs"))
	run(t, "ship", "-r", repository, "--to", shipped)
	standby := filepath.Join(dir, "standby.fs")
	run(t, "watch", "--once", "--from", shipped, "--data", standby)
	run(t, "status", "--data", standby)
	run(t, "diff", data, standby)
	run(t, "inspect", standby)
	run(t, "promote", "--data", standby)
	if codec != "zstd" {
		run(t, "repozo", "-V", "-r", repository)
		run(t, "repozo", "-R", "-r", repository, "-o", filepath.Join(dir, "repozo.fs"))
	}
}

// measure runs a command and prints its peak, as getrusage tells it. A process begins with the peak of the one that starts it,
// and that of the tests is large.
const measure = `
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("\npeak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
`

// run ends the test when a command takes 100 MiB or fails.
func run(t *testing.T, arguments ...string) {
	t.Helper()
	cmd := exec.Command(python(t, ".venv"), append([]string{"-c", measure, binary}, arguments...)...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=16")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	var peak int // KiB
	_, err = fmt.Sscanf(string(out[bytes.LastIndex(out, []byte("peak")):]), "peak %d", &peak)
	require.NoError(t, err)
	t.Logf("%s: %d MiB", arguments[0], peak>>10)
	require.Less(t, peak, 100<<10, arguments[0])
}
