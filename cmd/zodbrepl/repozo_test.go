package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/fixtures/fixturetest"
)

// repozoRun runs repozo as main does and returns what it printed. It fails the test when the exit code is another.
func repozoRun(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	got := run(append([]string{"/usr/local/bin/repozo"}, args...), &out, &errs)
	require.Equal(t, code, got, "exit code of repozo %v; stderr: %s", args, errs.String())
	return out.String(), errs.String()
}

func clockAt(t *testing.T, at string) {
	t.Helper()
	t.Setenv("ZODBREPL_NOW", at)
}

func shaOf(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return shaOfBytes(b)
}

func shaOfBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// everyFile returns the hashes of all files below dir, but for locks.
func everyFile(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		all[strings.TrimPrefix(path, dir)] = shaOf(t, path)
		return nil
	}))
	return all
}

type repozoFacts struct {
	Repository string `json:"repository"`
	Files      []any  `json:"files"`
	Recover    []struct {
		Size        *int64  `json:"size"`
		Date        *string `json:"date"`
		Error       *string `json:"error"`
		SHA256      *string `json:"sha256"`
		IndexSHA256 *string `json:"index_sha256"`
	} `json:"recover"`
}

var repozoRepositories = []string{"gzip", "plain", "mixed"}

func TestRepozoRecoversWhatTheRealOneDoesAtEveryDate(t *testing.T) {
	for _, name := range repozoRepositories {
		var facts repozoFacts
		fixturetest.JSON(t, "repozo/"+name+".json", &facts)
		require.NotEmpty(t, facts.Recover)
		for _, want := range facts.Recover {
			args := []string{"-R", "-r", fixturetest.Path(t, "repozo/"+name)}
			title := "newest"
			if want.Date != nil {
				args = append(args, "-D", *want.Date)
				title = *want.Date
			}
			t.Run(name+" at "+title, func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "Data.fs")
				if want.Error != nil {
					stdout, stderr := repozoRun(t, 1, append(args, "-o", out)...)
					require.Empty(t, stdout)
					require.Contains(t, stderr, "no files in repository before "+*want.Date)
					require.NoFileExists(t, out)
					return
				}
				stdout, stderr := repozoRun(t, 0, append(args, "-o", out)...)
				require.Empty(t, stdout+stderr, "it is quiet")
				require.Equal(t, *want.SHA256, shaOf(t, out))
				require.Equal(t, *want.IndexSHA256, shaOf(t, out+".index"), "the index is the one that repozo keeps")
				stdout, _ = repozoRun(t, 0, append(args, "-w")...)
				require.Equal(t, *want.SHA256, shaOfBytes([]byte(stdout)), "the same goes to the standard output")
			})
		}
	}
}

func TestRepozoTellsOnStandardErrorWhatItDoes(t *testing.T) {
	repo := fixturetest.Path(t, "repozo/gzip")
	stdout, stderr := repozoRun(t, 0, "-R", "-v", "-r", repo, "-f", "ignored")
	require.Equal(t, "FS30", stdout[:4], "the standard output is for the Data.fs")
	require.Contains(t, stderr, "--file has no meaning together with -R")
	require.Contains(t, stderr, "2024-03-05-12-30-45")
}

