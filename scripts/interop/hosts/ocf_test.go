//go:build interop

package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The codes of the OCF API.
const (
	ocfSuccess       = 0
	ocfGeneric       = 1
	ocfUnimplemented = 3
	ocfInstalled     = 5
	ocfConfigured    = 6
	ocfNotRunning    = 7
	ocfPromoted      = 8
)

// member is the resource agent on one node of a cluster, called as Pacemaker does. Nodes differ in their directories; a
// reboot is that everything is killed and /run is empty.
type member struct {
	t     *testing.T
	dir   string
	data  string
	agent string
	env   []string
}

func newMember(t *testing.T, dir, name, from string, set ...string) *member {
	t.Helper()
	m := &member{t: t, dir: mkdir(t, dir, name), data: filepath.Join(mkdir(t, dir, name, "zeo"), "Data.fs"), agent: agentCopy(t)}
	m.env = append(os.Environ(), "OCF_ROOT=/usr/lib/ocf", "OCF_RESOURCE_INSTANCE=zodb", "HA_RSCTMP="+mkdir(t, dir, name, "run"),
		"HA_SBIN_DIR="+mkdir(t, dir, name, "sbin"), "PATH="+filepath.Join(m.dir, "sbin")+":"+os.Getenv("PATH"),
		"OCF_RESKEY_binary="+binary, "OCF_RESKEY_data="+m.data, "OCF_RESKEY_from="+from, "OCF_RESKEY_watch_options=--interval 100ms",
		"OCF_RESKEY_logfile="+filepath.Join(m.dir, "log"), "OCF_RESKEY_CRM_meta_timeout=60000")
	m.env = append(m.env, set...)
	// Pacemaker's command for the scores, which keeps the last one.
	crm := fmt.Sprintf("#!/bin/sh\necho \"$*\" >%s/score\n", m.dir)
	for _, name := range []string{"crm_master", "crm_attribute"} {
		require.NoError(t, os.WriteFile(filepath.Join(m.dir, "sbin", name), []byte(crm), 0o755))
	}
	t.Cleanup(func() {
		m.reboot()
		if log, err := os.ReadFile(filepath.Join(m.dir, "log")); err == nil && t.Failed() {
			t.Logf("%s: %s", name, log)
		}
	})
	return m
}

// agentCopy is where the user nobody can read it.
func agentCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "ocf")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "zodbrepl")
	require.NoError(t, os.WriteFile(path, []byte(script(t, "ocf/zodbrepl")), 0o755))
	return path
}

// call makes a call, which must end with the code.
func (m *member) call(code int, action string, set ...string) string {
	m.t.Helper()
	cmd := exec.Command(m.agent, action)
	cmd.Env = append(m.env, set...)
	r := finish(m.t, cmd)
	require.Equal(m.t, code, r.code, "%s: %s%s", action, r.stdout, r.stderr)
	return r.stdout + r.stderr
}

func (m *member) pid() int {
	b, err := os.ReadFile(filepath.Join(m.dir, "run", "zodbrepl-zodb.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(m.t, err)
	return pid
}

// kill ends the watch or the waiter without a word.
func (m *member) kill() {
	pid := m.pid()
	if pid == 0 {
		return
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL) // its session is a group
	until(m.t, "it is gone", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return err != nil || strings.Contains(string(b), "State:\tZ")
	})
}

func (m *member) reboot() {
	m.kill()
	require.NoError(m.t, os.RemoveAll(filepath.Join(m.dir, "run")))
	mkdir(m.t, m.dir, "run")
}

func (m *member) score() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "score"))
	require.NoError(m.t, err)
	f := strings.Fields(string(b))
	return f[len(f)-1]
}

// untilMonitor calls monitor until the score is so, as Pacemaker does.
func (m *member) untilScore(want string) {
	m.t.Helper()
	until(m.t, "the score "+want, func() bool { m.call(ocfSuccess, "monitor"); return m.score() == want })
}

