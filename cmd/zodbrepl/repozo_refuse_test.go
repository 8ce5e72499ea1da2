package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures/fixturetest"
	"zodbrepl/incremental"
)

func TestRepozoFailsWithOneAndChangesNothing(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Mkdir(at("empty"), 0o755))
	require.NoError(t, os.CopyFS(at("repo"), os.DirFS(fixturetest.Path(t, "repozo/plain"))))
	require.NoError(t, os.WriteFile(at("text"), []byte("this is no Data.fs at all"), 0o644))
	require.NoError(t, os.WriteFile(at("Data.fs"), []byte("precious"), 0o644))
	require.NoError(t, os.WriteFile(at("locked.fs"), []byte("served"), 0o644))
	lock, err := filestorage.AcquireLock(at("locked.fs"))
	require.NoError(t, err)
	defer lock.Release()
	require.NoError(t, os.CopyFS(at("busy"), os.DirFS(fixturetest.Path(t, "repozo/plain"))))
	busy, err := incremental.LockRepository(incremental.Dir(at("busy")))
	require.NoError(t, err)
	defer busy.Close()
	require.NoError(t, os.CopyFS(at("rotten"), os.DirFS(fixturetest.Path(t, "repozo/plain"))))
	require.NoError(t, os.WriteFile(at("rotten/2024-03-02-02-00-00.deltafs"), []byte("nothing"), 0o644))
	good := fixturetest.Path(t, "plain.fs")
	before := everyFile(t, dir)
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"a repository that is not there":         {[]string{"-B", "-r", at("none"), "-f", good}, "does not exist"},
		"a repository that is a file":            {[]string{"-V", "-r", at("text")}, "is a file"},
		"a Data.fs that is not there":            {[]string{"-B", "-r", at("empty"), "-f", at("none.fs")}, "cannot be read"},
		"a Data.fs that is a text":               {[]string{"-B", "-r", at("empty"), "-f", at("text")}, "not a Data.fs"},
		"a Data.fs that is damaged":              {[]string{"-B", "-r", at("empty"), "-f", fixturetest.Path(t, "bad-tloc.fs")}, "corrupt at offset"},
		"nothing to recover":                     {[]string{"-R", "-r", at("empty"), "-o", at("Data.fs")}, "holds nothing"},
		"nothing to verify":                      {[]string{"-V", "-r", at("empty")}, "holds no increment"},
		"a date before everything":               {[]string{"-R", "-r", at("repo"), "-o", at("Data.fs"), "-D", "2020-01-01"}, "no files in repository before 2020-01-01"},
		"an output that a server has":            {[]string{"-R", "-r", at("repo"), "-o", at("locked.fs")}, "is locked by process"},
		"an output in the repository":            {[]string{"-R", "-r", at("repo"), "-o", at("repo/Data.fs")}, "lies in the repository"},
		"an output in no directory":              {[]string{"-R", "-r", at("repo"), "-o", at("none/Data.fs")}, "none/Data.fs"},
		"a recovery of what rots":                {[]string{"-R", "-r", at("rotten"), "-o", at("Data.fs")}, "2024-03-02-02-00-00.deltafs"},
		"a recovery of what rots, by date":       {[]string{"-R", "-r", at("rotten"), "-o", at("Data.fs"), "-D", "2024-03-03"}, "2024-03-02-02-00-00.deltafs"},
		"another run in the repository":          {[]string{"-B", "-r", at("busy"), "-f", good}, "process"},
		"a wrong command line":                   {[]string{"-B", "-r", at("empty"), "-f", good, "extra"}, "arguments that are no options"},
		"a date that is none, before any output": {[]string{"-R", "-r", at("repo"), "-o", at("Data.fs"), "-D", "today"}, "is not of the form"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr := repozoRun(t, 1, test.args...)
			require.Empty(t, stdout)
			require.Contains(t, stderr, "repozo: ")
			require.Contains(t, stderr, test.says)
			require.Equal(t, before, everyFile(t, dir))
		})
	}
}

func TestRepozoRefusesAStandby(t *testing.T) {
	dir := t.TempDir()
	data, repo := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "repo")
	require.NoError(t, os.Mkdir(repo, 0o755))
	from := fixturetest.Copy(t, "repozo/plain")
	ours(t, from)
	var out, errs bytes.Buffer
	require.Zero(t, run([]string{"zodbrepl", "watch", "--once", "--from", from, "--data", data}, &out, &errs), errs.String())
	_, stderr := repozoRun(t, 1, "-B", "-r", repo, "-f", data)
	require.Contains(t, stderr, "is a standby")
	_, stderr = repozoRun(t, 1, "-R", "-r", from, "-o", data)
	require.Contains(t, stderr, "is a standby")
	entries, err := os.ReadDir(repo)
	require.NoError(t, err)
	require.Empty(t, entries)
}