func TestRepozoBackup(t *testing.T) {
	dir := t.TempDir()
	repo, data, out := filepath.Join(dir, "repo"), filepath.Join(dir, "Data.fs"), filepath.Join(dir, "out")
	require.NoError(t, os.Mkdir(repo, 0o755))
	g, err := fixtures.Create(data, fixtures.Options{})
	require.NoError(t, err)
	defer g.Close()
	backup := func(at, flags string) string {
		t.Helper()
		clockAt(t, at)
		stdout, stderr := repozoRun(t, 0, flags+"r", repo, "-f", data)
		require.Empty(t, stdout)
		return stderr
	}
	grow := func() { commitSome(t, g) }
	recovered := func() {
		t.Helper()
		repozoRun(t, 0, "-R", "-r", repo, "-o", out)
		require.Equal(t, shaOf(t, data), shaOf(t, out))
	}
	dataFiles := func() []string {
		t.Helper()
		var names []string
		for _, pattern := range []string{"*.fs*", "*.deltafs*"} {
			found, err := filepath.Glob(filepath.Join(repo, pattern))
			require.NoError(t, err)
			for _, f := range found {
				names = append(names, filepath.Base(f))
			}
		}
		return names
	}

	grow()
	require.Empty(t, backup("2024-03-01T01:00:00Z", "-B"), "the first full is no surprise")
	grow()
	require.Empty(t, backup("2024-03-01T02:00:00Z", "-BzQ"))
	require.Empty(t, backup("2024-03-01T03:00:00Z", "-BzQ"), "nothing was committed")
	grow()
	require.Empty(t, backup("2024-03-01T04:00:00Z", "-B"))
	require.Equal(t, []string{"2024-03-01-01-00-00.fs", "2024-03-01-02-00-00.deltafsz", "2024-03-01-04-00-00.deltafs"}, dataFiles())
	recovered()
	repozoRun(t, 0, "-V", "-r", repo)
	repozoRun(t, 0, "-VQ", "-r", repo)

	require.NoError(t, g.Pack(g.LastTID()))
	grow()
	require.Contains(t, backup("2024-03-01T05:00:00Z", "-BzQ"), "packed or replaced", "a full that was not asked for is told")
	require.Equal(t, []string{"2024-03-01-01-00-00.fs", "2024-03-01-05-00-00.fsz", "2024-03-01-02-00-00.deltafsz", "2024-03-01-04-00-00.deltafs"}, dataFiles())
	recovered()

	before := everyFile(t, repo)
	require.Empty(t, backup("2024-03-01T06:00:00Z", "-BkQ"), "-k is for a full only")
	require.Equal(t, before, everyFile(t, repo))
	grow()
	require.Empty(t, backup("2024-03-01T07:00:00Z", "-BFk"))
	require.Equal(t, []string{"2024-03-01-07-00-00.fs"}, dataFiles(), "what is older was removed")
	recovered()
	repozoRun(t, 0, "-V", "-r", repo)
}

func TestRepozoComparesAllOfDataFsWithoutQuick(t *testing.T) {
	for flags, full := range map[string]bool{"-B": true, "-BQ": false} {
		t.Run(flags, func(t *testing.T) {
			dir := t.TempDir()
			repo, data := filepath.Join(dir, "repo"), filepath.Join(dir, "Data.fs")
			require.NoError(t, os.Mkdir(repo, 0o755))
			g, err := fixtures.Create(data, fixtures.Options{})
			require.NoError(t, err)
			defer g.Close()
			_, err = g.Commit("me", "large", fixtures.Record{OID: 1, Data: bytes.Repeat([]byte("text "), 100_000)})
			require.NoError(t, err)
			commitSome(t, g)
			clockAt(t, "2024-03-01T01:00:00Z")
			repozoRun(t, 0, "-B", "-r", repo, "-f", data)

			// The file stays the same one, with the same end: only all of it tells.
			f, err := os.OpenFile(data, os.O_RDWR, 0)
			require.NoError(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte("TEXT"), 1000)
			require.NoError(t, err)
			commitSome(t, g)
			clockAt(t, "2024-03-01T02:00:00Z")
			_, stderr := repozoRun(t, 0, flags, "-r", repo, "-f", data)
			if !full {
				require.Empty(t, stderr)
				require.FileExists(t, repo+"/2024-03-01-02-00-00.deltafs")
				return
			}
			require.Contains(t, stderr, "packed or replaced")
			require.FileExists(t, repo+"/2024-03-01-02-00-00.fs")
		})
	}
}

func commitSome(t *testing.T, g *fixtures.Grower) {
	t.Helper()
	_, err := g.Commit("me", "some", fixtures.Record{OID: 1, Data: bytes.Repeat([]byte("text "), 1000)}, fixtures.Record{OID: 0, Data: []byte("b")})
	require.NoError(t, err)
}

