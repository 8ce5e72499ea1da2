package incremental

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/fixtures/fixturetest"
	"zodbrepl/internal/fault"
)

// repozoFacts is what the real repozo says of a repository that it made.
type repozoFacts struct {
	Repository string `json:"repository"`
	Files      []struct {
		Dat          string `json:"dat"`
		File         string `json:"file"`
		Start        int64  `json:"start"`
		End          int64  `json:"end"`
		MD5          string `json:"md5"`
		StoredSize   int64  `json:"stored_size"`
		StoredSHA256 string `json:"stored_sha256"`
	} `json:"files"`
	Recover []struct {
		Date   *string `json:"date"`
		Error  *string `json:"error"`
		Size   *int64  `json:"size"`
		SHA256 *string `json:"sha256"`
		Index  *string `json:"index_sha256"`
	} `json:"recover"`
}

func TestRepositoriesThatTheRealRepozoMade(t *testing.T) {
	for _, name := range []string{"gzip", "plain", "mixed"} {
		t.Run(name, func(t *testing.T) {
			var facts repozoFacts
			fixturetest.JSON(t, "repozo/"+name+".json", &facts)
			dir := Dir(fixturetest.Copy(t, "repozo/"+name))
			before := contents(t, dir)

			repo, err := Open(t.Context(), dir)
			require.NoError(t, err)
			chains, others, err := repo.Chains(t.Context())
			require.NoError(t, err)
			require.Empty(t, others)
			i := 0
			for _, c := range chains {
				require.Empty(t, c.Problems)
				for _, inc := range c.Increments {
					f := facts.Files[i]
					i++
					require.Equal(t, f.Dat, string(c.Stamp)+".dat")
					require.Equal(t, Increment{Stamp: inc.Stamp, Kind: inc.Kind, File: f.File, Start: f.Start, End: f.End, MD5: f.MD5, codec: inc.codec}, inc)
					require.Equal(t, strings.HasSuffix(f.File, "z"), inc.Codec() == "gzip")
					require.Equal(t, f.Start == 0, inc.Kind == Full)
				}
			}
			require.Equal(t, len(facts.Files), i)

			res, err := Verify(t.Context(), dir, VerifyOptions{})
			require.NoError(t, err)
			require.True(t, res.OK)
			require.Empty(t, res.NotChecked)
			res, err = Verify(t.Context(), dir, VerifyOptions{Quick: true})
			require.NoError(t, err)
			zipped := 0
			for _, f := range facts.Files {
				if strings.HasSuffix(f.File, "z") {
					zipped++
					require.Contains(t, strings.Join(res.NotChecked, "\n"), f.File+": repozo wrote it")
				}
			}
			require.Len(t, res.NotChecked, zipped, "what was not checked is said")
			l, err := List(t.Context(), dir)
			require.NoError(t, err)
			require.Empty(t, l.Problems)
			require.Len(t, l.Chains, len(chains))
			require.Equal(t, facts.Files[0].File, l.Chains[0].Increments[0].File)
			require.False(t, l.Chains[0].Increments[0].Manifest)
			require.Empty(t, l.Chains[0].Lineage)
			require.Equal(t, before, contents(t, dir), "reading changes nothing")

			// The next backup goes on with it.
			newest := lastChain(t, dir)
			sum := sha256.Sum256(newest)
			require.Equal(t, *facts.Recover[0].SHA256, hex.EncodeToString(sum[:]))
			data := filepath.Join(t.TempDir(), "Data.fs")
			require.NoError(t, os.WriteFile(data, newest, 0o644))
			now := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
			o := BackupOptions{Data: data, Repository: dir, Now: func() time.Time { return now }, Version: "test"}
			b, err := Backup(t.Context(), o)
			require.NoError(t, err)
			require.Equal(t, "none", b.Action)
			last := chains[len(chains)-1]
			ms := manifestsOf(t, dir)
			require.Len(t, ms, len(last.Increments), "the newest chain only")
			for i, m := range ms {
				f := facts.Files[len(facts.Files)-len(ms)+i]
				require.Equal(t, f.File, m.File)
				require.Equal(t, f.StoredSize, m.StoredSize)
				require.Equal(t, f.StoredSHA256, m.StoredSHA256)
				require.Equal(t, f.MD5, m.MD5)
				require.Equal(t, last.Stamp, m.Chain)
				require.Equal(t, b.Lineage, m.Lineage)
			}
			now = now.Add(time.Hour)
			g, err := fixtures.Open(data, fixtures.Options{Now: func() time.Time { return now }})
			require.NoError(t, err)
			_, err = g.Commit("admin", "after repozo", fixtures.Record{OID: 99, Data: []byte("data")})
			require.NoError(t, err)
			require.NoError(t, g.Close())
			b, err = Backup(t.Context(), o)
			require.NoError(t, err)
			require.Equal(t, "delta", b.Action)
			raw, err := os.ReadFile(data)
			require.NoError(t, err)
			same(t, raw, lastChain(t, dir))
			same(t, raw, repozoRecovers(t, dir))
			repozoVerifies(t, dir)
			res, err = Verify(t.Context(), dir, VerifyOptions{})
			require.NoError(t, err)
			require.True(t, res.OK)
			for name, what := range before {
				if !strings.HasSuffix(name, datExt) {
					require.Equal(t, what, contents(t, dir)[name], "repozo's files are not touched")
				}
			}
		})
	}
}

