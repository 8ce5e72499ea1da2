//go:build interop

package hosts

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

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
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

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		require.NoError(t, err, "%s", cmd)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// run runs zodbrepl.
func run(t *testing.T, args ...string) result {
	t.Helper()
	return finish(t, exec.Command(binary, args...))
}

// good runs zodbrepl, which must succeed.
func good(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, args...)
	require.Zero(t, r.code, "zodbrepl %s: %s%s", strings.Join(args, " "), r.stdout, r.stderr)
	return r.stdout
}

// commit writes transactions to a Data.fs as FileStorage does, and makes it when it is missing. It holds no lock.
func commit(t *testing.T, data string, n int) {
	t.Helper()
	open := fixtures.Open
	if _, err := os.Stat(data); err != nil {
		open = fixtures.Create
	}
	g, err := open(data, fixtures.Options{NoSync: true})
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(uint64(g.Size()), 1))
	for range n {
		_, err := g.CommitRandom(rng, 3, 500)
		require.NoError(t, err)
	}
	require.NoError(t, g.Close())
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "waiting in vain: %s", what)
	}
}

func mkdir(t *testing.T, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return dir
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	require.NoError(t, err)
	y, err := os.ReadFile(b)
	return err == nil && bytes.Equal(x, y)
}

// scripts returns a file that an operator installs, with paths of a test in place of the usual ones.
func script(t *testing.T, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "scripts", name))
	require.NoError(t, err)
	for i := 0; i < len(replace); i += 2 {
		require.Contains(t, string(b), replace[i], name)
	}
	return strings.NewReplacer(replace...).Replace(string(b))
}

func decode(t *testing.T, text string) (doc map[string]any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &doc), text)
	return doc
}

// commitLarge writes one transaction with random bytes.
func commitLarge(t *testing.T, data string, size int) {
	t.Helper()
	g, err := fixtures.Open(data, fixtures.Options{NoSync: true})
	require.NoError(t, err)
	noise := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	txn := g.Begin("", "large", nil)
	txn.Store(1, noise)
	require.NoError(t, txn.Vote())
	_, err = txn.Finish()
	require.NoError(t, err)
	require.NoError(t, g.Close())
}

// lockData takes the lock of a Data.fs, as a ZEO server that runs there has it.
func lockData(t *testing.T, data string) *filestorage.Lock {
	t.Helper()
	l, err := filestorage.AcquireLock(data)
	require.NoError(t, err)
	return l
}