func TestRepozoMakesAFullWhenWhatIsStoredIsDamaged(t *testing.T) {
	rot := func(t *testing.T, path string) {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		b[len(b)/2] ^= 1
		require.NoError(t, os.WriteFile(path, b, 0o644))
	}
	for name, test := range map[string]struct {
		harm  func(t *testing.T, repo string)
		flags string
		full  bool
	}{
		"a delta of the real repozo rots":          {func(t *testing.T, repo string) { rot(t, repo+"/2024-03-02-02-00-00.deltafsz") }, "-Bz", true},
		"a delta of the real repozo rots, with -Q": {func(t *testing.T, repo string) { rot(t, repo+"/2024-03-02-02-00-00.deltafsz") }, "-BzQ", true},
		"a delta is missing":                       {func(t *testing.T, repo string) { require.NoError(t, os.Remove(repo+"/2024-03-02-02-00-00.deltafsz")) }, "-Bz", true},
		"a delta is missing, with -Q":              {func(t *testing.T, repo string) { require.NoError(t, os.Remove(repo+"/2024-03-02-02-00-00.deltafsz")) }, "-BzQ", true},
		"the .dat is no text": {func(t *testing.T, repo string) {
			require.NoError(t, os.WriteFile(repo+"/2024-03-02-01-00-00.dat", []byte("x\n"), 0o644))
		}, "-BzQ", true},
		"nothing": {func(*testing.T, string) {}, "-Bz", false},
		"one of ours rots, with -Q, which looks not":  {func(t *testing.T, repo string) { ours(t, repo); rot(t, repo+"/2024-03-02-02-00-00.deltafsz") }, "-BzQ", false},
		"one of ours rots, and without -Q it is seen": {func(t *testing.T, repo string) { ours(t, repo); rot(t, repo+"/2024-03-02-02-00-00.deltafsz") }, "-Bz", true},
	} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "Data.fs")
			repozoRun(t, 0, "-R", "-r", fixturetest.Path(t, "repozo/mixed"), "-o", data)
			repo := fixturetest.Copy(t, "repozo/mixed")
			test.harm(t, repo)
			before := everyFile(t, repo)
			clockAt(t, "2024-04-01T00:00:00Z")
			_, stderr := repozoRun(t, 0, test.flags, "-r", repo, "-f", data)
			if !test.full {
				require.Empty(t, stderr)
				require.NoFileExists(t, repo+"/2024-04-01-00-00-00.fsz")
				return
			}
			require.Contains(t, stderr, "a new full was made")
			require.FileExists(t, repo+"/2024-04-01-00-00-00.fsz")
			out := filepath.Join(t.TempDir(), "out")
			repozoRun(t, 0, "-R", "-r", repo, "-o", out)
			require.Equal(t, shaOf(t, data), shaOf(t, out))
			after := everyFile(t, repo)
			for file, sum := range before {
				require.Equal(t, sum, after[file], "%s stays as it was", file)
			}
		})
	}
}

// ours gives every increment of a repository its manifest.
func ours(t *testing.T, repo string) {
	t.Helper()
	data := filepath.Join(t.TempDir(), "Data.fs")
	repozoRun(t, 0, "-R", "-r", repo, "-o", data)
	repozoRun(t, 0, "-BQ", "-r", repo, "-f", data)
}

