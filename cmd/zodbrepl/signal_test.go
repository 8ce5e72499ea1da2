package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds every wait for another process: far beyond what a busy machine takes.
const patience = 30 * time.Second

// process is a command that runs as it does from a shell: TestMain has put it on the PATH.
type process struct {
	*exec.Cmd
	stderr output
	ended  chan error
}

// output is what a process has written so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith is start in an environment of its own.
func startWith(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command("zodbrepl", args...), ended: make(chan error, 1)}
	p.Stdout, p.Stderr, p.Env = io.Discard, &p.stderr, env
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill() })
	go func() { p.ended <- p.Wait() }()
	return p
}

// stop sends the signal and returns the exit code and how long it took.
func (p *process) stop(t *testing.T, s os.Signal) (code int, took time.Duration) {
	t.Helper()
	begun := time.Now()
	require.NoError(t, p.Process.Signal(s))
	select {
	case <-p.ended:
	case <-time.After(patience):
		require.Fail(t, "does not end", p.stderr.String())
	}
	return p.ProcessState.ExitCode(), time.Since(begun)
}

// until waits for something that another process does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, 5*time.Millisecond, what)
}

func zodbrepl(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("zodbrepl", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	return err == nil && bytes.Equal(x, y)
}

func TestSIGTERMEndsAWatchCleanly(t *testing.T) {
	dir := t.TempDir()
	master, standby, repo := filepath.Join(dir, "master.fs"), filepath.Join(dir, "standby.fs"), filepath.Join(dir, "repo")
	require.NoError(t, os.Mkdir(repo, 0o755))
	require.NoError(t, grow(master, true, 5, 300, "", false))
	zodbrepl(t, "backup", "-f", master, "-r", repo)

	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		t.Run(sig.String(), func(t *testing.T) {
			// So long an interval that only a hint from the file system makes it look again in time.
			p := start(t, "watch", "--from", repo, "--data", standby, "--interval", "1h")
			until(t, "the first look", func() bool { return same(t, master, standby) })
			require.NoError(t, grow(master, false, 2, 300, "", false))
			zodbrepl(t, "backup", "-f", master, "-r", repo)
			until(t, "the second increment", func() bool { return same(t, master, standby) })

			code, took := p.stop(t, sig)
			require.Zero(t, code, p.stderr.String())
			require.Less(t, took, 5*time.Second)
			require.NotContains(t, p.stderr.String(), "ERROR")
			require.FileExists(t, standby+".index")
		})
	}
}

// A command that is interrupted in the middle leaves nothing half done under its name, and no temporary file.
func TestSIGINTLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	data, repo, whole := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "repo"), filepath.Join(dir, "whole")
	require.NoError(t, os.Mkdir(repo, 0o755))
	require.NoError(t, os.Mkdir(whole, 0o755))
	require.NoError(t, grow(data, true, 30, 250_000, "", false))
	zodbrepl(t, "backup", "-f", data, "-r", whole)
	output := filepath.Join(dir, "out", "Data.fs")
	require.NoError(t, os.Mkdir(filepath.Dir(output), 0o755))

	for _, c := range []struct {
		name string
		dir  string // where it writes
		args []string
	}{
		{"backup", repo, []string{"backup", "-f", data, "-r", repo}},
		{"recover", filepath.Dir(output), []string{"recover", "-r", whole, "-o", output}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, told := interrupted(t, c.dir, c.args)
			require.Equal(t, 1, code)
			require.Contains(t, told, "zodbrepl: stopped by a signal\n  untouched: ")
			require.Empty(t, temporary(t, c.dir))
			require.Empty(t, names(t, c.dir, func(n string) bool { return !strings.HasSuffix(n, ".lock") }))
			zodbrepl(t, c.args...) // and it can be done again
		})
	}
	zodbrepl(t, "verify", "-r", repo)
	require.True(t, same(t, data, output))
}

// interrupted runs a command again and again, from an empty directory, until the signal comes before its end.
func interrupted(t *testing.T, dir string, args []string) (code int, told string) {
	t.Helper()
	for range 20 {
		p := start(t, args...)
		// Something of it is there, and bytes are being written.
		until(t, "the temporary file", func() bool { return len(temporary(t, dir)) > 0 || len(p.ended) > 0 })
		if code, _ = p.stop(t, os.Interrupt); code != 0 {
			return code, p.stderr.String()
		}
		for _, name := range names(t, dir, func(string) bool { return true }) {
			require.NoError(t, os.Remove(filepath.Join(dir, name)))
		}
	}
	require.Fail(t, "it is done before every signal")
	return 0, ""
}

func temporary(t *testing.T, dir string) []string {
	t.Helper()
	return names(t, dir, func(n string) bool { return strings.HasSuffix(n, ".tmp") })
}

func names(t *testing.T, dir string, which func(string) bool) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && which(d.Name()) {
			found = append(found, path)
		}
		return nil // a file may vanish meanwhile
	})
	require.NoError(t, err)
	return found
}
