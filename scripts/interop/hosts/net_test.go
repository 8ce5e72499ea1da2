//go:build interop

package hosts

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// node is a host: a network namespace, a home with SSH keys, an SSH server, and a Data.fs. Both hosts of a pair have the
// same layout, so that the roles can be exchanged: each follows with watch what arrives in its repository, and backs up
// into it when it is the master, shipping to the other's.
type node struct {
	t          *testing.T
	name       string
	ns, addr   string
	dir, home  string
	data, repo string
	// now is what ZODBREPL_NOW is set to for its commands; nil for the real clock.
	now func() string
	// enter runs a command in the host's own directories; nil: it has none.
	enter []string
	other *node
}

var pairs atomic.Int64

// newPair makes two hosts with a line between them.
func newPair(t *testing.T) (a, b *node) {
	t.Helper()
	a, b = newLine(t)
	a.sshd()
	b.sshd()
	return a, b
}

// newLine is newPair without SSH servers.
func newLine(t *testing.T) (a, b *node) {
	t.Helper()
	dir := t.TempDir()
	id := fmt.Sprintf("zr%d-%d", os.Getpid(), pairs.Add(1))
	a, b = newNode(t, dir, id, "a", "10.77.0.1"), newNode(t, dir, id, "b", "10.77.0.2")
	a.other, b.other = b, a
	must(t, "ip", "link", "add", "line", "netns", a.ns, "type", "veth", "peer", "name", "line", "netns", b.ns)
	for _, n := range []*node{a, b} {
		must(t, "ip", "-n", n.ns, "addr", "add", n.addr+"/24", "dev", "line")
		must(t, "ip", "-n", n.ns, "link", "set", "lo", "up")
		must(t, "ip", "-n", n.ns, "link", "set", "line", "up")
	}
	a.trust()
	b.trust()
	return a, b
}

func must(t *testing.T, command string, args ...string) {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", command, args, out)
}

func newNode(t *testing.T, dir, id, name, addr string) *node {
	t.Helper()
	n := &node{t: t, name: name, ns: id + name, addr: addr, dir: mkdir(t, dir, name), home: mkdir(t, dir, name, "home"),
		data: filepath.Join(mkdir(t, dir, name, "zeo"), "Data.fs"), repo: mkdir(t, dir, name, "repo")}
	must(t, "ip", "netns", "add", n.ns)
	t.Cleanup(func() {
		// Whatever still runs there must not outlive the test.
		pids, _ := exec.Command("ip", "netns", "pids", n.ns).Output()
		for pid := range strings.FieldsSeq(string(pids)) {
			_ = exec.Command("kill", "-KILL", pid).Run()
		}
		_ = exec.Command("ip", "netns", "del", n.ns).Run()
	})
	mkdir(t, n.home, ".ssh")
	for _, key := range []string{filepath.Join(n.home, ".ssh", "id_ed25519"), filepath.Join(n.dir, "host_key")} {
		must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key)
	}
	return n
}

// trust lets the other host in, and knows its key.
func (n *node) trust() {
	n.t.Helper()
	read := func(path string) string {
		b, err := os.ReadFile(path)
		require.NoError(n.t, err)
		return string(b)
	}
	write := func(path, text string) { require.NoError(n.t, os.WriteFile(path, []byte(text), 0o600)) }
	write(filepath.Join(n.dir, "authorized"), read(filepath.Join(n.other.home, ".ssh", "id_ed25519.pub")))
	write(filepath.Join(n.home, ".ssh", "known_hosts"), n.other.addr+" "+read(filepath.Join(n.other.dir, "host_key.pub")))
	write(filepath.Join(n.dir, "sshd_config"), fmt.Sprintf(`ListenAddress %s
HostKey %s/host_key
AuthorizedKeysFile %s/authorized
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
`, n.addr, n.dir, n.dir))
}

func (n *node) sshd() {
	n.t.Helper()
	require.NoError(n.t, os.MkdirAll("/run/sshd", 0o755))
	path, err := exec.LookPath("sshd")
	if err != nil {
		path = "/usr/sbin/sshd"
	}
	p := n.start(path, "-D", "-e", "-f", filepath.Join(n.dir, "sshd_config"))
	until(n.t, "the SSH server of "+n.name, func() bool { return strings.Contains(p.log.String(), "Server listening") })
}

