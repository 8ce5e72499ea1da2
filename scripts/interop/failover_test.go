//go:build interop

package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
)

// host is one of a pair. Both have the same paths: what a host is, is not in its configuration.
type host struct {
	t        *testing.T
	data     string // of its ZEO
	incoming string // where it backs up as a master, and follows as a standby
	socket   string // of its ZEO, when that runs
	zeoLog   string
	zeo      *os.Process
	backups  *exec.Cmd
	watch    *watching
}

func newHost(t *testing.T, dir, name, socket string) *host {
	t.Helper()
	h := &host{t: t, data: filepath.Join(mkdir(t, dir, name, "zeo"), "Data.fs"), incoming: mkdir(t, dir, name, "incoming"), socket: socket,
		zeoLog: filepath.Join(dir, name, "zeo.log")}
	t.Cleanup(func() {
		h.kill()
		if b, err := os.ReadFile(h.zeoLog); err == nil && t.Failed() {
			t.Logf("ZEO of %s: %s", name, b)
		}
	})
	return h
}

// startZEO is the command that starts the host's ZEO server in the background.
func (h *host) startZEO() string {
	server, err := filepath.Abs("zeoserver.py")
	require.NoError(h.t, err)
	return fmt.Sprintf("rm -f %[5]s; %[1]s %[2]s -a %[3]s -f %[4]s >%[5]s 2>&1 </dev/null & echo $! >%[5]s.pid", python(h.t, ".venv"), server, h.socket, h.data, h.zeoLog)
}

