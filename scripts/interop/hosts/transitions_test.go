//go:build interop

package hosts

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// normal is a pair of which a is the master and b follows.
func normal(t *testing.T) (a, b *node, w *daemon) {
	t.Helper()
	a, b = newPair(t)
	commit(t, a.data, 5)
	a.backup()
	w = b.watch()
	b.follows()
	return a, b, w
}

// kept are files, with what is in them. Lock files do not count.
func kept(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(path, "lock") || strings.HasSuffix(path, "-promote") {
				return err
			}
			b, err := os.ReadFile(path)
			files[path] = string(b)
			return err
		}))
	}
	return files
}

// untouched holds files to what they were.
func untouched(t *testing.T, before map[string]string, dirs ...string) {
	t.Helper()
	after := kept(t, dirs...)
	for path := range before {
		require.True(t, before[path] == after[path], "%s was changed", path)
		delete(after, path)
	}
	for path := range after {
		require.Fail(t, "a file was made", path)
	}
}

func TestTheStandbyGoesDownAndComesBack(t *testing.T) {
	t.Parallel()
	a, b, w := normal(t)
	commit(t, a.data, 2)
	a.backup()
	b.follows()

	// The process is killed: the master notices nothing.
	w.signal(syscall.SIGKILL)
	w.end(t)
	commit(t, a.data, 2)
	a.backup()
	w = b.watch()
	b.follows()

	// The host is gone: the backup is made, and shipped when it is back.
	a.line("down")
	commit(t, a.data, 2)
	ship := a.start(append([]string{binary}, a.backupArgs()...)...)
	until(t, "the backup is there, and the line is tried", func() bool {
		made, _ := filepath.Glob(filepath.Join(a.repo, "*.manifest"))
		come, _ := filepath.Glob(filepath.Join(b.repo, "*.manifest"))
		return len(made) > len(come)
	})
	ship.signal(syscall.SIGKILL) // cron's next run does it all
	ship.end(t)
	a.line("up")
	commit(t, a.data, 2)
	a.backup()
	b.follows()
	require.Zero(t, w.stop(t))
}

// Every command that does not fit the state of its host is refused, and changes nothing on either host.
func TestWrongTransitionsAreRefused(t *testing.T) {
	t.Parallel()
	a, b, w := normal(t)
	refuse := func(what string, n *node, code int, says string, args ...string) {
		t.Helper()
		before := kept(t, a.dir, b.dir)
		said := n.code(code, args...)
		require.Contains(t, said, says, what)
		require.Contains(t, said, "untouched: ", what)
		require.Contains(t, said, "next: ", what)
		untouched(t, before, a.dir, b.dir)
	}
	zeoOn := func(n *node) (stop func()) {
		l := lockData(t, n.data)
		return func() { require.NoError(t, l.Release()) }
	}

	// Normal: a is the master, b follows.
	refuse("the standby is backed up", b, 3, "is a standby", "backup", "-f", b.data, "-r", b.repo)
	refuse("a second watch", b, 3, "is in use by process", "watch", "--once", "--from", b.repo, "--data", b.data)
	refuse("the standby rejoins, whose watch runs", b, 3, "", "rejoin", "--data", b.data, "--from", b.repo)
	refuse("the master is promoted", a, 1, "is no standby", "promote", "--data", a.data)
	refuse("the master rejoins", a, 3, "no other host was promoted", "rejoin", "--data", a.data, "--from", a.repo)
	stop := zeoOn(a)
	refuse("a watch is started on the master, whose ZEO runs", a, 3, "is in use by process", "watch", "--once", "--from", a.repo, "--data", a.data)
	refuse("the master is promoted, whose ZEO runs", a, 3, "is in use by process", "promote", "--data", a.data, "--from", a.repo, "--wait", "10ms")
	refuse("the master rejoins, whose ZEO runs", a, 3, "", "rejoin", "--data", a.data, "--from", a.repo)
	stop()

	// The standby is down, and somebody has started ZEO on it.
	require.Zero(t, w.stop(t))
	stop = zeoOn(b)
	refuse("a watch is started beside ZEO", b, 3, "is in use by process", "watch", "--once", "--from", b.repo, "--data", b.data)
	refuse("the standby is promoted beside ZEO", b, 3, "is in use by process", "promote", "--data", b.data, "--wait", "10ms")
	stop()

	// The master is lost, b is promoted. What a had not shipped is on its disk.
	commit(t, a.data, 2)
	b.good("promote", "--data", b.data)
	refuse("the promoted node follows", b, 3, "was promoted", "watch", "--once", "--from", b.repo, "--data", b.data)
	refuse("the promoted node rejoins", b, 3, "no other host was promoted", "rejoin", "--data", b.data, "--from", b.repo)
	before := kept(t, filepath.Dir(b.data))
	require.Contains(t, b.good("promote", "--data", b.data), "was promoted before", "twice is no matter")
	untouched(t, before, filepath.Dir(b.data)) // it tells of itself again, in the repository
	commit(t, b.data, 2)
	require.Contains(t, b.good("backup", "-v", "-f", b.data, "-r", b.repo), "delta")

	// a is not dead, and goes on writing. Nothing of it comes to b's database, nor into its chain.
	said := a.code(3, a.backupArgs()...)
	require.Contains(t, said, "untouched: ")
	commit(t, a.data, 1)
	refuse("the stale master backs up", a, 3, "epoch", a.backupArgs()...)
	refuse("the stale master ships", a, 3, "epoch", "ship", "-r", a.repo, "--to", b.url())
	refuse("the stale master follows as it is", a, 5, "has no state file", "watch", "--once", "--from", b.url(), "--data", a.data)
	b.good("verify", "-r", b.repo)

	// It comes back as the standby. What it had alone is kept.
	alone := a.bytes()
	a.good("rejoin", "--dry-run", "--data", a.data, "--from", b.url())
	require.True(t, alone == a.bytes(), "a dry run changes nothing")
	a.good("rejoin", "--data", a.data, "--from", b.url())
	saved, err := filepath.Glob(a.data + ".diverged-*")
	require.NoError(t, err)
	require.NotEmpty(t, saved)
	before = kept(t, a.dir)
	a.good("rejoin", "--data", a.data, "--from", b.url())
	untouched(t, before, a.dir)
	w = a.start(binary, "watch", "--from", b.url(), "--data", a.data, "--interval", "100ms")
	a.follows()
	require.Zero(t, w.stop(t))
	refuse("the new standby is backed up", a, 3, "is a standby", a.backupArgs()...)
}

