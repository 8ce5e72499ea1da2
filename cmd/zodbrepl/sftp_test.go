package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
)

// pair is a master in this process's directory and another host, which an SSH server serves.
type pair struct {
	t      *testing.T
	server *sshtest.Server
	clock  time.Time
}

func newPair(t *testing.T, o sshtest.Options) *pair {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	p := &pair{t: t, server: sshtest.Start(t, o), clock: time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC)}
	home := sshtest.NewHome(t)
	home.Trust(p.server)
	home.AddKey("id_ed25519", p.server.Key)
	t.Chdir(t.TempDir())
	require.NoError(t, os.Mkdir("repo", 0o755))
	require.NoError(t, grow("Data.fs", true, 3, 300, p.clock.Format(time.RFC3339), false))
	p.backup()
	return p
}

// run runs a command and requires its exit code.
func (p *pair) run(code int, args ...string) (stdout, stderr string) {
	p.t.Helper()
	var out, err bytes.Buffer
	require.Equal(p.t, code, run(append([]string{"zodbrepl"}, args...), &out, &err), "%s\n%s", args, err.String())
	return out.String(), err.String()
}

func (p *pair) backup() {
	p.t.Helper()
	p.clock = p.clock.Add(time.Hour)
	require.NoError(p.t, grow("Data.fs", false, 3, 300, p.clock.Format(time.RFC3339), false))
	p.t.Setenv("ZODBREPL_NOW", p.clock.Add(time.Minute).Format(time.RFC3339))
	p.run(0, "backup", "-f", "Data.fs", "-r", "repo")
}

// url names the directory of the other host.
func (p *pair) url() string { return p.server.URL(p.server.Dir) }

func (p *pair) same(name string) {
	p.t.Helper()
	want, err := os.ReadFile("Data.fs")
	require.NoError(p.t, err)
	got, err := os.ReadFile(name)
	require.NoError(p.t, err)
	require.True(p.t, bytes.Equal(want, got), "%s is not Data.fs", name)
}

func TestAStandbyFollowsWhatIsPushedAndItsPromotionEndsTheMaster(t *testing.T) {
	p := newPair(t, sshtest.Options{})
	p.run(0, "ship", "-r", "repo", "--to", p.url())
	require.NoError(t, os.Mkdir("bms2", 0o755))
	p.run(0, "watch", "--once", "--from", p.server.Dir, "--data", "bms2/Data.fs")
	p.same("bms2/Data.fs")

	p.backup()
	stdout, _ := p.run(0, "ship", "-v", "-r", "repo", "--to", p.url())
	require.Contains(t, stdout, "1 increments")
	require.Contains(t, stdout, "standby on ")
	require.NotContains(t, stdout, "behind")
	p.backup()
	stdout, stderr := p.run(0, "ship", "-v", "-r", "repo", "--to", p.url())
	require.Contains(t, stdout, "1 increments behind, the oldest made at ", "it has not looked since")
	require.Contains(t, stderr, "a standby lags") // the clock of the test stands in the past

	p.run(0, "promote", "--data", "bms2/Data.fs", "--from", p.server.Dir)
	p.same("bms2/Data.fs")
	_, stderr = p.run(3, "ship", "-r", "repo", "--to", p.url())
	require.Contains(t, stderr, "another host was promoted")
	_, stderr = p.run(3, "backup", "-f", "Data.fs", "-r", "repo")
	require.Contains(t, stderr, "next: ")
}

func TestAStandbyPullsThroughAnAccountThatMayOnlyRead(t *testing.T) {
	served := t.TempDir()
	p := newPair(t, sshtest.Options{Dir: served, ReadOnly: true})
	publish := func() { require.NoError(t, os.CopyFS(filepath.Join(served, p.clock.Format("15")), os.DirFS("repo"))) }
	publish()
	from := func() string { return p.server.URL(filepath.Join(served, p.clock.Format("15"))) }
	p.run(0, "watch", "--once", "--from", from(), "--data", "standby.fs")
	p.same("standby.fs")
	p.backup()
	publish()
	stdout, _ := p.run(0, "watch", "--once", "--json", "--from", from(), "--data", "standby.fs")
	p.same("standby.fs")
	require.Contains(t, stdout, `"increments": 1`)

	stdout, _ = p.run(0, "list", "-r", from())
	require.Equal(t, 2, strings.Count(stdout, "Z\n"), "two increments with their times: %s", stdout)
	p.run(0, "verify", "-r", from())
	p.run(0, "recover", "-r", from(), "-o", "recovered.fs")
	p.same("recovered.fs")
	stdout, _ = p.run(0, "status", "--data", "standby.fs", "--json")
	var status struct {
		Condition struct{ Name string }
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &status))
	require.Equal(t, "current", status.Condition.Name)

	_, stderr := p.run(1, "ship", "-r", "repo", "--to", p.server.URL(served))
	require.Contains(t, stderr, "cannot be written")
	require.Contains(t, stderr, "next: give that account the right")
	require.NoFileExists(t, filepath.Join(served, "zodbrepl.lock"))
}

func TestOneTargetOfSeveralThatFailsIsNamedAndHoldsBackNoOther(t *testing.T) {
	p := newPair(t, sshtest.Options{})
	for _, d := range []string{"one", "two"} {
		require.NoError(t, os.Mkdir(filepath.Join(p.server.Dir, d), 0o755))
	}
	full := sshtest.Full(100)
	p.server.SetRule(func(r sshtest.Request) sshtest.Verdict {
		if strings.Contains(r.Path, "/two") {
			return full(r)
		}
		return sshtest.Pass
	})
	stdout, stderr := p.run(1, "ship", "--json", "-r", "repo", "--to", p.url()+"/one", "--to", p.url()+"/two", "--to", p.url()+"/three")
	require.Contains(t, stderr, "target "+p.url()+"/two is full")
	require.Contains(t, stderr, p.url()+"/three does not exist")
	require.NotContains(t, stderr, p.url()+"/one")
	var results []struct {
		Target, Error string
		Increments    []string
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &results))
	require.Len(t, results, 3)
	require.Empty(t, results[0].Error)
	require.Len(t, results[0].Increments, 1)
	require.Contains(t, results[1].Error, "is full")
	require.Contains(t, results[2].Error, "does not exist")
	p.run(0, "verify", "-r", p.url()+"/one")
	p.server.SetRule(nil)
	p.run(0, "ship", "-r", "repo", "--to", p.url()+"/two")
	p.run(0, "verify", "-r", p.url()+"/two")
	require.NoDirExists(t, filepath.Join(p.server.Dir, "three"))
}

func TestAHostThatIsNotKnownIsAcceptedOnDemandOnly(t *testing.T) {
	p := newPair(t, sshtest.Options{})
	known := filepath.Join(os.Getenv("HOME"), ".ssh", "known_hosts")
	require.NoError(t, os.Remove(known))
	_, stderr := p.run(1, "list", "-r", p.url())
	require.Contains(t, stderr, "is not known")
	require.Contains(t, stderr, "--accept-new")
	require.NoFileExists(t, known)
	_, stderr = p.run(0, "list", "-r", p.url(), "--accept-new")
	require.Contains(t, stderr, "accepted from now on")
	_, stderr = p.run(0, "list", "-r", p.url())
	require.Empty(t, stderr)
}

// newer is what of a repository is not in a directory yet.
type newer struct {
	fs.FS
	dir string
}

func (n newer) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(n.FS, name)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		_, err := os.Stat(filepath.Join(n.dir, e.Name()))
		return err == nil
	}), err
}