// command runs in the host.
func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command("ip", slices.Concat([]string{"netns", "exec", n.ns}, n.enter, args)...)
	cmd.Env = append(os.Environ(), "HOME="+n.home, "SSH_AUTH_SOCK=")
	if n.now != nil {
		cmd.Env = append(cmd.Env, "ZODBREPL_NOW="+n.now())
	}
	return cmd
}

// run runs zodbrepl on the host.
func (n *node) run(args ...string) result {
	n.t.Helper()
	return finish(n.t, n.command(append([]string{binary}, args...)...))
}

// code runs zodbrepl on the host, which must end with the code, and returns what it says.
func (n *node) code(code int, args ...string) string {
	n.t.Helper()
	r := n.run(args...)
	require.Equal(n.t, code, r.code, "%s: zodbrepl %s: %s%s", n.name, strings.Join(args, " "), r.stdout, r.stderr)
	return r.stdout + r.stderr
}

func (n *node) good(args ...string) string { n.t.Helper(); return n.code(0, args...) }

// url is the host's repository, for the other one.
func (n *node) url() string { return "sftp://root@" + n.addr + n.repo }

// backup is what cron does on a master.
func (n *node) backup() string { n.t.Helper(); return n.good(n.backupArgs()...) }

func (n *node) backupArgs() []string {
	return []string{"backup", "-v", "-f", n.data, "-r", n.repo, "--ship", n.other.url()}
}

// line turns the host's end of the line "up" or "down".
func (n *node) line(state string) {
	n.t.Helper()
	must(n.t, "ip", "-n", n.ns, "link", "set", "line", state)
}

// deaf loses what either host sends to the other, while their links stay up; or ends that. The frames are sent to a
// card that there is not: a route would not keep keepalived, which goes by none.
func (n *node) deaf(yes bool) {
	n.t.Helper()
	for _, h := range []*node{n, n.other} {
		args := []string{"-n", h.ns, "neigh", "del", h.other.addr, "dev", "line"}
		if yes {
			args = []string{"-n", h.ns, "neigh", "replace", h.other.addr, "lladdr", "02:00:00:00:00:01", "dev", "line", "nud", "permanent"}
		}
		must(n.t, "ip", args...)
	}
}

// daemon is a process that runs on the host, in a group of its own.
type daemon struct {
	*exec.Cmd
	log   buffer
	ended chan struct{}
}

type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (n *node) start(args ...string) *daemon {
	n.t.Helper()
	d := &daemon{Cmd: n.command(args...), ended: make(chan struct{})}
	d.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	d.Stdout, d.Stderr = &d.log, &d.log
	d.WaitDelay = time.Second // a child of sshd may have the pipe, waiting for a host that is not to be reached
	require.NoError(n.t, d.Start())
	go func() { defer close(d.ended); _ = d.Wait() }()
	n.t.Cleanup(func() {
		d.signal(syscall.SIGKILL)
		<-d.ended
		if n.t.Failed() {
			n.t.Logf("%s: %s\n%s", n.name, strings.Join(args, " "), d.log.String())
		}
	})
	return d
}

// signal reaches the process and its children.
func (d *daemon) signal(s syscall.Signal) { _ = syscall.Kill(-d.Process.Pid, s) }

func (d *daemon) end(t *testing.T) int {
	t.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		require.Fail(t, "it does not end", d.log.String())
	}
	return d.ProcessState.ExitCode()
}

// stop ends it as an operator does.
func (d *daemon) stop(t *testing.T) int {
	t.Helper()
	d.signal(syscall.SIGTERM)
	return d.end(t)
}

func (n *node) watch(args ...string) *daemon {
	n.t.Helper()
	return n.start(append([]string{binary, "watch", "--from", n.repo, "--data", n.data, "--interval", "100ms"}, args...)...)
}

// status is what a host says of itself.
func (n *node) status() map[string]any {
	n.t.Helper()
	return decode(n.t, n.good("status", "--json", "--local", "--data", n.data))
}

func (n *node) condition() string {
	n.t.Helper()
	c, _ := n.status()["condition"].(map[string]any)
	name, _ := c["name"].(string)
	return name
}

// follows waits until the host has all of the other's Data.fs.
func (n *node) follows() {
	n.t.Helper()
	until(n.t, n.name+" has all that "+n.other.name+" has", func() bool { return same(n.t, n.other.data, n.data) && n.condition() == "current" })
}

func (n *node) bytes() string {
	n.t.Helper()
	b, err := os.ReadFile(n.data)
	require.NoError(n.t, err)
	return string(b)
}