func TestADamagedIncrementOfRepozoIsNotAdopted(t *testing.T) {
	for _, file := range []string{"2024-03-02-01-00-00.fs", "2024-03-02-02-00-00.deltafs", "2024-12-31-23-59-59.deltafs"} {
		t.Run(file, func(t *testing.T) {
			dir := Dir(fixturetest.Copy(t, "repozo/plain"))
			data := filepath.Join(t.TempDir(), "Data.fs")
			require.NoError(t, os.WriteFile(data, lastChain(t, dir), 0o644))
			b, err := os.ReadFile(dir.Path(file))
			require.NoError(t, err)
			b[len(b)-30] ^= 1
			writeFile(t, dir.Path(file), string(b))
			_, err = Backup(t.Context(), BackupOptions{Data: data, Repository: dir})
			require.ErrorIs(t, err, fault.Unverified)
			require.ErrorContains(t, err, file)
			require.NotEmpty(t, fault.Next(err))
			require.NoFileExists(t, dir.Path(strings.TrimSuffix(file, filepath.Ext(file))+manifestExt))
			res, err := Backup(t.Context(), BackupOptions{Data: data, Repository: dir, Full: true})
			require.NoError(t, err)
			require.Equal(t, "full", res.Action)
		})
	}
}

// A Data.fs that is not the one of repozo's repository.
func TestRepozosRepositoryOfAnotherDatabase(t *testing.T) {
	w := newWorld(t)
	w.grow(3)
	w.repo = Dir(fixturetest.Copy(t, "repozo/gzip"))
	_, err := w.try()
	require.ErrorIs(t, err, fault.Diverged)
	require.ErrorContains(t, err, "shares no transaction with the repository")
	require.Empty(t, names(t, w.repo, ".tmp"))
	require.Equal(t, 2, len(repozoFiles(t, w.repo)), "the newest chain is as it was")
}

