//go:build interop

package hosts

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The runbooks of docs/operations.md are tried literally. A line `<!-- run on bms1 -->` before a code block says where its
// commands are run; in the block, lines that begin with `#>` are what the operator sees of the command above them, with
// ... for what differs. On the hosts /srv, /var/backups, /mnt and the configuration are directories of the test; ZEO is
// the real one, under a systemctl that knows as much as the runbooks need.

// step is one command of a runbook.
type step struct {
	host, command string
	sees          []string
	line          int
}

// runbook returns the steps of a section.
func runbook(t *testing.T, heading string) (steps []step) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	require.NoError(t, err)
	mark := regexp.MustCompile(`^\s*<!-- run on (\w+) -->$`)
	in, host := false, ""
	for i, line := range strings.Split(string(b), "\n") {
		text := strings.TrimSpace(line)
		switch m := mark.FindStringSubmatch(line); {
		case strings.HasPrefix(line, "#"):
			in, host = strings.TrimLeft(line, "# ") == heading, ""
		case !in || text == "":
		case m != nil:
			host = m[1]
		case host == "":
		case !strings.HasPrefix(line, "    "):
			host = ""
		case strings.HasPrefix(text, "#>"):
			last := &steps[len(steps)-1]
			last.sees = append(last.sees, strings.TrimSpace(strings.TrimPrefix(text, "#>")))
		default:
			steps = append(steps, step{host: host, command: text, line: i + 1})
		}
	}
	require.NotEmpty(t, steps, "docs/operations.md has no commands to run under %q", heading)
	return steps
}

// seen says whether a line of the output is what the operator should see.
func seen(output, want string) bool {
	re := strings.ReplaceAll(regexp.QuoteMeta(strings.Join(strings.Fields(want), " ")), `\.\.\.`, ".*")
	for line := range strings.Lines(output) {
		if ok, _ := regexp.MatchString("^"+re+"$", strings.Join(strings.Fields(line), " ")); ok {
			return true
		}
	}
	return false
}

// site is the pair of the runbooks: bms1 and bms2, and the directory that both see.
type site struct {
	t     *testing.T
	hosts map[string]*node
}

const systemctl = `#!/bin/sh
# As much of systemd as the runbooks use.
run=/srv/units
mkdir -p $run
verb=$1
shift
[ "$verb" != daemon-reload ] || exit 0
now=
[ "$1" != --now ] || { now=yes; shift; }
case $verb in
enable) [ -n "$now" ] || exit 0; verb=start ;;
disable) [ -n "$now" ] || exit 0; verb=stop ;;
esac
exec_start() {
	words=$(sed -n 's/^ExecStart=//p' /etc/systemd/system/$1.service | sed 's/\${[A-Z_]*}/"&"/g')
	env=$(sed -n 's/^EnvironmentFile=//p' /etc/systemd/system/$1.service)
	echo ". $env; exec $words"
}
for unit; do
	unit=${unit%.service}
	pid=$(cat $run/$unit.pid 2>/dev/null)
	[ -n "$pid" ] && kill -0 $pid 2>/dev/null || pid=
	case $verb:$unit in
	stop:*)
		[ -z "$pid" ] || { kill $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done; }
		rm -f $run/$unit.pid
		;;
	start:*) [ -z "$pid" ] || continue ;;
	esac
	case $verb:$unit in
	start:zeo)
		setsid @PYTHON@ -m ZEO.runzeo -a /srv/zeo/sock -f /srv/zeo/Data.fs >>$run/log 2>&1 </dev/null &
		echo $! >$run/$unit.pid
		for i in $(seq 600); do [ "$(cat /srv/zeo/Data.fs.lock 2>/dev/null | tr -d ' ')" = $! ] && break; sleep 0.05; done
		;;
	start:zodbrepl-watch)
		setsid sh -c "$(exec_start $unit)" >>$run/log 2>&1 </dev/null &
		echo $! >$run/$unit.pid
		;;
	start:zodbrepl-backup.timer)
		setsid sh -c "while :; do sh -c '$(exec_start zodbrepl-backup)'; sleep 1; done" >>$run/log 2>&1 </dev/null &
		echo $! >$run/$unit.pid
		;;
	esac
done
`

