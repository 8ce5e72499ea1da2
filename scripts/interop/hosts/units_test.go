//go:build interop

package hosts

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// installed are the units and what they share, in a directory of a test.
type installed struct {
	dir, defaults, data, repository, share, standby, address string
}

func install(t *testing.T) installed {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	i := installed{dir: dir, defaults: filepath.Join(dir, "zodbrepl.default"), address: l.Addr().String(),
		data: filepath.Join(mkdir(t, dir, "zeo"), "Data.fs"), repository: mkdir(t, dir, "backups"), share: mkdir(t, dir, "mnt"),
		standby: filepath.Join(mkdir(t, dir, "standby"), "Data.fs")}
	require.NoError(t, l.Close())
	i.share, i.repository = i.share+"/zodb", i.repository+"/zodb"
	mkdir(t, i.share)
	mkdir(t, i.repository)
	defaults := script(t, "systemd/zodbrepl.default", "/srv/zeo/Data.fs", i.data, "/var/backups/zodb", i.repository,
		"/mnt/zodb", i.share, "127.0.0.1:8001", i.address)
	require.NoError(t, os.WriteFile(i.defaults, []byte(defaults), 0o644))
	for _, unit := range []string{"zodbrepl-watch.service", "zodbrepl-backup.service"} {
		text := script(t, "systemd/"+unit, "/usr/local/bin/zodbrepl", binary, "/etc/default/zodbrepl", i.defaults)
		require.NoError(t, os.WriteFile(filepath.Join(dir, unit), []byte(text), 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "zodbrepl-backup.timer"), []byte(script(t, "systemd/zodbrepl-backup.timer")), 0o644))
	return i
}

// exec runs a unit's ExecStart with its environment file. The shell does to the line what systemd does: the variables in
// braces are one word each, the others are split.
func (i installed) exec(t *testing.T, unit string, set ...string) *exec.Cmd {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(i.dir, unit))
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindSubmatch(text)
	require.NotNil(t, line)
	words := regexp.MustCompile(`\$\{\w+\}`).ReplaceAllString(string(line[1]), `"$0"`)
	return exec.Command("/bin/sh", "-c", strings.Join(append([]string{". " + i.defaults}, append(set, "exec "+words)...), "; "))
}

func TestSystemdTakesTheUnits(t *testing.T) {
	t.Parallel()
	i := install(t)
	for _, unit := range []string{"zodbrepl-watch.service", "zodbrepl-backup.service", "zodbrepl-backup.timer"} {
		r := finish(t, exec.Command("systemd-analyze", "verify", filepath.Join(i.dir, unit)))
		require.Equal(t, result{}, r, unit)
	}
	for _, unit := range []string{"zodbrepl-watch.service", "zodbrepl-backup.service"} {
		r := finish(t, exec.Command("systemd-analyze", "security", "--offline=true", "--threshold=20", filepath.Join(i.dir, unit)))
		require.Zero(t, r.code, "%s is exposed more than 2.0 of 10: %s", unit, r.stdout)
	}
	watch, err := os.ReadFile(filepath.Join(i.dir, "zodbrepl-watch.service"))
	require.NoError(t, err)
	require.Contains(t, string(watch), "\nRestartPreventExitStatus=2 3 5\n", "the restart does not fight the guard")
}

func TestTheUnitsCommandsAndCronsLine(t *testing.T) {
	t.Parallel()
	i := install(t)
	commit(t, i.data, 5)
	r := finish(t, i.exec(t, "zodbrepl-backup.service"))
	require.Equal(t, result{}, r, "quiet when all goes well")

	// cron's line does the same.
	line := regexp.MustCompile(`(?m)^\*  \*.*?zope  (.*)$`).FindStringSubmatch(script(t, "cron/zodbrepl", "/etc/default/zodbrepl", i.defaults))
	require.NotNil(t, line)
	cron := func() result {
		cmd := exec.Command("/bin/sh", "-c", line[1])
		cmd.Env = []string{"PATH=" + filepath.Dir(binary) + ":/usr/bin:/bin"}
		return finish(t, cmd)
	}
	commit(t, i.data, 2)
	require.Equal(t, result{}, cron())
	good(t, "verify", "-r", i.share)

	// The standby follows with the watch unit's options.
	w := i.exec(t, "zodbrepl-watch.service", "ZODBREPL_DATA="+i.standby)
	require.NoError(t, w.Start())
	done := make(chan error, 1)
	go func() { done <- w.Wait() }()
	t.Cleanup(func() { _ = w.Process.Kill() })
	until(t, "healthy", func() bool {
		r, err := http.Get("http://" + i.address + "/healthz")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	require.True(t, same(t, i.data, i.standby))

	// A run that meets another one leaves it to the next: no mail, no failed unit.
	lock, err := os.OpenFile(filepath.Join(i.repository, "zodbrepl.lock"), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	commit(t, i.data, 1)
	r = cron()
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stderr, "another", "it says so nevertheless")
	require.Equal(t, 75, finish(t, i.exec(t, "zodbrepl-backup.service")).code, "which is in SuccessExitStatus")
	require.NoError(t, lock.Close())

	// A backup of what is no master is a failure, told.
	r = finish(t, i.exec(t, "zodbrepl-backup.service", "ZODBREPL_DATA="+i.standby))
	require.Equal(t, 3, r.code)
	require.Contains(t, r.stderr, "is a standby")

	require.NoError(t, w.Process.Signal(syscall.SIGTERM))
	require.NoError(t, <-done)
}
