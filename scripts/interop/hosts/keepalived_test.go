//go:build interop

package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// notified is what keepalived's scripts need on a host: a configuration whose commands write down that they were run. The
// ZEO server of it is a process that has the lock of Data.fs, as the real one has.
type notified struct {
	t              *testing.T
	dir, data      string
	notify, check  string
	defaults, done string
}

func newNotified(t *testing.T, dir, data, from string, set ...string) *notified {
	t.Helper()
	n := &notified{t: t, dir: dir, data: data, defaults: filepath.Join(dir, "defaults"), done: filepath.Join(dir, "done")}
	zeo := filepath.Join(dir, "zeo.sh")
	require.NoError(t, os.WriteFile(zeo, []byte(fmt.Sprintf(`#!/bin/sh
case $1 in
start)
	echo zeo-start >>%[1]s
	[ ! -s %[3]s ] || exit 0
	rm -f %[3]s
	setsid sh -c 'exec 8>>%[2]s.lock; flock -w 5 8; echo " $$" >%[2]s.lock; echo $$ >%[3]s; exec sleep 1000' </dev/null >/dev/null 2>&1 &
	until [ -s %[3]s ]; do sleep 0.05; done
	;;
stop)
	echo zeo-stop >>%[1]s
	[ ! -s %[3]s ] || kill $(cat %[3]s)
	rm -f %[3]s
	;;
esac
`, n.done, data, filepath.Join(dir, "zeo.pid"))), 0o755))
	text := fmt.Sprintf("ZODBREPL_BINARY=%s\nZODBREPL_DATA=%s\nZODBREPL_FROM=%s\nZODBREPL_RUN=%s/run\nZODBREPL_ZEO_START='%s start'\nZODBREPL_ZEO_STOP='%s stop'\n",
		binary, data, from, dir, zeo, zeo)
	for _, what := range []string{"BACKUP_START", "BACKUP_STOP", "WATCH_START"} {
		text += fmt.Sprintf("ZODBREPL_%s='echo %s >>%s'\n", what, strings.ToLower(strings.ReplaceAll(what, "_", "-")), n.done)
	}
	require.NoError(t, os.WriteFile(n.defaults, []byte(text+strings.Join(set, "\n")+"\n"), 0o644))
	for _, name := range []string{"notify", "check"} {
		path := filepath.Join(dir, name+".sh")
		body := strings.Replace(script(t, "keepalived/"+name+".sh"), "#!/bin/sh\n", "#!/bin/sh\nZODBREPL_DEFAULTS="+n.defaults+"\n", 1)
		require.NoError(t, os.WriteFile(path, []byte(body), 0o755))
	}
	n.notify, n.check = filepath.Join(dir, "notify.sh"), filepath.Join(dir, "check.sh")
	t.Cleanup(func() { _ = exec.Command(zeo, "stop").Run() })
	return n
}

// call runs the script as keepalived does. It returns what it says, and what was done.
func (n *notified) call(code int, state string) (said, done string) {
	n.t.Helper()
	_ = os.Remove(n.done)
	r := finish(n.t, exec.Command(n.notify, "INSTANCE", "zodb", state, "100"))
	require.Equal(n.t, code, r.code, "%s: %s%s", state, r.stdout, r.stderr)
	return r.stderr, n.did()
}

// did tells what was run since the last call.
func (n *notified) did() string {
	b, _ := os.ReadFile(n.done)
	return strings.Join(strings.Fields(string(b)), " ")
}