// The clocks of the hosts are hours apart, and neither is right.
func TestClocksThatAreHoursApart(t *testing.T) {
	t.Parallel()
	for name, hours := range map[string][2]time.Duration{"the standby's is behind": {5, -7}, "the standby's is ahead": {-5, 7}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := newPair(t)
			clock := func(off time.Duration) func() string {
				return func() string { return time.Now().Add(off * time.Hour).UTC().Format(time.RFC3339) }
			}
			a.now, b.now = clock(hours[0]), clock(hours[1])
			commit(t, a.data, 5)
			a.backup()
			w := b.watch()
			for range 3 {
				commit(t, a.data, 2)
				a.backup()
				b.follows()
			}
			require.NotContains(t, w.log.String(), "ERROR")
			b.good("promote", "--data", b.data)
			require.Equal(t, 3, w.end(t))
			for range 3 {
				commit(t, b.data, 2)
				require.Contains(t, b.good("backup", "-v", "-f", b.data, "-r", b.repo), "delta", "the chain goes on")
			}
			out := filepath.Join(t.TempDir(), "out.fs")
			b.good("recover", "-r", b.repo, "-o", out)
			require.True(t, same(t, b.data, out))
			require.Equal(t, 3, a.run(a.backupArgs()...).code, "the stale master")
			b.good("verify", "-r", b.repo)

			// Back again, in the other direction.
			a.good("rejoin", "--data", a.data, "--from", b.url())
			w = a.start(binary, "watch", "--from", b.url(), "--data", a.data, "--interval", "100ms")
			commit(t, b.data, 2)
			b.good("backup", "-f", b.data, "-r", b.repo)
			a.follows()
			a.good("promote", "--data", a.data)
			require.Equal(t, 3, w.end(t))
			require.EqualValues(t, 3, a.status()["epoch"])
			require.True(t, same(t, a.data, b.data))
		})
	}
}

