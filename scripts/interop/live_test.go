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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
)

// liveTime is how long a live master is followed.
const liveTime = 20 * time.Second

// server starts a real ZEO server on a Data.fs. The socket's path must be short, so it has a directory of its own.
func server(t *testing.T, data, socket string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(runzeo(t), "-a", socket, "-f", data)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("runzeo: %s", log.String())
		}
	})
	return cmd
}

func runzeo(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, ".venv", "bin", "runzeo"))
	require.NoError(t, err)
	return path
}

// writer is a ZEO client that commits and aborts. acked are the tids of the commits that it was told of.
type writer struct {
	cmd   *exec.Cmd
	stdin io.Closer
	errs  bytes.Buffer
	done  chan struct{}

	mu    sync.Mutex
	acked []filestorage.TID
}

func newWriter(t *testing.T, socket, name string) *writer {
	t.Helper()
	w := &writer{cmd: exec.Command(python(t, ".venv"), "zeo.py", "write", socket, name), done: make(chan struct{})}
	stdin, err := w.cmd.StdinPipe()
	require.NoError(t, err)
	w.stdin = stdin
	out, err := w.cmd.StdoutPipe()
	require.NoError(t, err)
	w.cmd.Stderr = &w.errs
	require.NoError(t, w.cmd.Start())
	go func() {
		defer close(w.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if tid, err := filestorage.ParseTID(lines.Text()); err == nil && len(lines.Text()) == 16 {
				w.mu.Lock()
				w.acked = append(w.acked, tid)
				w.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() { w.kill() })
	return w
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// stop lets it finish its commit.
func (w *writer) stop(t *testing.T) {
	t.Helper()
	w.stdin.Close()
	<-w.done
	require.NoError(t, w.cmd.Wait(), w.errs.String())
}

func (w *writer) kill() {
	_ = w.cmd.Process.Kill()
	<-w.done
	_ = w.cmd.Wait()
}

func client(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(python(t, ".venv"), append([]string{"zeo.py"}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "zeo.py %v: %s", args, errs.String())
	return strings.TrimSpace(string(out))
}

// tidsOf returns the tids of all transactions of a Data.fs.
func tidsOf(t *testing.T, data string) map[filestorage.TID]bool {
	t.Helper()
	f, closer, err := filestorage.Open(data)
	require.NoError(t, err)
	defer closer.Close()
	tids := make(map[filestorage.TID]bool)
	for txn, err := range f.Transactions(filestorage.MagicSize) {
		require.NoError(t, err)
		tids[txn.TID] = true
	}
	return tids
}

// generations are the files that a master's Data.fs has been: a pack makes a new one.
type generations struct {
	path  string
	files []*os.File
}

func (g *generations) look(t *testing.T) {
	t.Helper()
	f, err := os.Open(g.path)
	if err != nil {
		return // a pack is between its two renames
	}
	now, err := f.Stat()
	require.NoError(t, err)
	for _, old := range g.files {
		if was, err := old.Stat(); err == nil && os.SameFile(was, now) {
			f.Close()
			return
		}
	}
	g.files = append(g.files, f)
	t.Cleanup(func() { f.Close() })
}

// memory is a Data.fs in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) Size() (int64, error)                    { return int64(len(m)), nil }

// checkPrefix holds one state of the standby to the master: up to the recorded position it must be what a generation
// begins with, and end with the recorded transaction. ok is false when watch moved on meanwhile.
func (g *generations) checkPrefix(t *testing.T, standby string) (ok bool) {
	t.Helper()
	read := func() (state struct {
		Next    json.RawMessage `json:"next"`
		Applied struct {
			Position int64           `json:"position"`
			LastTID  filestorage.TID `json:"last_tid"`
		} `json:"applied"`
	}, raw string) {
		b, err := os.ReadFile(standby + ".zodbrepl")
		if err != nil {
			return state, ""
		}
		require.NoError(t, json.Unmarshal(b, &state))
		return state, string(b)
	}
	before, raw := read()
	if raw == "" || before.Applied.Position == 0 {
		return false
	}
	got, err := os.ReadFile(standby)
	if _, again := read(); again != raw || err != nil {
		return false
	}
	if len(before.Next) > 0 && string(before.Next) != "null" {
		return false // in the middle of a swap: the file is one or the other
	}
	position := before.Applied.Position
	require.GreaterOrEqual(t, int64(len(got)), position, "the state claims more than there is")
	got = got[:position]
	f, err := filestorage.NewFile(memory(got), "standby")
	require.NoError(t, err)
	last, whole, err := f.LastBefore(position)
	require.NoError(t, err)
	require.True(t, whole, "position %d is not a commit boundary", position)
	require.Equal(t, before.Applied.LastTID, last.TID)
	for _, file := range g.files {
		want := make([]byte, position)
		if n, _ := file.ReadAt(want, 0); int64(n) == position && bytes.Equal(want, got) {
			return true
		}
	}
	require.Fail(t, "not a prefix", "the standby's first %d bytes are those of no Data.fs that the master had", position)
	return false
}

func TestALiveMaster(t *testing.T) {
	t.Parallel()
	sockets, err := os.MkdirTemp("", "zeo")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(sockets) })
	socket, socket2 := filepath.Join(sockets, "1"), filepath.Join(sockets, "2")
	dir := t.TempDir()
	data := filepath.Join(mkdir(t, dir, "master"), "Data.fs")
	repo, share := mkdir(t, dir, "repo"), mkdir(t, dir, "share")
	standby, second := filepath.Join(mkdir(t, dir, "standby"), "Data.fs"), filepath.Join(mkdir(t, dir, "second"), "Data.fs")
	p := newPeer(t, ".venv")

	zeo := server(t, data, socket)
	writers := []*writer{newWriter(t, socket, "one")} // the first client makes the root object
	until(t, "the first writer commits", func() bool { return writers[0].count() > 0 })
	writers = append(writers, newWriter(t, socket, "two"))
	until(t, "both writers commit", func() bool { return writers[0].count() > 2 && writers[1].count() > 2 })
	history := &generations{path: data}
	w := watch(t, share, standby)

	// Followed while they write. The repository's stamps are a second apart, so a second a backup is enough.
	states, packs := 0, 0
	start := time.Now()
	for n := 0; time.Since(start) < liveTime || packs < 2 || states < 10; n++ {
		require.Less(t, time.Since(start), liveTime+patience, "%d packs, %d states", packs, states)
		history.look(t)
		if time.Since(start) > liveTime/3*time.Duration(packs+1) && packs < 2 {
			client(t, "pack", socket)
			packs++
			history.look(t)
		}
		if n%2 == 0 {
			zodbrepl(t, "backup", "-f", data, "-r", repo, "--ship", share)
		} else {
			zodbrepl(t, "repozo", "-BzQ", "-r", repo, "-f", data)
			zodbrepl(t, "ship", "-r", repo, "--to", share)
		}
		history.look(t)
		if history.checkPrefix(t, standby) {
			states++
		}
	}
	require.Greater(t, len(history.files), 1, "packs made new files")
	var acked []filestorage.TID
	for _, wr := range writers {
		wr.stop(t)
		require.Greater(t, len(wr.acked), 20)
		acked = append(acked, wr.acked...)
	}
	t.Logf("%d commits, %d states of the standby checked", len(acked), states)

	// Quiet: everything is equal after a last backup.
	zodbrepl(t, "backup", "-f", data, "-r", repo, "--ship", share)
	want, err := os.ReadFile(data)
	require.NoError(t, err)
	until(t, "the standby has everything", func() bool {
		s, ok := statusOf(t, standby)
		return ok && s.Condition.Name == "current" && s.Position == int64(len(want))
	})
	sameBytes(t, want, standby, "the standby")
	out := filepath.Join(dir, "out.fs")
	zodbrepl(t, "recover", "-r", share, "-o", out)
	sameBytes(t, want, out, "a recovery from what was shipped")
	p.good(later, "-R", "-w", "-r", repo, "-o", out)
	sameBytes(t, want, out, "a recovery with the real repozo")
	p.good(later, "-V", "-r", repo)
	zodbrepl(t, "verify", "-r", repo)
	source, copied := p.do("load", call{"data": data}), p.do("load", call{"data": standby})
	require.Equal(t, source.Digest, copied.Digest)
	newest := tidsOf(t, standby)
	packed := lastPacked(t, standby)
	for _, tid := range acked {
		require.True(t, tid <= packed || newest[tid], "the acknowledged commit %s is missing", tid)
	}

	// The master dies in the middle of commits.
	writers = []*writer{newWriter(t, socket, "one"), newWriter(t, socket, "two")}
	until(t, "both writers commit again", func() bool { return writers[0].count() > 5 && writers[1].count() > 5 })
	zodbrepl(t, "backup", "-f", data, "-r", repo, "--ship", share)
	shipped := writers[0].count()
	until(t, "commits that are never shipped", func() bool { return writers[0].count() > shipped+5 })
	require.NoError(t, zeo.Process.Kill())
	acked = nil
	for _, wr := range writers {
		wr.kill()
		acked = append(acked, wr.acked...)
	}

	pidFile, log := filepath.Join(sockets, "pid"), filepath.Join(sockets, "log")
	start2 := fmt.Sprintf("%s -a %s -f %s >%s 2>&1 </dev/null & echo $! >%s", runzeo(t), socket2, standby, log, pidFile)
	var promotion struct {
		Epoch   int             `json:"epoch"`
		LastTID filestorage.TID `json:"last_tid"`
	}
	r := tryAt(t, "", "promote", "--json", "--data", standby, "--from", share, "--exec", start2)
	if b, err := os.ReadFile(pidFile); err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		require.NoError(t, err)
		t.Cleanup(func() {
			_ = syscall.Kill(pid, syscall.SIGTERM)
			if b, err := os.ReadFile(log); err == nil && t.Failed() {
				t.Logf("the second ZEO: %s", b)
			}
		})
	}
	require.Zero(t, r.code, r.stderr)
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &promotion))
	require.Equal(t, 2, promotion.Epoch)
	var exit *exec.ExitError
	require.ErrorAs(t, <-w.done, &exit)
	require.Equal(t, 3, exit.ExitCode(), "watch gave way: %s", w.errs)

	last, objects, _ := strings.Cut(client(t, "read", socket2), " ")
	require.Equal(t, promotion.LastTID.String(), last, "the new master begins where promote says")
	require.NotEqual(t, "1", objects)
	here := tidsOf(t, standby)
	lost := 0
	for _, tid := range acked {
		if tid <= promotion.LastTID {
			require.True(t, here[tid], "the acknowledged commit %s, which was shipped, is missing", tid)
		} else {
			lost++
			require.False(t, here[tid])
		}
	}
	require.NotZero(t, lost, "some commits came after the last backup: that they are lost is what promote tells")

	three := newWriter(t, socket2, "three")
	until(t, "clients write to the new master", func() bool { return three.count() > 5 })
	three.stop(t)
	for _, tid := range three.acked {
		require.Greater(t, tid, promotion.LastTID)
	}
	require.Equal(t, 3, tryAt(t, "", "watch", "--once", "--from", share, "--data", standby).code, "a promoted node is not followed")
	require.True(t, p.do("fstest", call{"data": standby}).OK)

	// The other standby follows the new master, in the same directory and without a new full. The old one is out.
	zodbrepl(t, "watch", "--once", "--from", share, "--data", second)
	fulls := fullsIn(t, share)
	zodbrepl(t, "backup", "-f", standby, "-r", share)
	require.Equal(t, fulls, fullsIn(t, share))
	zodbrepl(t, "watch", "--once", "--from", share, "--data", second)
	want, err = os.ReadFile(standby)
	require.NoError(t, err)
	sameBytes(t, want, second, "the second standby")
	p.good(later, "-V", "-r", share)
	p.good(later, "-R", "-w", "-r", share, "-o", out)
	sameBytes(t, want, out, "a recovery with the real repozo after the promotion")
	before := everything(t, filepath.Join(share, "Data.fs"))
	// The first backup of the old master may still be made; it is never carried to where the new one writes.
	r = tryAt(t, "", "backup", "-f", data, "-r", repo, "--ship", share)
	require.Equal(t, 3, r.code, "the stale master: %s%s", r.stdout, r.stderr)
	require.Equal(t, before, everything(t, filepath.Join(share, "Data.fs")))
	for _, args := range [][]string{{"backup", "-f", data, "-r", repo}, {"backup", "-f", data, "-r", share}} {
		r = tryAt(t, "", args...)
		require.Equal(t, 3, r.code, "the stale master: %s%s", r.stdout, r.stderr)
	}
	require.Equal(t, before, everything(t, filepath.Join(share, "Data.fs")))
}

func fullsIn(t *testing.T, repo string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repo, "*.fs*"))
	require.NoError(t, err)
	return files
}

// lastPacked returns the last transaction that a pack has touched: those before it may be gone.
func lastPacked(t *testing.T, data string) (last filestorage.TID) {
	t.Helper()
	f, closer, err := filestorage.Open(data)
	require.NoError(t, err)
	defer closer.Close()
	for txn, err := range f.Transactions(filestorage.MagicSize) {
		require.NoError(t, err)
		if txn.Status == filestorage.StatusPacked {
			last = txn.TID
		}
	}
	return last
}