func newSite(t *testing.T) *site {
	t.Helper()
	a, b := newLine(t)
	s := &site{t: t, hosts: map[string]*node{"bms1": a, "bms2": b}}
	shared := mkdir(t, filepath.Dir(a.dir), "shared")
	python, err := filepath.Abs(filepath.Join(root, ".venv", "bin", "python"))
	require.NoError(t, err)
	for name, n := range s.hosts {
		fs := mkdir(t, n.dir, "root")
		bin := mkdir(t, fs, "bin")
		for _, d := range []string{"srv/zeo", "backups", "etc-default", "units"} {
			mkdir(t, fs, d)
		}
		require.NoError(t, os.WriteFile(filepath.Join(fs, "hosts"), []byte(a.addr+" bms1\n"+b.addr+" bms2\n127.0.0.1 localhost\n"), 0o644))
		copyFile(t, binary, filepath.Join(bin, "zodbrepl"))
		require.NoError(t, os.WriteFile(filepath.Join(bin, "systemctl"), []byte(strings.ReplaceAll(systemctl, "@PYTHON@", python)), 0o755))
		enter := fmt.Sprintf("#!/bin/sh\nset -e\nhostname %s\nmount --bind %s/srv /srv\nmount --bind %s/backups /var/backups\nmount --bind %s /mnt\n"+
			"mount --bind %s/units /etc/systemd/system\nmount --bind %s/etc-default /etc/default\nmount --bind %s/hosts /etc/hosts\nmount --bind %s/bin /usr/local/bin\n"+
			"export PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\nexec \"$@\"\n", name, fs, fs, shared, fs, fs, fs, fs)
		require.NoError(t, os.WriteFile(filepath.Join(n.dir, "enter"), []byte(enter), 0o755))
		n.enter = []string{"unshare", "-m", "-u", filepath.Join(n.dir, "enter")}
		n.data, n.repo = "/srv/zeo/Data.fs", "/var/backups/zodb"
	}
	for _, n := range s.hosts { // the keys of hosts by their names, and a server that sees the host's directories
		known := filepath.Join(n.home, ".ssh", "known_hosts")
		b, err := os.ReadFile(known)
		require.NoError(t, err)
		line := strings.TrimPrefix(string(b), n.other.addr)
		require.NoError(t, os.WriteFile(known, []byte(string(b)+"bms1"+line+"bms2"+line), 0o600))
		n.sshd()
	}
	mkdir(t, shared, "zodb")
	return s
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, b, 0o755))
}

// sh runs a command on a host as the operator does.
func (s *site) sh(host, command string) result {
	s.t.Helper()
	n := s.hosts[host]
	cmd := n.command("/bin/sh", "-c", command)
	cmd.Dir = root
	cmd.WaitDelay = time.Second
	out, err := os.CreateTemp(s.t.TempDir(), "out") // not a pipe: what is started in the background may keep it
	require.NoError(s.t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	_ = cmd.Run()
	b, err := os.ReadFile(out.Name())
	require.NoError(s.t, err)
	return result{code: cmd.ProcessState.ExitCode(), stdout: string(b)}
}

// try follows the runbook of a section. A command that says nothing of its exit code ends with 0; one that only looks is
// repeated until what it should show is there.
func (s *site) try(heading string) {
	s.t.Helper()
	for _, step := range runbook(s.t, heading) {
		command := strings.NewReplacer("zope@", "root@", "2024-03-01-10-30", time.Now().UTC().Format("2006-01-02-15-04-05")).Replace(step.command)
		if strings.Contains(command, "-TID") {
			found, err := filepath.Glob(filepath.Join(s.hosts[step.host].dir, "root/srv/zeo/Data.fs.diverged-*.txt"))
			require.NoError(s.t, err)
			require.Len(s.t, found, 1)
			_, tid, _ := strings.Cut(strings.TrimSuffix(found[0], ".txt"), ".diverged-")
			command = strings.ReplaceAll(command, "-TID", "-"+tid)
		}
		code := 0
		sees := step.sees
		if len(sees) > 0 && strings.HasPrefix(sees[0], "exit code ") {
			_, err := fmt.Sscanf(sees[0], "exit code %d", &code)
			require.NoError(s.t, err)
			sees = sees[1:]
		}
		if strings.HasPrefix(command, "zodbrepl watch ") && !strings.Contains(command, "--once") {
			n := s.hosts[step.host] // the operator leaves it running
			n.start("/bin/sh", "-c", "exec "+command)
			continue
		}
		looks := strings.HasPrefix(command, "zodbrepl status") || strings.HasPrefix(command, "curl")
		for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			r := s.sh(step.host, command)
			missing := ""
			for _, want := range sees {
				if !seen(r.stdout, want) {
					missing = want
				}
			}
			if r.code == code && missing == "" {
				break
			}
			if looks && time.Now().Before(deadline) {
				continue
			}
			require.Fail(s.t, "the runbook does not work", "docs/operations.md:%d, on %s: %s\nexit code %d, not %d; not seen: %q\n%s",
				step.line, step.host, command, r.code, code, missing, r.stdout)
		}
	}
}

// commits has a ZEO client commit on the host.
func (s *site) commits(host string) {
	s.t.Helper()
	python, err := filepath.Abs(filepath.Join(root, ".venv", "bin", "python"))
	require.NoError(s.t, err)
	zeo, err := filepath.Abs("../zeo.py")
	require.NoError(s.t, err)
	cmd := s.hosts[host].command(python, zeo, "write", "/srv/zeo/sock", "client")
	stdin, err := cmd.StdinPipe()
	require.NoError(s.t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(s.t, err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.NoError(s.t, cmd.Start())
	acked := 0
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if acked++; acked == 3 {
			stdin.Close()
		}
	}
	require.NoError(s.t, cmd.Wait(), errs.String())
	require.GreaterOrEqual(s.t, acked, 3)
}

// bytes is the Data.fs of a host.
func (s *site) bytes(host string) string {
	s.t.Helper()
	return bytesOf(s.t, filepath.Join(s.hosts[host].dir, "root/srv/zeo/Data.fs"))
}

// killAll is the end of a host.
func (s *site) killAll(host string) {
	s.t.Helper()
	n := s.hosts[host]
	out, err := exec.Command("ip", "netns", "pids", n.ns).Output()
	require.NoError(s.t, err)
	for pid := range strings.FieldsSeq(string(out)) {
		_ = exec.Command("kill", "-KILL", pid).Run()
	}
}
