package transport

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestNamesOfTargets(t *testing.T) {
	wd, err := os.Getwd()
	require.NoError(t, err)
	for _, c := range []struct{ where, path string }{
		{"/mnt/bms2/zodb", "/mnt/bms2/zodb"},
		{"/mnt/bms2/../vault//zodb/", "/mnt/vault/zodb"},
		{"relative/dir", filepath.Join(wd, "relative/dir")},
		{"./host:dir", filepath.Join(wd, "host:dir")},
		{"/a:b/c", "/a:b/c"},
		{"with a space, ? and #", filepath.Join(wd, "with a space, ? and #")},
		{"file:///mnt/zodb", "/mnt/zodb"},
		{"FILE:///mnt/zodb/", "/mnt/zodb"},
		{"file://localhost/mnt/zodb", "/mnt/zodb"},
		{"file:///mnt/a%20b%3F%23c", "/mnt/a b?#c"},
		{"file:///mnt/a b", "/mnt/a b"},
		{"file:///", "/"},
	} {
		t.Run(c.where, func(t *testing.T) {
			require.NoError(t, CheckTarget(c.where))
			require.Equal(t, c.path, LocalDir(c.where))
			require.Equal(t, c.path, TargetName(c.where))
		})
	}
}

func TestNamesThatAreNoTargets(t *testing.T) {
	for _, c := range []struct{ name, where, says string }{
		{"nothing", "", "empty"},
		{"a file URL with another host", "file://bms2/mnt/zodb", `host, "bms2"`},
		{"a file URL with a port", "file://localhost:22/mnt", "host"},
		{"a file URL with a user", "file://me@localhost/mnt", "host"},
		{"a file URL without a path", "file://", "absolute path"},
		{"a file URL with a relative path", "file://mnt", `host, "mnt"`},
		{"a file URL with one slash", "file:/mnt/zodb", "looks like a host or a scheme"},
		{"a query", "file:///mnt/zodb?mode=fast", "%3F"},
		{"an empty query", "file:///mnt/zodb?", "%3F"},
		{"a fragment", "file:///mnt/zodb#1", "%23"},
		{"an empty fragment", "file:///mnt/zodb#", "%23"},
		{"a bad escape", "file:///mnt/%zz", "invalid URL escape"},
		{"an escaped byte 0", "file:///mnt/%00", "byte 0"},
		{"a byte 0", "/mnt/\x00", "byte 0"},
		{"an unknown scheme", "gopher://bms2/mnt", `unknown scheme "gopher"`},
		{"no scheme", "://bms2/mnt", "unknown scheme"},
		{"rsync's form", "bms2:/mnt/zodb", "looks like a host"},
		{"rsync's form with a user", "zope@bms2:zodb", "looks like a host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckTarget(c.where)
			require.ErrorIs(t, err, fault.Usage)
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err))
			require.Empty(t, LocalDir(c.where))
			require.Equal(t, c.where, TargetName(c.where))
			_, err = OpenTarget(t.Context(), c.where, TargetOptions{})
			require.ErrorIs(t, err, fault.Usage)
		})
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"", "/mnt/zodb", "file:///mnt/a%20b", "file://localhost/x", "file://h/x?y#z", "bms2:/x", "x://", "file:///%00", "\x00",
		"sftp://zope@bms2:2222/srv/increments", "sftp://bms2/~/increments", "sftp://bms2/~", "SFTP://[::1]:22/%20", "sftp://a:b@c/d", "sftp://-o/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, where string) {
		p, err := parse(where)
		if err != nil {
			require.ErrorIs(t, err, fault.Usage)
			require.Empty(t, p)
			return
		}
		path := p.dir
		if p.remote == nil {
			require.True(t, filepath.IsAbs(path))
			require.Equal(t, filepath.Clean(path), path)
		} else {
			path = p.remote.path
			require.Empty(t, p.dir)
			require.NotEmpty(t, path)
			require.NotEmpty(t, p.remote.host)
			require.NotEqual(t, byte('-'), p.remote.host[0])
		}
		require.NotContains(t, path, "\x00")
		// What it is taken for must be taken for the same, also by a run elsewhere.
		again, err := parse(TargetName(where))
		require.NoError(t, err)
		require.Equal(t, p, again)
	})
}

func TestTargetsThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err := OpenTarget(t.Context(), filepath.Join(dir, "missing"), TargetOptions{})
	require.ErrorContains(t, err, "does not exist")
	require.NoDirExists(t, filepath.Join(dir, "missing"))
	_, err = OpenTarget(t.Context(), file, TargetOptions{})
	require.ErrorContains(t, err, "not a directory")
}

func answer() incremental.Answer {
	return incremental.Answer{Host: "bms2/../x", Data: "/srv/Data.fs", Lineage: "l", Epoch: 3, Role: "standby", Stamp: "2024-03-01-10-00-00",
		Position: 4711, LastTID: filestorage.TID(7), Applied: time.Date(2024, 3, 1, 10, 0, 1, 2, time.UTC), Condition: "current",
		Updated: time.Date(2024, 3, 1, 10, 0, 2, 0, time.UTC)}
}

func TestAnAnswerComesBackAsItWasSent(t *testing.T) {
	target, err := OpenTarget(t.Context(), t.TempDir(), TargetOptions{})
	require.NoError(t, err)
	a, b := answer(), answer()
	b.Data, b.Condition, b.Message = "/srv/other/Data.fs", "gap", strings.Repeat("ä", 1000)
	for range 2 { // the second replaces the first
		a.Position++
		require.NoError(t, SendAnswer(t.Context(), target, a))
		require.NoError(t, SendAnswer(t.Context(), target, b))
		answers, problems, err := incremental.ReadAnswers(t.Context(), target)
		require.NoError(t, err)
		require.Empty(t, problems)
		require.ElementsMatch(t, []incremental.Answer{a, b}, answers)
	}
	entries, err := target.List(t.Context())
	require.NoError(t, err)
	require.Len(t, entries, 2)
}
