//go:build interop

package interop

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bench is make bench on a small file, in a directory that it makes.
func bench(t *testing.T, arguments ...string) (cmd *exec.Cmd, dir string, out *bytes.Buffer) {
	t.Helper()
	bin := t.TempDir()
	require.NoError(t, os.Symlink(binary, filepath.Join(bin, "zodbrepl")))
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "limit"), "./scripts/bench/limit")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	said, err := build.CombinedOutput()
	require.NoError(t, err, string(said))
	dir, out = filepath.Join(t.TempDir(), "data"), &bytes.Buffer{}
	cmd = exec.Command(python(t, ".venv"), append([]string{"bench.py", "--bin", bin, "--dir", dir, "--runs", "1"}, arguments...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Join(root, "scripts", "bench"), out, out
	return cmd, dir, out
}

func TestTheBenchMeasuresEverythingAndLeavesNothing(t *testing.T) {
	t.Parallel()
	cmd, dir, out := bench(t, "--size", "4")
	require.NoError(t, cmd.Run(), out)
	for _, row := range []string{
		"full backup, gzip", "full backup, zstd", "full backup, none", "stored, gzip", "stored, zstd", "verify, gzip", "verify, zstd",
		"recover, gzip", "recover, zstd", "recover, none", "index from scratch", "structure check", "nothing changed; -Q",
		"nothing changed; default", "1 MiB changed, gzip; -Q", "1 MiB changed, gzip; default", "replay of", "how it grows",
		"no backup", "repozo -BFz", "after ",
	} {
		require.Contains(t, out.String(), "\n"+row, "a row or a table is missing")
	}
	_, err := os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist, "the bench left something")
}

func TestABenchThatIsInterruptedLeavesNothing(t *testing.T) {
	t.Parallel()
	for name, signal := range map[string]syscall.Signal{"by the keyboard": syscall.SIGINT, "by a signal to end": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, dir, out := bench(t, "--size", "8", "--tables", "commands")
			require.NoError(t, cmd.Start())
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			require.Eventually(t, func() bool {
				_, err := os.Stat(filepath.Join(dir, "work", "repozo"))
				return err == nil
			}, 2*patience, 10*time.Millisecond, "it never got to measuring")
			require.NoError(t, cmd.Process.Signal(signal))
			select {
			case err := <-ended:
				require.Error(t, err, out)
			case <-time.After(patience):
				cmd.Process.Kill()
				t.Fatal("it did not end")
			}
			_, err := os.Stat(dir)
			require.ErrorIs(t, err, os.ErrNotExist, "the bench left something")
			require.Empty(t, running(t, dir), "the bench left a process")
		})
	}
}

// endsAsItStarts runs the bench, and sends it the signal to end when a repozo exists and nothing holds it yet.
const endsAsItStarts = `
import os, signal, subprocess, sys
import bench
forks = subprocess.Popen._execute_child
def forks_and_is_told_to_end(self, args, *more):
    forks(self, args, *more)
    if any("repozo" in a for a in args):
        os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen._execute_child = forks_and_is_told_to_end
bench.main()
`

func TestABenchThatIsInterruptedAsAProcessStartsLeavesNone(t *testing.T) {
	t.Parallel()
	cmd, dir, out := bench(t, "--size", "8", "--tables", "commands")
	cmd.Args = append([]string{cmd.Args[0], "-c", endsAsItStarts}, cmd.Args[2:]...)
	err := cmd.Run()
	require.Equal(t, 143, cmd.ProcessState.ExitCode(), "%v: %s", err, out)
	_, err = os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist, "the bench left something")
	require.Empty(t, running(t, dir), "the bench left a process")
}

func TestABenchWithoutRoomIsRefused(t *testing.T) {
	t.Parallel()
	cmd, dir, out := bench(t, "--size", "1000000000", "--tables", "commands")
	require.Error(t, cmd.Run())
	require.Contains(t, out.String(), "nothing was done")
	_, err := os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// running returns the command lines of the processes that name a path.
func running(t *testing.T, path string) (found []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, f := range files {
		if line, err := os.ReadFile(f); err == nil && strings.Contains(string(line), path) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}