func TestDatLines(t *testing.T) {
	sum := strings.Repeat("ab", 16)
	for _, tt := range []struct {
		name, text string
		want       []datLine
		torn       bool
		err        string
	}{
		{"nothing", "", nil, false, ""},
		{"ours", "x.fsz 0 10 " + sum + "\n", []datLine{{"x.fsz", 0, 10, sum}}, false, ""},
		{"a path", "/a/b/x.fsz 0 10 " + sum + "\n", []datLine{{"x.fsz", 0, 10, sum}}, false, ""},
		{"a path with spaces", "/a b/c  1 2/x.fsz 0 10 " + sum + "\n", []datLine{{"x.fsz", 0, 10, sum}}, false, ""},
		{"a carriage return", "x.fsz 0 10 " + sum + "\r\n", []datLine{{"x.fsz", 0, 10, sum}}, false, ""},
		{"a last line without its end", "x.fsz 0 10 " + sum, []datLine{{"x.fsz", 0, 10, sum}}, true, ""},
		{"a last line cut in the md5", "x.fsz 0 10 " + sum + "\ny.deltafsz 10 20 abab", []datLine{{"x.fsz", 0, 10, sum}}, true, ""},
		{"a last line cut in the end", "x.fsz 0 10 " + sum + "\ny.deltafsz 10 2", []datLine{{"x.fsz", 0, 10, sum}}, true, ""},
		{"a bad line in the middle", "x.fsz 0 10 " + sum + "\nrubbish\ny.deltafsz 10 20 " + sum + "\n", nil, false, "line 2"},
		{"a negative start", "x.fsz -1 10 " + sum + "\n", nil, false, "line 1"},
		{"an end before the start", "x.fsz 10 9 " + sum + "\n", nil, false, "line 1"},
		{"an empty line", "\n", nil, false, "line 1"},
		{"a huge number", "x.fsz 0 99999999999999999999 " + sum + "\n", nil, false, "line 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lines, torn, err := parseDat([]byte(tt.text))
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, lines)
			require.Equal(t, tt.torn, torn)
			again, torn, err := parseDat(formatDat(lines))
			require.NoError(t, err)
			require.False(t, torn)
			require.Equal(t, lines, again)
		})
	}
}

func TestADatThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	dat := names(t, w.repo, datExt)[0]
	good, err := os.ReadFile(w.repo.Path(dat))
	require.NoError(t, err)
	writeFile(t, w.repo.Path(dat), string(good)+"rubbish\n")
	w.grow(1)
	before := contents(t, w.repo)
	_, err = w.try()
	require.ErrorContains(t, err, w.repo.Path(dat))
	require.ErrorContains(t, err, "line 2")
	require.Contains(t, fault.Next(err), "--full")
	require.Equal(t, before, contents(t, w.repo))
	_, err = Verify(t.Context(), w.repo, VerifyOptions{})
	require.ErrorContains(t, err, dat)
	require.Equal(t, "asked for", w.backup(full).Reason)
	same(t, w.committed(), lastChain(t, w.repo))
	same(t, w.committed(), repozoRecovers(t, w.repo))
}

// One manifest, one .dat: the cost of finding nothing to do does not grow with the repository.
func TestALongHistoryCostsNothing(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	for range 3 {
		w.grow(1)
		w.backup()
		w.backup(full)
	}
	// Old chains of repozo, of which none but the listing is looked at.
	for i := range 2000 {
		stamp := StampAt(time.Date(2001, 1, 1, i, 0, 0, 0, time.UTC))
		name, extra := string(stamp)+".deltafsz", ""
		if i%50 == 0 {
			name, extra = string(stamp)+".fsz", string(stamp)+datExt
		}
		writeFile(t, w.repo.Path(name), "")
		if extra != "" {
			writeFile(t, w.repo.Path(extra), "never read\n")
		}
	}
	b := &backup{BackupOptions: w.options()}
	require.NoError(t, b.prepare())
	b.announce = func() { t.Error("nothing is to be written") }
	require.NoError(t, b.openData(t.Context()))
	defer b.file.Close()
	res, err := b.run(t.Context())
	require.NoError(t, err)
	require.Equal(t, "none", res.Action)
	require.Len(t, b.repo.manifests, 1)
	require.Len(t, b.repo.dats, 1)
}

func TestAddingALineKeepsTheOrderOfPositions(t *testing.T) {
	w := newWorld(t)
	b := &backup{BackupOptions: w.options(), announce: func() {}}
	require.NoError(t, b.prepare())
	sum := hex.EncodeToString(make([]byte, md5.Size))
	for _, l := range []datLine{{"a", 0, 10, sum}, {"c", 20, 30, sum}, {"b", 10, 20, sum}, {"d", 30, 40, sum}} {
		require.NoError(t, b.list(t.Context(), "2024-01-01-00-00-00", l))
	}
	lines, _, err := readDat(t.Context(), w.repo, "2024-01-01-00-00-00")
	require.NoError(t, err)
	require.Equal(t, "abcd", lines[0].file+lines[1].file+lines[2].file+lines[3].file)
}