func TestKeepalivedsScript(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share, master, standby := mkdir(t, dir, "share"), filepath.Join(mkdir(t, dir, "a"), "Data.fs"), filepath.Join(mkdir(t, dir, "b"), "Data.fs")
	commit(t, master, 4)
	good(t, "backup", "-f", master, "-r", share)
	good(t, "watch", "--once", "--from", share, "--data", standby)
	a, b := newNotified(t, filepath.Dir(master), master, share), newNotified(t, filepath.Dir(standby), standby, share)

	require.Equal(t, 2, finish(t, exec.Command(a.notify, "MASTER")).code)
	_, done := a.call(0, "DELETED")
	require.Empty(t, done)

	// a is the master from the beginning, b a standby.
	said, done := a.call(0, "MASTER")
	require.Contains(t, said, "master: ZEO and the backups run")
	require.Equal(t, "zeo-start backup-start", done)
	_, done = b.call(0, "BACKUP")
	require.Equal(t, "backup-stop zeo-stop watch-start", done)
	require.Zero(t, finish(t, exec.Command(a.check)).code, "ZEO has the file open")
	require.NotZero(t, finish(t, exec.Command(b.check)).code, "no watch says that it is current")

	// a is in trouble, b takes over; what had come is applied first.
	commit(t, master, 2)
	good(t, "backup", "-f", master, "-r", share)
	for _, state := range []string{"FAULT", "STOP", "FAULT"} {
		said, done = a.call(0, state)
		require.Equal(t, "backup-stop zeo-stop", done)
		require.Contains(t, said, "zodbrepl rejoin --data "+master)
	}
	require.Zero(t, finish(t, exec.Command(a.check)).code, "it may be the master again, nobody else was promoted")
	said, done = b.call(0, "MASTER")
	require.Contains(t, said, "promoted: master of lineage")
	require.Equal(t, "zeo-start backup-start", done)
	require.True(t, same(t, master, standby))
	_, done = b.call(0, "MASTER")
	require.Equal(t, "zeo-start backup-start", done, "twice is no matter")
	commit(t, standby, 1)
	good(t, "backup", "-f", standby, "-r", share)

	// a comes back, with an old database. It is not started on that, whatever keepalived says.
	require.Equal(t, 1, finish(t, exec.Command(a.check)).code)
	said, done = a.call(3, "MASTER")
	require.Contains(t, said, "ZEO is not started: another node was promoted since this one")
	require.Empty(t, done)
	_, done = a.call(0, "BACKUP")
	require.Equal(t, "backup-stop zeo-stop", done, "watch would refuse")
	good(t, "rejoin", "--data", master, "--from", share)
	_, done = a.call(0, "BACKUP")
	require.Equal(t, "backup-stop zeo-stop watch-start", done)

	// b goes down and up again, nobody was promoted meanwhile. When that cannot be known, it waits for a person.
	_, _ = b.call(0, "STOP")
	require.NoError(t, os.Rename(share, share+".gone"))
	said, done = b.call(3, "MASTER")
	require.Contains(t, said, "cannot be known")
	require.Empty(t, done)
	require.NoError(t, os.Rename(share+".gone", share))
	_, done = b.call(0, "MASTER")
	require.Equal(t, "zeo-start backup-start", done)

	// A command that fails is told.
	broken := newNotified(t, mkdir(t, dir, "broken"), standby, share, "ZODBREPL_ZEO_START=false")
	said, done = broken.call(1, "MASTER")
	require.Contains(t, said, "failed (1): false")
	require.Empty(t, done)
}

// Neither of two that were promoted to one epoch is started again, nor may it have the address, before a person has decided;
// nor is a master when what another left cannot be read.
func TestKeepalivedStartsNeitherOfTwoMasters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share, master := mkdir(t, dir, "share"), filepath.Join(mkdir(t, dir, "a"), "Data.fs")
	commit(t, master, 4)
	good(t, "backup", "-f", master, "-r", share)
	one, two := filepath.Join(mkdir(t, dir, "b"), "Data.fs"), filepath.Join(mkdir(t, dir, "c"), "Data.fs")
	good(t, "watch", "--once", "--from", share, "--data", one)
	good(t, "watch", "--once", "--from", share, "--data", two)
	refused := func(data, why string) {
		t.Helper()
		n := newNotified(t, filepath.Dir(data), data, share)
		require.Equal(t, 1, finish(t, exec.Command(n.check)).code)
		said, done := n.call(3, "MASTER")
		require.Contains(t, said, why)
		require.Empty(t, done)
	}

	torn := filepath.Join(share, "2038-01-01-00-00-00.manifest")
	require.NoError(t, os.WriteFile(torn, []byte("{"), 0o644))
	refused(master, "it may be of a host that was promoted")
	require.NoError(t, os.Remove(torn))

	good(t, "promote", "--data", one, "--no-drain")
	good(t, "promote", "--data", two, "--no-drain")
	commit(t, one, 2)
	commit(t, two, 3)
	refused(one, "two masters")
	refused(two, "two masters")
	good(t, "rejoin", "--give-up", "--data", two, "--from", share)
	good(t, "watch", "--once", "--from", share, "--data", two)
	n := newNotified(t, filepath.Dir(one), one, share)
	require.Zero(t, finish(t, exec.Command(n.check)).code)
	_, done := n.call(0, "MASTER")
	require.Equal(t, "zeo-start backup-start", done, "it is the only one again")
}

