package kill

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
)

// world is a master with its repository, a shared directory, a standby and a recovered file, all in one directory.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	bin    string   // zodbrepl
	codecs []string // of its backups
	dir    string
	usual  map[string]time.Duration
	tally  *tally

	writer    *exec.Cmd
	committed atomic.Int64 // bytes, by the writer that runs now
}

// tally counts what happened, for the log.
type tally struct{ rounds, killed, ended, writers, worlds atomic.Int64 }

func newWorld(t *testing.T, bin string, rng *rand.Rand, n *tally) *world {
	w := &world{t: t, rng: rng, bin: bin, dir: t.TempDir(), usual: map[string]time.Duration{}, tally: n}
	w.codecs = [][]string{{"gzip", "gzip", "none"}, {"zstd"}}[rng.IntN(2)]
	for _, d := range []string{"master", "repo", "shared", "standby", "history"} {
		require.NoError(t, os.Mkdir(w.path(d), 0o777))
	}
	require.NoError(t, os.WriteFile(w.path("master/Data.fs"), fixtures.Plain(), 0o666))
	n.worlds.Add(1)
	w.startWriter()
	t.Cleanup(func() {
		w.killWriter()
		if t.Failed() && os.Getenv("KEEP") != "" {
			kept, err := os.MkdirTemp("", "zodbrepl-kill-")
			if err == nil {
				err = os.CopyFS(kept, os.DirFS(w.dir))
			}
			t.Logf("kept in %s (%v)", kept, err)
		}
	})
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// startWriter starts the process that commits, aborts and packs, and waits for its first commit.
func (w *world) startWriter() {
	data := w.path("master/Data.fs")
	// Killed between the two renames of a pack it leaves no Data.fs: its operator takes the packed file or the old one.
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		from := []string{".old", ".pack"}[w.rng.IntN(2)]
		w.t.Logf("the writer died in a pack: Data.fs%s becomes Data.fs", from)
		require.NoError(w.t, os.Rename(data+from, data))
	}
	exe, err := os.Executable()
	require.NoError(w.t, err)
	w.writer = exec.Command(exe)
	w.writer.Env = append(os.Environ(), writerEnv+"="+data, historyEnv+"="+w.path("history"), seedEnv+"="+strconv.FormatUint(w.rng.Uint64(), 10))
	w.writer.Stderr = os.Stderr
	out, err := w.writer.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, w.writer.Start())
	first := make(chan bool)
	w.committed.Store(0)
	go func() {
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if size, err := strconv.ParseInt(lines.Text(), 10, 64); err == nil {
				w.committed.Store(size)
			}
			if n == 0 {
				close(first)
			}
		}
	}()
	select {
	case <-first:
	case <-time.After(30 * time.Second):
		w.t.Fatal("the writer does not write")
	}
}

func (w *world) killWriter() {
	if w.writer != nil {
		_ = w.writer.Process.Kill()
		_ = w.writer.Wait()
		w.writer = nil
	}
}

// victim is a run of zodbrepl that may be killed.
type victim struct {
	name string
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
	took time.Duration
}

func (w *world) start(args ...string) *victim {
	v := &victim{name: args[0], cmd: exec.Command(w.bin, args...), done: make(chan struct{})}
	v.cmd.Stdout, v.cmd.Stderr = &v.out, &v.out
	began := time.Now()
	require.NoError(w.t, v.cmd.Start())
	go func() {
		_ = v.cmd.Wait() // how it ended is asked of its ProcessState
		v.took = time.Since(began)
		close(v.done)
	}()
	return v
}

// run runs zodbrepl to its end, which must be with one of the exit codes.
func (w *world) run(codes []int, args ...string) (code int) {
	v := w.start(args...)
	select {
	case <-v.done:
	case <-time.After(60 * time.Second):
		_ = v.cmd.Process.Kill()
		w.t.Fatalf("%v hangs:\n%s", args, v.out.String())
	}
	code = v.cmd.ProcessState.ExitCode()
	require.Contains(w.t, codes, code, "%v:\n%s", args, v.out.String())
	w.learn(v)
	return code
}