// Everything on the old master stands still in the middle of a transfer while the other host is promoted, and goes on then.
func TestTheOldMasterGoesOnAfterItStoodStill(t *testing.T) {
	t.Parallel()
	a, b, w := normal(t)
	commitLarge(t, a.data, 3<<20)
	ship := a.start(append([]string{binary}, append(a.backupArgs(), "--limit-rate", "1M", "--codec", "none")...)...)
	until(t, "a part has come", func() bool {
		parts, _ := filepath.Glob(filepath.Join(b.repo, "*.tmp"))
		return len(parts) > 0
	})
	ship.signal(syscall.SIGSTOP)
	b.good("promote", "--data", b.data)
	require.Equal(t, 3, w.end(t))
	commit(t, b.data, 2)
	b.good("backup", "-f", b.data, "-r", b.repo)
	want := b.bytes()

	ship.signal(syscall.SIGCONT)
	code := ship.end(t)
	t.Logf("the stale ship ended with %d: %s", code, ship.log.String())
	require.True(t, want == b.bytes(), "nothing of it came into the promoted node's Data.fs")
	for range 2 { // whatever it has left in the directory, the new master goes on there
		commit(t, b.data, 1)
		r := b.run("backup", "-v", "-f", b.data, "-r", b.repo)
		require.Zero(t, r.code, r.stderr)
	}
	out := filepath.Join(t.TempDir(), "out.fs")
	b.good("recover", "-r", b.repo, "-o", out)
	require.True(t, same(t, b.data, out), "what is recovered there is the new master's history")
	require.Equal(t, 3, a.run(a.backupArgs()...).code, "from now on it refuses")
	a.good("rejoin", "--data", a.data, "--from", b.url())
	a.start(binary, "watch", "--from", b.url(), "--data", a.data, "--interval", "100ms")
	a.follows()
}

// The standby reads the master's repository over a line that breaks just when it is promoted.
func TestTheLineBreaksDuringAPromotion(t *testing.T) {
	t.Parallel()
	a, b := newPair(t)
	commit(t, a.data, 5)
	a.good("backup", "-f", a.data, "-r", a.repo)
	w := b.start(binary, "watch", "--from", a.url(), "--data", b.data, "--interval", "100ms")
	b.follows()
	require.Zero(t, w.stop(t))
	commitLarge(t, a.data, 3<<20)
	a.good("backup", "-f", a.data, "-r", a.repo, "--codec", "none")
	before := b.bytes()

	// It is reading the increment when the line goes.
	p := b.start(binary, "promote", "--data", b.data, "--json", "--verbose", "--limit-rate", "200K")
	until(t, "it has the lock", func() bool {
		holder, _ := b.status()["locked_by"].(float64)
		return holder != 0
	})
	a.line("down")
	require.Zero(t, p.end(t), p.log.String())
	status := b.status()
	require.Equal(t, "promoted", status["role"])
	promotion, _ := status["promotion"].(map[string]any)
	require.NotEmpty(t, promotion["missing"], "it tells that the source could not be read")
	require.True(t, before == b.bytes(), "the increment that had not come whole is not there")

	// The line is back. The old master learns of it from the new one's first backup.
	a.line("up")
	commit(t, b.data, 1)
	r := b.run(b.backupArgs()...)
	t.Logf("the first backup after the partition ended with %d: %s", r.code, r.stderr)
	require.Equal(t, 3, a.run("backup", "-f", a.data, "-r", a.repo).code)
}

// The line breaks while the former master looks for what is common, and again while the increments come.
func TestTheLineBreaksDuringARejoin(t *testing.T) {
	t.Parallel()
	a, b, w := normal(t)
	commit(t, a.data, 3) // that b never gets
	b.good("promote", "--data", b.data)
	require.Equal(t, 3, w.end(t))
	commitLarge(t, b.data, 2<<20)
	b.good("backup", "-f", b.data, "-r", b.repo, "--codec", "none")

	before := kept(t, filepath.Dir(a.data))
	r := a.start(binary, "rejoin", "--data", a.data, "--from", b.url(), "--limit-rate", "2K")
	until(t, "it reads", func() bool { out, _ := a.command("ss", "-Htn", "state", "established").Output(); return len(out) > 0 })
	a.line("down")
	r.signal(syscall.SIGTERM) // the operator does not wait for its patience to end
	if code := r.end(t); code != 0 {
		untouched(t, before, filepath.Dir(a.data))
	}
	a.line("up")
	a.good("rejoin", "--data", a.data, "--from", b.url())
	saved, err := filepath.Glob(a.data + ".diverged-*.txt")
	require.NoError(t, err)
	require.Len(t, saved, 1, "what it had alone is listed once")

	w = a.start(binary, "watch", "--from", b.url(), "--data", a.data, "--interval", "100ms", "--limit-rate", "500K")
	until(t, "it has the lock, and reads", func() bool { out, _ := a.command("ss", "-Htn", "state", "established").Output(); return len(out) > 0 })
	a.line("down")
	w.signal(syscall.SIGKILL)
	w.end(t)
	a.line("up")
	a.start(binary, "watch", "--from", b.url(), "--data", a.data, "--interval", "100ms")
	a.follows()
}
