//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/scripts/interop/built"
)

// versions are the ZODBs that we must get on with, by their environment.
var versions = map[string]string{"ZODB 6.4": ".venv", "ZODB 5.8": ".venv58"}

// binary is the real command, built once.
var binary string

const (
	root = "../.."
	// patience is how long a condition may take to come true.
	patience = 60 * time.Second
)

func TestMain(m *testing.M) { built.Main(m, root, &binary, environments) }

// environments fails when a ZODB is not installed.
func environments() error {
	for name, venv := range versions {
		if _, err := os.Stat(filepath.Join(root, venv, "bin", "repozo")); err != nil {
			return fmt.Errorf("%s is needed and %s is not there: run scripts/venv.sh first, or make interop (%w)", name, venv, err)
		}
	}
	return nil
}

// eachVersion runs a test with either ZODB.
func eachVersion(t *testing.T, test func(t *testing.T, p *peer)) {
	t.Helper()
	for name, venv := range versions {
		t.Run("with "+name, func(t *testing.T) {
			t.Parallel()
			test(t, newPeer(t, venv))
		})
	}
}

func python(t *testing.T, venv string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, venv, "bin", "python"))
	require.NoError(t, err)
	return path
}

// peer is a process with the real ZODB: peer.py.
type peer struct {
	t    *testing.T
	venv string
	in   io.Writer
	out  *bufio.Reader
}

func newPeer(t *testing.T, venv string) *peer {
	t.Helper()
	cmd := exec.Command(python(t, venv), "peer.py")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Logf("peer.py: %v\n%s", err, errs.String())
		}
	})
	return &peer{t: t, venv: venv, in: in, out: bufio.NewReader(out)}
}

// answer is what peer.py answers: the fields of the call that was made.
type answer struct {
	Error string `json:"error"`
	// repozo
	Code int    `json:"code"`
	Said string `json:"said"`
	// grow, load, index
	Size      int64  `json:"size"`
	Last      string `json:"last"`
	Objects   int    `json:"objects"`
	Digest    string `json:"digest"`
	UsedIndex int    `json:"used_index"`
	Start     int64  `json:"start"`
	End       int64  `json:"end"`
	PID       int    `json:"pid"`
	OK        bool   `json:"ok"` // fstest
}

type call map[string]any

// try makes a call that may fail.
func (p *peer) try(what string, c call) answer {
	p.t.Helper()
	c["do"] = what
	b, err := json.Marshal(c)
	require.NoError(p.t, err)
	_, err = p.in.Write(append(b, '\n'))
	require.NoError(p.t, err)
	line, err := p.out.ReadBytes('\n')
	require.NoError(p.t, err, "peer.py ended during %s", b)
	var a answer
	require.NoError(p.t, json.Unmarshal(line, &a))
	return a
}

func (p *peer) do(what string, c call) answer {
	p.t.Helper()
	a := p.try(what, c)
	require.Empty(p.t, a.Error, "%s %v", what, c)
	return a
}

// grow makes the real FileStorage write to a Data.fs, and returns what the file then is.
func (p *peer) grow(data string, steps ...string) []byte {
	p.t.Helper()
	a := p.do("grow", call{"data": data, "steps": steps})
	b, err := os.ReadFile(data)
	require.NoError(p.t, err)
	require.EqualValues(p.t, a.Size, len(b))
	return b
}

// repozo runs the real one at a moment, and returns what it says on standard error.
func (p *peer) repozo(at string, args ...string) answer {
	p.t.Helper()
	return p.do("repozo", call{"args": args, "now": at})
}

// good runs the real repozo, which must succeed. That of ZODB 5.8 succeeds whatever it finds, but says so.
func (p *peer) good(at string, args ...string) {
	p.t.Helper()
	a := p.repozo(at, args...)
	require.Zero(p.t, a.Code, "repozo %v: %s", args, a.Said)
	require.Empty(p.t, a.Said, "repozo %v", args)
}

// result is how a command of ours ended.
type result struct {
	code           int
	stdout, stderr string
}

// tryAt runs zodbrepl with the clock at a moment, "" for the real one.
func tryAt(t *testing.T, at string, args ...string) result {
	t.Helper()
	cmd := exec.Command(binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = os.Environ()
	if at != "" {
		moment, err := time.Parse("2006-01-02-15-04-05", at)
		require.NoError(t, err)
		cmd.Env = append(cmd.Env, "ZODBREPL_NOW="+moment.Format(time.RFC3339))
	}
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); !exited {
		require.NoError(t, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

func zodbreplAt(t *testing.T, at string, args ...string) string {
	t.Helper()
	r := tryAt(t, at, args...)
	require.Zero(t, r.code, "zodbrepl %s: %s%s", strings.Join(args, " "), r.stdout, r.stderr)
	return r.stdout
}

func zodbrepl(t *testing.T, args ...string) string {
	t.Helper()
	return zodbreplAt(t, "", args...)
}

// status is what we use of zodbrepl status --json.
type status struct {
	Role      string `json:"role"`
	Position  int64  `json:"position"`
	LastTID   string `json:"last_tid"`
	Condition struct {
		Name    string `json:"name"`
		Message string `json:"message"`
	} `json:"condition"`
}

func statusOf(t *testing.T, data string) (s status, ok bool) {
	t.Helper()
	r := tryAt(t, "", "status", "--json", "--data", data)
	if r.code != 0 {
		return s, false
	}
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &s))
	return s, true
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "waiting in vain: %s", what)
	}
}

// sameBytes compares files without printing them.
func sameBytes(t *testing.T, want []byte, path, what string) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err, what)
	n := min(len(want), len(got))
	first := n
	for i := range n {
		if want[i] != got[i] {
			first = i
			break
		}
	}
	require.True(t, bytes.Equal(want, got), "%s: %s has %d bytes, should have %d, the first difference is at %d", what, path, len(got), len(want), first)
}

func mkdir(t *testing.T, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return dir
}
