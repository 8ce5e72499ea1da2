//go:build interop

package interop

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures/fixturetest"
)

// watching is zodbrepl watch as a daemon.
type watching struct {
	cmd  *exec.Cmd
	errs *bytes.Buffer
	done chan error
}

func watch(t *testing.T, from, data string) *watching {
	t.Helper()
	w := &watching{cmd: exec.Command(binary, "watch", "--from", from, "--data", data, "--interval", "50ms"), errs: &bytes.Buffer{}, done: make(chan error, 1)}
	w.cmd.Stderr = w.errs
	require.NoError(t, w.cmd.Start())
	go func() { w.done <- w.cmd.Wait() }()
	t.Cleanup(func() { _ = w.cmd.Process.Kill() })
	return w
}

func (w *watching) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, w.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, <-w.done, w.errs.String())
}

// sameObjects asks ZODB for every object in two files. It must take our index of the second.
func sameObjects(t *testing.T, p *peer, source, data string) {
	t.Helper()
	want := p.do("load", call{"data": source})
	require.NotZero(t, want.Objects)
	for _, readOnly := range []bool{true, false} {
		got := p.do("load", call{"data": data, "read_only": readOnly})
		require.Equal(t, 1, got.UsedIndex, "ZODB takes our index")
		require.Equal(t, got.End, got.Start, "ZODB has nothing to scan")
		require.Equal(t, want.End, got.End)
		require.Equal(t, want.Last, got.Last)
		require.Equal(t, want.Objects, got.Objects)
		require.Equal(t, want.Digest, got.Digest)
	}
}

func TestZODBOpensWhatWeRecoveredWithoutScanning(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		repo, data := mkdir(t, dir, "repo"), filepath.Join(dir, "Data.fs")
		for n, steps := range plan {
			want := p.grow(data, steps...)
			zodbreplAt(t, moment(n), "backup", "-f", data, "-r", repo)
			// Made anew, and appended to an earlier recovery.
			for _, out := range []string{"same.fs", fmt.Sprintf("new%d.fs", n)} {
				out = filepath.Join(dir, out)
				zodbrepl(t, "recover", "-r", repo, "-o", out)
				sameBytes(t, want, out, "recovered")
				sameObjects(t, p, data, out)
				sameBytes(t, want, out, "after ZODB has opened it")
			}
		}
	})
}