func (w *world) learn(v *victim) {
	if old := w.usual[v.name]; old != 0 {
		w.usual[v.name] = (3*old + v.took) / 4
	} else {
		w.usual[v.name] = v.took
	}
}

func (w *world) backupArgs() []string {
	args := []string{"backup", "-f", w.path("master/Data.fs"), "-r", w.path("repo"),
		"--codec", w.codecs[w.rng.IntN(len(w.codecs))], "--jobs", []string{"1", "4"}[w.rng.IntN(2)]}
	switch w.rng.IntN(12) {
	case 0:
		args = append(args, "--full")
	case 1:
		args = append(args, "--deep")
	case 2:
		args = append(args, "--ship", w.path("shared"))
	}
	return args
}

func (w *world) shipArgs() []string {
	return []string{"ship", "-r", w.path("repo"), "--to", w.path("shared")}
}

func (w *world) watchArgs(once bool) []string {
	args := []string{"watch", "--from", w.path("shared"), "--data", w.path("standby/Data.fs")}
	if once {
		return append(args, "--once")
	}
	return append(args, "--interval", "20ms")
}

func (w *world) recoverArgs() []string {
	return []string{"recover", "-r", w.path("shared"), "-o", w.path("recovered.fs")}
}

// state is what is needed of the standby's state file.
type state struct {
	Applied struct{ Position int64 }
	Next    *struct {
		Position int64
		Whole    bool
	}
}

func (w *world) standbyState() (st state, ok bool) {
	b, err := os.ReadFile(w.path("standby/Data.fs.zodbrepl"))
	if errors.Is(err, fs.ErrNotExist) {
		return st, false
	}
	require.NoError(w.t, err)
	require.NoError(w.t, json.Unmarshal(b, &st))
	return st, true
}

// content returns a file, nil when there is none.
func (w *world) content(name string) []byte {
	b, err := os.ReadFile(w.path(name))
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(w.t, err)
	}
	return b
}

// history reads what the master was; call it after having read what is compared with it.
func (w *world) history() history {
	h, err := readHistory(w.path("master/Data.fs"), w.path("history"))
	require.NoError(w.t, err)
	return h
}

// published says whether a directory has a manifest.
func (w *world) published(dir string) bool {
	names, err := filepath.Glob(filepath.Join(w.path(dir), "*.manifest"))
	require.NoError(w.t, err)
	return len(names) > 0
}

// checkIndex requires that an index beside a Data.fs, if there is one, tells where the objects are up to its position.
func (w *world) checkIndex(name string) {
	f, err := os.Open(w.path(name + ".index"))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	require.NoError(w.t, err)
	defer f.Close()
	index, pos, err := filestorage.ReadIndex(f, name+".index")
	require.NoError(w.t, err)
	raw := w.content(name)
	require.LessOrEqual(w.t, pos, int64(len(raw)), "%s.index is of a longer file", name)
	data, err := filestorage.NewFile(bytesReader{bytes.NewReader(raw)}, name)
	require.NoError(w.t, err)
	want := &filestorage.Index{}
	_, err = data.ExtendIndex(context.Background(), want, filestorage.MagicSize, pos, nil)
	require.NoError(w.t, err, "%s.index ends at %d, which is no boundary", name, pos)
	require.Equal(w.t, entries(want), entries(index), "%s.index is not of this file", name)
}

func entries(x *filestorage.Index) string {
	var b strings.Builder
	for oid, pos := range x.All() {
		fmt.Fprintln(&b, oid, pos)
	}
	return b.String()
}

type bytesReader struct{ *bytes.Reader }

// Size implements filestorage.Reader.
func (r bytesReader) Size() (int64, error) { return r.Reader.Size(), nil }