// started takes over the server that the command has started.
func (h *host) started() {
	b, err := os.ReadFile(h.zeoLog + ".pid")
	require.NoError(h.t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(h.t, err)
	h.zeo, err = os.FindProcess(pid)
	require.NoError(h.t, err)
}

// backUp does what cron does, over and over, in a process group that can be killed whole.
func (h *host) backUp(ship string) {
	h.t.Helper()
	loop := fmt.Sprintf("while :; do %s backup -f %s -r %s --ship %s || exit; sleep 0.2; done", binary, h.data, h.incoming, ship)
	h.backups = exec.Command("/bin/sh", "-c", loop)
	h.backups.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	h.backups.Stderr = os.Stderr
	require.NoError(h.t, h.backups.Start())
}

// kill ends everything that runs on the host, at once and without a word, as a power cut does.
func (h *host) kill() {
	if h.zeo != nil {
		_ = h.zeo.Kill()
	}
	if h.backups != nil {
		_ = syscall.Kill(-h.backups.Process.Pid, syscall.SIGKILL)
		_ = h.backups.Wait()
	}
	if h.watch != nil {
		_ = h.watch.cmd.Process.Kill()
	}
	if h.zeo != nil { // no child of ours; its lock tells that it is gone
		until(h.t, "the server is gone", func() bool { return h.zeo.Signal(syscall.Signal(0)) != nil })
	}
	h.zeo, h.backups, h.watch = nil, nil, nil
}

// promotion is what we use of zodbrepl promote --json.
type promotion struct {
	Epoch    int             `json:"epoch"`
	Position int64           `json:"position"`
	LastTID  filestorage.TID `json:"last_tid"`
}

// promote makes the host the master, and its ZEO run. It must have scanned nothing.
func (h *host) promote() (p promotion) {
	h.t.Helper()
	out := zodbrepl(h.t, "promote", "--json", "--data", h.data, "--exec", h.startZEO())
	require.NoError(h.t, json.Unmarshal([]byte(out), &p))
	h.started()
	h.serves(p.Position)
	return p
}

// serves waits for the server, which must have found an index that reaches to the end.
func (h *host) serves(end int64) {
	h.t.Helper()
	scanned := regexp.MustCompile(`scanned from (\d+) to (\d+)`)
	var found [][]byte
	until(h.t, "the server has opened Data.fs", func() bool {
		b, _ := os.ReadFile(h.zeoLog) // it is made anew
		found = scanned.FindSubmatch(b)
		return found != nil
	})
	if end > 0 {
		require.Equal(h.t, []string{fmt.Sprint(end), fmt.Sprint(end)}, []string{string(found[1]), string(found[2])}, "ZEO scans nothing: our index is whole")
	}
}

// load starts clients that commit over and over, and waits until each of them has.
func (h *host) load(names ...string) (writers []*writer) {
	h.t.Helper()
	for i, name := range names {
		w := newWriter(h.t, h.socket, name)
		writers = append(writers, w)
		if i == 0 { // the first client makes the root object
			until(h.t, "the first client commits", func() bool { return w.count() > 0 })
		}
	}
	for _, w := range writers {
		until(h.t, "every client commits", func() bool { return w.count() > 3 })
	}
	return writers
}

// acked kills the clients, and returns what they were told to be committed.
func acked(writers []*writer) (tids []filestorage.TID) {
	for _, w := range writers {
		w.kill()
		tids = append(tids, w.acked...)
	}
	return tids
}

// The master dies in the middle of commits, with everything that runs on its host. The other one goes on; the dead one
// comes back as its standby, and takes over when the other dies in its turn.
func TestFailoverOfARealZEOAndBack(t *testing.T) {
	t.Parallel()
	sockets, err := os.MkdirTemp("", "zeo")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(sockets) })
	dir := t.TempDir()
	a, b := newHost(t, dir, "a", filepath.Join(sockets, "a")), newHost(t, dir, "b", filepath.Join(sockets, "b"))

	require.NoError(t, exec.Command("/bin/sh", "-c", a.startZEO()).Run())
	a.started()
	a.serves(0)
	writers := a.load("one", "two")
	a.backUp(b.incoming)
	b.watch = watch(t, b.incoming, b.data)
	everAcked := map[filestorage.TID]bool{}
	lostEver := map[filestorage.TID]bool{}

	for round, pair := range [][2]*host{{a, b}, {b, a}, {a, b}} {
		master, standby := pair[0], pair[1]
		// It has followed for a while under load.
		st, _ := statusOf(t, standby.data)
		until(t, "the standby follows", func() bool {
			now, ok := statusOf(t, standby.data)
			return ok && now.LastTID > st.LastTID && now.Condition.Name == "current"
		})
		shipped := writers[0].count()
		until(t, "clients go on", func() bool { return writers[0].count() > shipped+5 })
		master.kill()
		tids := acked(writers)
		w := standby.watch
		how := "exit status 3" // watch gives way, and has written the index
		if round == 1 {
			how = "signal: killed" // promote has to do all of it
			require.NoError(t, w.cmd.Process.Kill())
		}
		p := standby.promote()
		standby.watch = nil
		require.Equal(t, round+2, p.Epoch)
		require.ErrorContains(t, <-w.done, how, w.errs.String())

		// A client reads everything, up to the transaction that promote has told.
		last, objects, _ := strings.Cut(client(t, "read", standby.socket), " ")
		require.Equal(t, p.LastTID.String(), last)
		n, err := strconv.Atoi(objects)
		require.NoError(t, err)
		require.Greater(t, n, 3, "objects")
		old, err := os.ReadFile(master.data)
		require.NoError(t, err)
		here, err := os.ReadFile(standby.data)
		require.NoError(t, err)
		require.True(t, string(here[:p.Position]) == string(old[:p.Position]), "what was promoted is what the master had")

		// Of all that was acknowledged, what came after that transaction is missing, and nothing else.
		kept := tidsOf(t, standby.data)
		lost := map[filestorage.TID]bool{}
		for _, tid := range tids {
			everAcked[tid] = true
			if tid > p.LastTID {
				lost[tid] = true
			}
		}
		require.NotEmpty(t, lost, "the master died with commits that were not shipped")
		for tid := range lost {
			lostEver[tid] = true
		}
		for tid := range everAcked {
			require.Equal(t, !lostEver[tid], kept[tid], "the acknowledged commit %s", tid)
		}

		// It is written to, and backed up into where its increments had come, towards the other host.
		writers = standby.load("one", "two")
		standby.backUp(master.incoming)
		named := master.rejoin()
		for tid := range lost {
			require.True(t, named[tid], "rejoin names the lost commit %s", tid)
		}
		for tid := range named {
			require.Greater(t, tid, p.LastTID)
		}
		t.Logf("round %d: epoch %d, %d acknowledged commits lost of %d, %d transactions saved", round, p.Epoch, len(lost), len(tids), len(named))
	}
	for _, w := range writers {
		w.stop(t)
	}
}

// rejoin makes the host the standby of what arrives there, and returns the transactions that it had alone.
func (h *host) rejoin() map[filestorage.TID]bool {
	h.t.Helper()
	until(h.t, "the new master's first backup", func() bool {
		r := tryAt(h.t, "", "rejoin", "--dry-run", "--data", h.data, "--from", h.incoming)
		require.Contains(h.t, []int{0, 3, 6}, r.code, r.stderr)
		return r.code == 0
	})
	var res struct {
		Way   string `json:"way"`
		Saved string `json:"saved"`
	}
	require.NoError(h.t, json.Unmarshal([]byte(zodbrepl(h.t, "rejoin", "--json", "--data", h.data, "--from", h.incoming)), &res))
	require.Equal(h.t, "deltas", res.Way, "no full copy")
	named := map[filestorage.TID]bool{}
	for line := range strings.Lines(zodbrepl(h.t, "inspect", "--json", res.Saved)) {
		var t struct {
			TID filestorage.TID `json:"tid"`
		}
		require.NoError(h.t, json.Unmarshal([]byte(line), &t))
		if t.TID != 0 {
			named[t.TID] = true
		}
	}
	h.watch = watch(h.t, h.incoming, h.data)
	return named
}