func TestTheResourceAgentKeepsItsContract(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share, master := mkdir(t, dir, "share"), filepath.Join(dir, "master.fs")
	commit(t, master, 4)
	good(t, "backup", "-f", master, "-r", share)
	m := newMember(t, dir, "node", share)

	lint := exec.Command("xmllint", "--noout", "--nonet", "--dtdvalid", "/usr/share/resource-agents/ra-api-1.dtd", "-")
	lint.Stdin = strings.NewReader(m.call(ocfSuccess, "meta-data"))
	r := finish(t, lint)
	require.Zero(t, r.code, r.stderr)

	m.call(ocfUnimplemented, "migrate_to")
	m.call(ocfNotRunning, "monitor")
	m.call(ocfConfigured, "start", "OCF_RESKEY_data=")
	m.call(ocfConfigured, "validate-all", "OCF_RESKEY_data=relative/Data.fs")
	m.call(ocfConfigured, "validate-all", "OCF_RESKEY_from=")
	m.call(ocfInstalled, "start", "OCF_RESKEY_binary=/none/zodbrepl")
	m.call(ocfInstalled, "start", "OCF_RESKEY_user=nobody-of-that-name")
	m.call(ocfInstalled, "validate-all", "OCF_RESKEY_data=/none/Data.fs")
	m.call(ocfSuccess, "validate-all")
	m.call(ocfNotRunning, "demote")
	m.call(ocfGeneric, "promote") // it was not started
	m.call(ocfSuccess, "stop")
	require.NoFileExists(t, m.data)

	// What Pacemaker's own tester wants to see.
	cmd := exec.Command("ocf-tester", "-n", "zodb", "-o", "data="+m.data, "-o", "from="+share, "-o", "binary="+binary,
		"-o", "logfile="+filepath.Join(m.dir, "log"), m.agent)
	cmd.Env = m.env
	r = finish(t, cmd)
	require.Zero(t, r.code, "%s%s", r.stdout, r.stderr)
	require.Contains(t, r.stdout, "passed all tests")
	require.Contains(t, good(t, "status", "--data", m.data), "promoted", "it was promoted on the way, and demoted again")
}

func TestPacemakerDrivesAPair(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share := mkdir(t, dir, "share")
	a := newMember(t, dir, "a", share, "OCF_RESKEY_repository="+share)
	b := newMember(t, dir, "b", share, "OCF_RESKEY_repository="+share)
	zeo := func(m *member) (stop func()) {
		l := lockData(t, m.data)
		return func() { require.NoError(t, l.Release()) }
	}

	// The cluster starts for the first time: a has the database.
	commit(t, a.data, 5)
	good(t, "backup", "-f", a.data, "-r", share)
	a.call(ocfNotRunning, "monitor")
	a.call(ocfSuccess, "start")
	b.call(ocfSuccess, "start")
	b.call(ocfSuccess, "start")
	a.untilScore("1000")
	b.untilScore("100")
	a.call(ocfSuccess, "promote")
	a.call(ocfPromoted, "monitor")
	a.call(ocfSuccess, "notify")
	b.call(ocfSuccess, "notify")
	require.NoFileExists(t, a.data+".zodbrepl", "a master needs no state of its own")
	stop := zeo(a)
	a.call(ocfPromoted, "monitor")
	require.Contains(t, a.call(ocfGeneric, "demote"), "still writes", "ZEO is stopped first")
	commit(t, a.data, 2)
	good(t, "backup", "-f", a.data, "-r", share)
	until(t, "b follows", func() bool { return same(t, a.data, b.data) })

	// The watch of b is killed: Pacemaker finds out, and recovers it.
	b.kill()
	require.Contains(t, b.call(ocfGeneric, "monitor"), "has ended")
	b.call(ocfSuccess, "stop")
	b.call(ocfNotRunning, "monitor")
	b.call(ocfSuccess, "start")

	// a is lost with what it had not backed up. b is promoted.
	commit(t, a.data, 3)
	alone := bytesOf(t, a.data)
	stop()
	a.reboot()
	b.call(ocfSuccess, "promote")
	b.call(ocfPromoted, "monitor")
	b.call(ocfSuccess, "promote")
	stop = zeo(b)
	commit(t, b.data, 2)
	good(t, "backup", "-f", b.data, "-r", share)

	// a comes back: it is started as everywhere, and becomes the standby. What it had alone is kept.
	a.call(ocfNotRunning, "monitor")
	a.call(ocfSuccess, "start")
	until(t, "a follows b", func() bool { a.call(ocfSuccess, "monitor"); return same(t, b.data, a.data) })
	a.untilScore("100")
	saved, err := filepath.Glob(a.data + ".diverged-*")
	require.NoError(t, err)
	require.Len(t, saved, 2, "what only it had, and a listing")
	require.Contains(t, bytesOf(t, saved[0]), alone[len(alone)-100:])

	// A planned move back loses nothing: ZEO is stopped, b is demoted with a last backup, a is promoted.
	commit(t, b.data, 2)
	stop()
	b.call(ocfSuccess, "demote")
	b.call(ocfSuccess, "monitor")
	b.call(ocfSuccess, "demote")
	b.untilScore("1000") // it could be promoted again as well
	a.call(ocfSuccess, "promote")
	require.True(t, same(t, b.data, a.data), "nothing is lost")
	require.Contains(t, b.call(ocfGeneric, "promote"), "another node was promoted", "b is not the newest any more")
	commit(t, a.data, 1)
	good(t, "backup", "-f", a.data, "-r", share)
	until(t, "b follows a", func() bool { b.call(ocfSuccess, "monitor"); return same(t, a.data, b.data) })

	// Somebody else writes to the standby's file: it does not start again on that node before a person has looked.
	b.call(ocfSuccess, "stop")
	commit(t, b.data, 1)
	require.Contains(t, b.call(ocfInstalled, "start"), "nobody applied")
	b.call(ocfNotRunning, "monitor")

	// The cluster is shut down while a is the master, and started again: a is the better one.
	a.call(ocfSuccess, "demote")
	a.call(ocfSuccess, "stop")
	a.call(ocfNotRunning, "monitor")
	a.call(ocfSuccess, "stop")
	a.reboot()
	a.call(ocfSuccess, "start")
	a.untilScore("1000")
	a.call(ocfSuccess, "promote")
	a.call(ocfPromoted, "monitor")
}

