//go:build interop

package interop

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
)

// Every command stays under 100 MiB on a host of many cores, where most is under way at once.
func TestEveryCommandTakesLittleMemory(t *testing.T) {
	t.Parallel()
	const most = 100 << 10 // KiB, as getrusage tells it
	dir := t.TempDir()
	data := filepath.Join(dir, "Data.fs")
	g, err := fixtures.Create(data, fixtures.Options{NoSync: true})
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	for g.Size() < 160<<20 {
		_, err := g.CommitRandom(rng, 10, 200<<10)
		require.NoError(t, err)
	}
	require.NoError(t, g.Close())
	run := func(t *testing.T, arguments ...string) {
		t.Helper()
		cmd := exec.Command(binary, arguments...)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=16")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
		t.Logf("%s: %d MiB", arguments[0], peak>>10)
		require.Less(t, peak, int64(most), arguments[0])
	}
	for _, codec := range []string{"gzip", "zstd", "none"} {
		t.Run(codec, func(t *testing.T) {
			repository, shipped := filepath.Join(dir, codec), filepath.Join(dir, codec+"-shipped")
			require.NoError(t, os.Mkdir(repository, 0o755))
			require.NoError(t, os.Mkdir(shipped, 0o755))
			run(t, "backup", "--codec", codec, "-f", data, "-r", repository)
			run(t, "verify", "-r", repository)
			run(t, "recover", "-r", repository, "-o", filepath.Join(dir, codec+".fs"))
			run(t, "ship", "-r", repository, "--to", shipped)
			run(t, "watch", "--once", "--from", shipped, "--data", filepath.Join(dir, codec+"-standby.fs"))
			for _, gone := range []string{repository, shipped, filepath.Join(dir, codec+".fs"), filepath.Join(dir, codec+"-standby.fs")} {
				require.NoError(t, os.RemoveAll(gone))
			}
		})
	}
	run(t, "check-fs", data)
	run(t, "index", data)
}
