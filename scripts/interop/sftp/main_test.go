//go:build interop

package sftp

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/internal/sshtest"
	"zodbrepl/scripts/interop/built"
)

// binary is the real command, built once.
var binary string

const (
	root = "../../.."
	// patience is how long a condition may take to come true.
	patience = 60 * time.Second
)

func TestMain(m *testing.M) { built.Main(m, root, &binary) }

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

// command is zodbrepl as somebody runs it who has that home directory.
func command(h *sshtest.Home, args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = h.Env()
	return cmd
}

func finish(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		require.NoError(t, err, "%s", cmd)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// try runs zodbrepl.
func try(t testing.TB, h *sshtest.Home, args ...string) result {
	t.Helper()
	return finish(t, command(h, args...))
}

// good runs zodbrepl, which must succeed.
func good(t testing.TB, h *sshtest.Home, args ...string) string {
	t.Helper()
	r := try(t, h, args...)
	require.Zero(t, r.code, "zodbrepl %s: %s%s", strings.Join(args, " "), r.stdout, r.stderr)
	return r.stdout
}

// shipped is what ship --json tells of a target.
type shipped struct {
	Target     string   `json:"target"`
	Increments []string `json:"increments"`
	Sent       int64    `json:"sent"`
	Resumed    int64    `json:"resumed"`
	Error      string   `json:"error"`
}

func readShipped(t *testing.T, stdout string) (all []shipped) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(stdout), &all), stdout)
	return all
}

// master is a database and its repository, on this host.
type master struct {
	t          *testing.T
	h          *sshtest.Home
	data, repo string
}

func newMaster(t *testing.T, h *sshtest.Home) *master {
	t.Helper()
	dir := t.TempDir()
	m := &master{t, h, filepath.Join(dir, "Data.fs"), filepath.Join(dir, "repo")}
	require.NoError(t, os.Mkdir(m.repo, 0o755))
	return m
}

// backup commits n transactions with size bytes each, as FileStorage does, and backs them up. The bytes are random, so
// the increments are about as large.
func (m *master) backup(n, size int, args ...string) {
	m.t.Helper()
	open := fixtures.Open
	if _, err := os.Stat(m.data); err != nil {
		open = fixtures.Create
	}
	g, err := open(m.data, fixtures.Options{NoSync: true})
	require.NoError(m.t, err)
	rng := rand.New(rand.NewPCG(uint64(g.Size()), 1))
	for range n {
		_, err := g.CommitRandom(rng, 3, size)
		require.NoError(m.t, err)
	}
	require.NoError(m.t, g.Close())
	good(m.t, m.h, append([]string{"backup", "-f", m.data, "-r", m.repo, "--codec", "none"}, args...)...)
}

// same requires that dir has what the repository has, byte for byte, no more, and verifies.
func (m *master) same(dir string) {
	m.t.Helper()
	want, got := files(m.t, m.repo), files(m.t, dir)
	for name := range want {
		require.Contains(m.t, got, name)
		require.True(m.t, want[name] == got[name], "%s differs", name)
	}
	for name := range got {
		require.Contains(m.t, want, name)
	}
	good(m.t, m.h, "verify", "-r", dir)
}

// stored is how many bytes the data files of the repository have.
func (m *master) stored() (n int64) {
	m.t.Helper()
	for name, content := range files(m.t, m.repo) {
		if strings.Contains(filepath.Ext(name), "fs") {
			n += int64(len(content))
		}
	}
	return n
}

// files returns what is in a directory, without what is only for one host: locks, and answers of standbys.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".lock" || ext == ".standby" || e.IsDir() {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		all[e.Name()] = string(b)
	}
	return all
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "waiting in vain: %s", what)
	}
}

// sameFile says whether two files hold the same bytes.
func sameFile(a, b string) bool {
	x, err1 := os.ReadFile(a)
	y, err2 := os.ReadFile(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}