// A .dat may be lost when a repository is copied. The real repozo restores it all the same, so nothing may be taken away.
func TestRepozoRemovesNothingWhoseDatIsLost(t *testing.T) {
	data := filepath.Join(t.TempDir(), "Data.fs")
	repozoRun(t, 0, "-R", "-r", fixturetest.Path(t, "repozo/gzip"), "-o", data)
	for name, lost := range map[string]string{"of all chains": "*.dat", "of an old chain": "2024-03-02-01-00-00.dat", "of the newest chain": "2024-03-04-01-00-00.dat"} {
		t.Run(name, func(t *testing.T) {
			repo := fixturetest.Copy(t, "repozo/gzip")
			dats, err := filepath.Glob(filepath.Join(repo, lost))
			require.NoError(t, err)
			for _, d := range dats {
				require.NoError(t, os.Remove(d))
			}
			before, err := filepath.Glob(filepath.Join(repo, "*fs*"))
			require.NoError(t, err)
			require.Len(t, before, 6)
			sums := make(map[string]string)
			for _, f := range before {
				sums[f] = shaOf(t, f)
			}
			for _, at := range []string{"2024-04-01T00:00:00Z", "2024-04-02T00:00:00Z"} {
				clockAt(t, at)
				repozoRun(t, 0, "-BQz", "-r", repo, "-f", data)
			}
			for f, sum := range sums {
				require.Equal(t, sum, shaOf(t, f), "%s stays as it was", f)
			}
			out := filepath.Join(t.TempDir(), "out")
			repozoRun(t, 0, "-R", "-r", repo, "-o", out)
			require.Equal(t, shaOf(t, data), shaOf(t, out))
		})
	}
}

func TestRepozoVerifyFindsDamage(t *testing.T) {
	for _, flags := range []string{"-V", "-VQ"} {
		for _, adopted := range []bool{false, true} {
			for _, file := range []string{"2024-03-02-01-00-00.fs", "2024-03-02-03-00-00.deltafsz"} {
				repo := fixturetest.Copy(t, "repozo/mixed")
				if adopted {
					ours(t, repo)
				}
				stdout, stderr := repozoRun(t, 0, flags, "-r", repo)
				require.Empty(t, stdout+stderr, "it is quiet when all is good")
				require.NoError(t, os.Truncate(filepath.Join(repo, file), 100))
				before := everyFile(t, repo)
				stdout, stderr = repozoRun(t, 1, flags, "-r", repo)
				require.Empty(t, stdout)
				require.Contains(t, stderr, file)
				require.Equal(t, before, everyFile(t, repo), "verification changes nothing")
			}
		}
	}
}

// With -Q repozo does not look at checksums of what is in the files. Ours have a hash of the stored form for that.
func TestRepozoVerifyQuickDoesNotUnpackWhatHasAManifest(t *testing.T) {
	repo := fixturetest.Copy(t, "repozo/mixed")
	ours(t, repo)
	const stamp = "2024-03-02-03-00-00"
	var sum string
	for _, name := range []string{stamp + ".manifest", "2024-03-02-01-00-00.dat"} {
		b, err := os.ReadFile(filepath.Join(repo, name))
		require.NoError(t, err)
		if sum == "" {
			var m struct{ MD5 string }
			require.NoError(t, json.Unmarshal(b, &m))
			sum = m.MD5
		}
		require.Contains(t, string(b), sum)
		lie := strings.ReplaceAll(string(b), sum, strings.Repeat("0", len(sum)))
		require.NoError(t, os.WriteFile(filepath.Join(repo, name), []byte(lie), 0o644))
	}
	repozoRun(t, 0, "-VQ", "-r", repo)
	_, stderr := repozoRun(t, 1, "-V", "-r", repo)
	require.Contains(t, stderr, "md5")
}

func TestRepozoHelp(t *testing.T) {
	for name, args := range map[string][]string{
		"of the link":                {"/usr/bin/repozo", "--help"},
		"of the command":             {"zodbrepl", "repozo", "-h"},
		"in the list of all":         {"zodbrepl", "help", "repozo"},
		"of the command, shortened":  {"zodbrepl", "repozo", "--he"},
		"of the link, with a bundle": {"repozo", "-Bh"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			require.Zero(t, run(args, &out, &errs), errs.String())
			require.Empty(t, errs.String())
			require.Contains(t, out.String(), repozoExample)
			require.Contains(t, out.String(), "Exit codes:")
			for _, o := range repozoAllOptions {
				require.Contains(t, out.String(), "-"+string(o.short)+", --"+o.long)
			}
		})
	}
}

func TestRepozoExitsWithOneAlsoAsACommand(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, 1, run([]string{"zodbrepl", "repozo", "--nonsense"}, &out, &errs))
	require.Contains(t, errs.String(), "--nonsense")
}