// keepalived does not wait for its script. When several run at once, the last state counts, not the fastest script.
func TestKeepalivedsLastStateCounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share, data := mkdir(t, dir, "share"), filepath.Join(mkdir(t, dir, "a"), "Data.fs")
	commit(t, data, 4)
	good(t, "backup", "-f", data, "-r", share)
	n := newNotified(t, filepath.Dir(data), data, share)
	run := mkdir(t, dir, "a", "run")
	lock, err := os.OpenFile(filepath.Join(run, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)) // a script that takes long
	var said [3]buffer
	var cmds [3]*exec.Cmd
	for i, state := range []string{"MASTER", "BACKUP", "MASTER"} {
		cmds[i] = exec.Command(n.notify, "INSTANCE", "zodb", state, "100")
		cmds[i].Stderr = &said[i]
		require.NoError(t, cmds[i].Start())
		until(t, "it waits for its turn", func() bool {
			b, err := os.ReadFile(filepath.Join(run, "wish"))
			return err == nil && string(b) == state+"\n"
		})
	}
	require.NoError(t, lock.Close())
	for _, cmd := range cmds {
		require.NoError(t, cmd.Wait())
	}
	require.Contains(t, said[1].String(), "BACKUP is over, MASTER counts")
	require.NotContains(t, n.did(), "stop")
	require.Contains(t, n.did(), "zeo-start backup-start")
}

// The real keepalived moves an address between two hosts, and the role with it.
func TestKeepalivedFailsOver(t *testing.T) {
	t.Parallel()
	a, b := newPair(t)
	commit(t, a.data, 5)
	a.backup()
	w := b.watch("--http", "127.0.0.1:8001")
	b.follows()
	scripts := map[*node]*notified{}
	keepalived := func(n *node) *daemon {
		s := newNotified(t, mkdir(t, n.dir, "keepalived"), n.data, n.repo)
		scripts[n] = s
		conf := script(t, "keepalived/keepalived.conf", "interface eth0", "interface line", "unicast_src_ip 10.0.0.6", "unicast_src_ip "+n.addr,
			"        10.0.0.7\n", "        "+n.other.addr+"\n", "10.0.0.5/24", "10.77.0.5/24", "interval 5", "interval 1", "timeout 4", "timeout 10",
			"/usr/local/lib/zodbrepl/check.sh", s.check, "/usr/local/lib/zodbrepl/notify.sh", s.notify,
			"    enable_script_security\n", "") // which wants directories that root alone can write to
		path := filepath.Join(s.dir, "keepalived.conf")
		require.NoError(t, os.WriteFile(path, []byte(conf), 0o644))
		return n.start("keepalived", "-n", "-l", "-P", "-f", path, "-p", s.dir+"/pid", "-r", s.dir+"/vrrp.pid")
	}
	has := func(n *node) bool {
		out, err := exec.Command("ip", "-n", n.ns, "addr", "show", "dev", "line").Output()
		return err == nil && strings.Contains(string(out), "10.77.0.5/")
	}
	runs := func(n *node) bool { // its ZEO
		holder, _ := n.status()["locked_by"].(float64)
		return holder != 0 && strings.Contains(scripts[n].did(), "zeo-start")
	}

	keepalived(a)
	until(t, "a has the address, and ZEO", func() bool { return has(a) && runs(a) })
	keepalived(b)
	until(t, "b stands by", func() bool { return strings.Contains(scripts[b].did(), "watch-start") })
	commit(t, a.data, 2)
	a.backup()
	b.follows()

	a.deaf(true)
	until(t, "b has the address, and ZEO on what had come", func() bool { return has(b) && runs(b) })
	require.Equal(t, 3, w.end(t), "watch gave way")
	require.Equal(t, "promoted", b.status()["role"])
	require.True(t, same(t, a.data, b.data))

	// a hears of b again, and gives the address up. Its database is left as it is.
	commit(t, b.data, 1)
	a.deaf(false)
	until(t, "a has stopped ZEO", func() bool { return strings.Contains(scripts[a].did(), "zeo-stop") && !has(a) })
	require.True(t, has(b), "b keeps the address")
	b.backup()
	a.good("rejoin", "--data", a.data, "--from", a.repo)
	a.watch("--http", "127.0.0.1:8001")
	a.follows()
	until(t, "a may have the address again", func() bool { return a.command(scripts[a].check).Run() == nil })
}