func TestAStandbyBesideZODB(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		repo, share, data := mkdir(t, dir, "repo"), mkdir(t, dir, "share"), filepath.Join(dir, "Data.fs")
		standby := filepath.Join(mkdir(t, dir, "standby"), "Data.fs")
		stage := 0
		grow := func(steps ...string) []byte {
			t.Helper()
			want := p.grow(data, steps...)
			zodbreplAt(t, moment(stage), "backup", "-f", data, "-r", repo, "--ship", share)
			stage++
			return want
		}
		current := func(want []byte) {
			t.Helper()
			until(t, "the standby is current", func() bool {
				s, ok := statusOf(t, standby)
				return ok && s.Condition.Name == "current" && s.Position == int64(len(want)) && s.LastTID == p.do("load", call{"data": data}).Last
			})
			sameBytes(t, want, standby, "standby")
		}
		want := grow("plain", "undo", "big")
		w := watch(t, share, standby)
		current(want)
		for _, steps := range [][]string{{"plain"}, {"pack", "plain"}, {"delete", "empty"}} {
			current(grow(steps...))
			source, got := p.do("load", call{"data": data}), p.do("load", call{"data": standby})
			require.Equal(t, source.Digest, got.Digest, "a read-only FileStorage reads a standby while it is followed")
			require.Equal(t, source.Last, got.Last)
			a := p.try("load", call{"data": standby, "read_only": false})
			require.Contains(t, a.Error, "LockError", "no FileStorage opens it for writing meanwhile")
		}
		w.stop(t)
		sameObjects(t, p, data, standby)

		// A FileStorage has it open for writing: we keep away.
		pid := p.do("hold", call{"data": standby}).PID
		before, err := os.ReadFile(standby)
		require.NoError(t, err)
		want = grow("plain")
		for _, args := range [][]string{
			{"watch", "--once", "--from", share, "--data", standby},
			{"watch", "--from", share, "--data", standby},
			{"recover", "-r", share, "-o", standby},
			{"repozo", "-R", "-r", share, "-o", standby},
			{"index", standby},
		} {
			r := tryAt(t, "", args...)
			require.NotZero(t, r.code, args)
			if args[0] != "repozo" && args[0] != "recover" { // they refuse a standby before they look for a lock
				require.Contains(t, r.stderr, fmt.Sprint(pid), args)
			}
			sameBytes(t, before, standby, strings.Join(args, " "))
		}
		p.do("release", call{"data": standby})

		// The same for a file that is no standby.
		other := filepath.Join(dir, "other.fs")
		zodbrepl(t, "recover", "-r", share, "-o", other)
		p.do("hold", call{"data": other})
		for _, args := range [][]string{{"recover", "-r", share, "-o", other}, {"repozo", "-R", "-r", share, "-o", other}} {
			r := tryAt(t, "", args...)
			require.Equal(t, map[string]int{"recover": 75, "repozo": 1}[args[0]], r.code)
			require.Contains(t, r.stderr, fmt.Sprint(pid))
		}
		sameBytes(t, want, other, "held by ZODB")
		p.do("release", call{"data": other})

		zodbrepl(t, "watch", "--once", "--from", share, "--data", standby)
		sameBytes(t, want, standby, "watch goes on afterwards")
		want = grow("plain", "big") // for promote to take in
		zodbrepl(t, "promote", "--data", standby, "--from", share)
		sameBytes(t, want, standby, "promoted")
		sameObjects(t, p, data, standby)
		p.grow(standby, "plain", "undo") // and it is a database like any other
		require.Equal(t, true, p.do("fstest", call{"data": standby}).OK)
	})
}

// everything returns what is beside a Data.fs, but for its lock.
func everything(t *testing.T, data string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(data), "*"))
	require.NoError(t, err)
	all := make(map[string]string)
	for _, f := range files {
		if strings.HasSuffix(f, ".lock") {
			continue
		}
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		all[f] = string(b)
	}
	return all
}

// TestIndexAndCheckAgreeWithZODB on all fixtures.
func TestIndexAndCheckAgreeWithZODB(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		indexed, good := 0, 0
		for _, name := range fixturetest.Names(t) {
			ours, theirs := fixturetest.Copy(t, name), fixturetest.Copy(t, name)
			to := theirs + ".theirs"
			their := p.try("index", call{"data": theirs, "to": to})
			switch {
			case strings.HasPrefix(name, "bad-"):
				// ZODB takes the rest of some for a tail, and would cut it off. We do not follow it there.
				before := everything(t, ours)
				require.Contains(t, []int{1, 4}, tryAt(t, "", "index", ours).code, name)
				require.Equal(t, before, everything(t, ours))
			case their.Error == "":
				indexed++
				zodbrepl(t, "index", ours)
				want, err := os.ReadFile(to)
				require.NoError(t, err)
				sameBytes(t, want, ours+".index", name)
			}
			fstest := p.do("fstest", call{"data": theirs})
			our := tryAt(t, "", "check-fs", ours)
			if fstest.OK {
				good++
				facts := fixturetest.Facts(t, name)
				require.Equal(t, facts.Check == nil, our.code == 0, "%s: %s%s", name, our.stdout, our.stderr)
			} else if facts := fixturetest.Facts(t, name); facts.Check != nil {
				require.NotZero(t, our.code, "%s: fstest says %s", name, fstest.Said)
			}
		}
		require.Greater(t, indexed, 10)
		require.Greater(t, good, 8)
	})
}