// A former master that cannot know whether another node was promoted since is not promoted by itself; nor does it rejoin
// when the operator wants to do that.
func TestPacemakerDoesNotPromoteWhatMayBeOld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share := mkdir(t, dir, "share")
	a := newMember(t, dir, "a", share, "OCF_RESKEY_rejoin=false")
	b := newMember(t, dir, "b", share)
	commit(t, a.data, 5)
	good(t, "backup", "-f", a.data, "-r", share)
	b.call(ocfSuccess, "start")

	require.NoError(t, os.Rename(share, share+".gone"))
	a.call(ocfSuccess, "start")
	a.untilScore("-D")
	require.Contains(t, a.call(ocfGeneric, "promote"), "cannot be known")
	a.call(ocfSuccess, "monitor")
	require.NoError(t, os.Rename(share+".gone", share))
	a.untilScore("1000")

	b.call(ocfSuccess, "promote")
	commit(t, b.data, 1)
	good(t, "backup", "-f", b.data, "-r", share)
	before := bytesOf(t, a.data)
	a.untilScore("-D")
	require.Contains(t, a.call(ocfGeneric, "promote"), "another node was promoted")
	require.Equal(t, before, bytesOf(t, a.data), "it waits for a person")
	good(t, "rejoin", "--data", a.data, "--from", share)
	until(t, "a follows b", func() bool { return same(t, b.data, a.data) })
	a.untilScore("100")
	a.call(ocfSuccess, "stop")
}

// Of two nodes that were promoted to one epoch neither is promoted again, nor made a standby, before a person has decided. A
// rejoin that died there is finished, not followed as it is.
func TestPacemakerPromotesNeitherOfTwoMasters(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	share, former := mkdir(t, dir, "share"), filepath.Join(dir, "former.fs")
	commit(t, former, 5)
	good(t, "backup", "-f", former, "-r", share)
	a, b := newMember(t, dir, "a", share), newMember(t, dir, "b", share)
	for _, m := range []*member{a, b} {
		good(t, "watch", "--once", "--from", share, "--data", m.data)
	}
	for i, m := range []*member{a, b} {
		good(t, "promote", "--data", m.data, "--no-drain")
		commit(t, m.data, i+1)
	}
	before := []string{bytesOf(t, a.data), bytesOf(t, b.data)}
	for _, m := range []*member{a, b} {
		m.call(ocfSuccess, "start")
		m.untilScore("-D")
		require.Contains(t, m.call(ocfGeneric, "promote"), "two masters")
	}
	require.Equal(t, before, []string{bytesOf(t, a.data), bytesOf(t, b.data)})

	b.call(ocfSuccess, "stop")
	good(t, "rejoin", "--give-up", "--data", b.data, "--from", share)
	state := bytesOf(t, b.data+".zodbrepl")
	pending := strings.Replace(state, `"saved"`, `"pending": true, "saved"`, 1)
	require.NotEqual(t, state, pending)
	require.NoError(t, os.WriteFile(b.data+".zodbrepl", []byte(pending), 0o644))
	a.untilScore("1000")
	a.call(ocfSuccess, "promote")
	good(t, "backup", "-f", a.data, "-r", share)
	b.call(ocfSuccess, "start")
	until(t, "b follows a", func() bool { b.call(ocfSuccess, "monitor"); return same(t, a.data, b.data) })
}

func bytesOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}
