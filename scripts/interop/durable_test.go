//go:build interop

package interop

import (
	"bufio"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
)

// A sysCall is a system call that changes a file, or makes a change durable.
type sysCall struct {
	op   string // write, fsync, rename, unlink or truncate
	path string // for a rename, the new name
	from string // for a rename, the old name
}

var (
	syscallLine = regexp.MustCompile(`^\d+ +(\w+)\((.*)\) += (\d+)$`)
	unfinished  = regexp.MustCompile(`^(\d+) +(.*) <unfinished \.\.\.>$`)
	resumed     = regexp.MustCompile(`^(\d+) +<\.\.\. \w+ resumed>(.*)$`)
	ofFD        = regexp.MustCompile(`^\d+<([^>]*)>`)
	quoted      = regexp.MustCompile(`"([^"]*)"`)
)

// traced runs zodbrepl and returns its calls, in the order in which they were done.
func traced(t *testing.T, args ...string) []sysCall {
	t.Helper()
	log := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", append([]string{"-f", "-y", "-s", "0", "-o", log,
		"-e", "trace=write,pwrite64,pwritev2,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat", binary}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := os.Open(log)
	require.NoError(t, err)
	defer f.Close()
	var calls []sysCall
	begun := make(map[string]string)
	for in := bufio.NewScanner(f); in.Scan(); {
		line := in.Text()
		if m := unfinished.FindStringSubmatch(line); m != nil {
			begun[m[1]] = m[1] + " " + m[2]
			continue
		}
		if m := resumed.FindStringSubmatch(line); m != nil {
			line = begun[m[1]] + m[2]
		}
		if m := syscallLine.FindStringSubmatch(line); m != nil {
			calls = append(calls, parseCall(m[1], m[2])...)
		}
	}
	require.NotEmpty(t, calls, "strace saw nothing")
	return calls
}

func parseCall(name, args string) []sysCall {
	switch name {
	case "rename", "renameat", "renameat2":
		names := quoted.FindAllStringSubmatch(args, -1)
		return []sysCall{{op: "rename", from: names[0][1], path: names[1][1]}}
	case "unlink", "unlinkat":
		return []sysCall{{op: "unlink", path: quoted.FindStringSubmatch(args)[1]}}
	}
	op := map[string]string{"write": "write", "pwrite64": "write", "pwritev2": "write", "fsync": "fsync", "fdatasync": "fsync", "ftruncate": "truncate"}[name]
	if m := ofFD.FindStringSubmatch(args); m != nil && filepath.IsAbs(m[1]) {
		return []sysCall{{op: op, path: m[1]}}
	}
	return nil // a pipe, a terminal
}

// requireDurable holds the calls to what every command promises: no file gets its name before its bytes are on disk,
// and no name is built upon before it is.
func requireDurable(t *testing.T, calls []sysCall) {
	t.Helper()
	dirty := make(map[string]bool)     // written to since its last fsync
	unnamed := make(map[string]string) // directories with a rename that is not on disk yet
	for _, c := range calls {
		switch c.op {
		case "write", "truncate":
			dirty[c.path] = !isLock(c.path)
		case "fsync":
			delete(dirty, c.path)
			delete(unnamed, c.path)
		case "rename":
			require.False(t, dirty[c.from], "%s got its name before its bytes were on disk", c.path)
			if before, ok := unnamed[filepath.Dir(c.path)]; ok {
				require.Fail(t, "a name was not on disk when the next was given", "%s, then %s", before, c.path)
			}
			unnamed[filepath.Dir(c.path)] = c.path
		}
	}
	for path, d := range dirty {
		require.False(t, d, "%s was not on disk at the end", path)
	}
	require.Empty(t, unnamed, "names that were not on disk at the end")
}

func isLock(path string) bool {
	return strings.HasSuffix(path, ".lock") || strings.HasSuffix(path, "-promote")
}

// first returns where the first call with that operation and a path that ends so is.
func first(t *testing.T, calls []sysCall, op, suffix string) int {
	t.Helper()
	i := slices.IndexFunc(calls, func(c sysCall) bool { return c.op == op && strings.HasSuffix(c.path, suffix) })
	require.GreaterOrEqual(t, i, 0, "no %s of %s", op, suffix)
	return i
}

func TestWhatIsClaimedIsOnDiskFirst(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"master", "repo", "shared", "standby"} {
		require.NoError(t, os.Mkdir(at(d), 0o755))
	}
	master, standby := at("master/Data.fs"), at("standby/Data.fs")
	g, err := fixtures.Create(master, fixtures.Options{})
	require.NoError(t, err)
	defer g.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	grow := func() {
		for range 20 {
			_, err := g.CommitRandom(rng, 3, 2000)
			require.NoError(t, err)
		}
	}
	grow()

	for _, kind := range []string{"a full", "a delta"} {
		backup := traced(t, "backup", "-f", master, "-r", at("repo"))
		requireDurable(t, backup)
		require.Less(t, first(t, backup, "fsync", "/master/Data.fs"), first(t, backup, "write", "fsz.tmp"),
			"%s may hold only what the master has on disk", kind)
		require.Greater(t, first(t, backup, "rename", ".manifest"), first(t, backup, "rename", "fsz"), "the manifest of %s comes last", kind)
		require.Greater(t, first(t, backup, "rename", ".manifest"), first(t, backup, "rename", ".dat"), "the manifest of %s comes last", kind)

		ship := traced(t, "ship", "-r", at("repo"), "--to", at("shared"))
		requireDurable(t, ship)
		require.Greater(t, first(t, ship, "rename", ".manifest"), first(t, ship, "rename", "fsz"), "the manifest of %s comes last", kind)

		watch := traced(t, "watch", "--once", "--from", at("shared"), "--data", standby)
		requireDurable(t, watch)
		if kind == "a full" {
			require.Less(t, first(t, watch, "rename", "/Data.fs.zodbrepl"), first(t, watch, "rename", "/standby/Data.fs"),
				"the swap is intended before it is done")
		} else {
			wrote := first(t, watch, "write", "/standby/Data.fs")
			require.Less(t, first(t, watch, "rename", "/Data.fs.zodbrepl"), wrote, "the append is intended before it is done")
			synced := wrote + first(t, watch[wrote:], "fsync", "/standby/Data.fs")
			require.Less(t, synced, wrote+first(t, watch[wrote:], "rename", "/Data.fs.zodbrepl"), "the state claims what is on disk")
		}
		grow()
	}

	// What has arrived is applied by the promotion.
	traced(t, "backup", "-f", master, "-r", at("repo"), "--ship", at("shared"))
	promote := traced(t, "promote", "--data", standby, "--from", at("shared"))
	requireDurable(t, promote)
	indexed := first(t, promote, "rename", "/Data.fs.index")
	require.Greater(t, indexed+first(t, promote[indexed:], "rename", "/Data.fs.zodbrepl"), indexed, "the index is there before the role")

	recovered := traced(t, "recover", "-r", at("shared"), "-o", at("Recovered.fs"))
	requireDurable(t, recovered)
	require.Less(t, first(t, recovered, "rename", "/Recovered.fs"), first(t, recovered, "rename", "/Recovered.fs.index"))

	again := traced(t, "backup", "-f", master, "-r", at("repo"), "-F")
	requireDurable(t, again)
}
