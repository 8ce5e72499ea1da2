package incremental

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/fixtures/fixturetest"
)

// world is a Data.fs that grows, and a repository.
type world struct {
	t    testing.TB
	g    *fixtures.Grower
	data string
	repo Dir
	now  time.Time // of backups and commits; moved by hand
	rng  *rand.Rand
	zstd bool // the repository is of zstd, else of repozo's family
}

func newZstdWorld(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.zstd = true
	return w
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := newWorldIn(t, t.TempDir())
	t.Cleanup(func() { w.g.Close() })
	return w
}

func newWorldIn(t testing.TB, dir string) *world {
	t.Helper()
	w := &world{t: t, data: filepath.Join(dir, "Data.fs"), repo: Dir(filepath.Join(dir, "repository")),
		now: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC), rng: rand.New(rand.NewPCG(1, 2))}
	require.NoError(t, os.Mkdir(string(w.repo), 0o755))
	g, err := fixtures.Create(w.data, fixtures.Options{Now: func() time.Time { return w.now }, NoSync: true})
	require.NoError(t, err)
	w.g = g
	return w
}

// grow commits n transactions.
func (w *world) grow(n int) {
	w.t.Helper()
	for range n {
		w.now = w.now.Add(time.Second)
		_, err := w.g.CommitRandom(w.rng, 3, 600)
		require.NoError(w.t, err)
	}
}

// growBy commits one transaction with a record of about n bytes that gzip cannot make small.
func (w *world) growBy(n int) {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(w.rng.Uint32())
	}
	_, err := w.g.Commit("admin", "big", fixtures.Record{OID: 1 << 40, Data: data})
	require.NoError(w.t, err)
}

func (w *world) pack() {
	w.t.Helper()
	before := w.g.Size()
	require.NoError(w.t, w.g.Pack(w.g.LastTID()))
	require.Less(w.t, w.g.Size(), before, "the pack freed something")
}

func (w *world) options(change ...func(*BackupOptions)) BackupOptions {
	o := BackupOptions{Data: w.data, Repository: w.repo, Version: "test", Now: func() time.Time { return w.now }}
	if w.zstd {
		o.Codec, o.Jobs = "zstd", 3
	}
	for _, c := range change {
		c(&o)
	}
	return o
}

func (w *world) try(change ...func(*BackupOptions)) (BackupResult, error) {
	return Backup(context.Background(), w.options(change...))
}

// backup makes one, an hour later than the last, and fails the test when it fails.
func (w *world) backup(change ...func(*BackupOptions)) BackupResult {
	w.t.Helper()
	w.now = w.now.Add(time.Hour)
	res, err := w.try(change...)
	require.NoError(w.t, err)
	return res
}

func full(o *BackupOptions)  { o.Full = true }
func deep(o *BackupOptions)  { o.Deep = true }
func plain(o *BackupOptions) { o.Codec = "none" }
func killOld(o *BackupOptions) {
	o.Full, o.KillOld = true, true
}

func at(t time.Time) func(*BackupOptions) {
	return func(o *BackupOptions) { o.Now = func() time.Time { return t } }
}

func epoch(lineage string, n int) func(*BackupOptions) {
	return func(o *BackupOptions) { o.Lineage, o.Epoch = lineage, n }
}

// through replaces the reader of Data.fs.
func through(wrap func(filestorage.Reader) filestorage.Reader) func(*BackupOptions) {
	return func(o *BackupOptions) {
		o.source = func(f filestorage.OSFile) filestorage.Reader { return wrap(f) }
	}
}

// killed is what a test panics with in the place of a SIGKILL.
type killed string

// dieAt makes a backup die when it comes to the point for the nth time. The lock is given back, as by the kernel.
func (w *world) dieAt(point string, nth int, change ...func(*BackupOptions)) (died bool) {
	w.t.Helper()
	defer func() {
		if r := recover(); r != nil {
			require.Equal(w.t, killed(point), r)
			died = true
		}
	}()
	change = append(change, func(o *BackupOptions) {
		o.crash = func(p string) {
			if p == point {
				if nth--; nth == 0 {
					panic(killed(point))
				}
			}
		}
	})
	_, err := w.try(change...)
	require.NoError(w.t, err)
	return false
}

// committed returns the committed bytes of Data.fs.
func (w *world) committed() []byte {
	w.t.Helper()
	b, err := os.ReadFile(w.data)
	require.NoError(w.t, err)
	return b[:w.g.Size()]
}

// whole checks all of the repository, with our eyes and with repozo's, and that its newest chain is Data.fs.
func (w *world) whole() {
	w.t.Helper()
	w.verifies()
	same(w.t, w.committed(), lastChain(w.t, w.repo))
	if w.zstd {
		require.Empty(w.t, repozoFiles(w.t, w.repo), "repozo does not see it")
		return
	}
	same(w.t, w.committed(), repozoRecovers(w.t, w.repo))
	repozoVerifies(w.t, w.repo)
}

func (w *world) verifies() {
	w.t.Helper()
	for _, quick := range []bool{true, false} {
		res, err := Verify(context.Background(), w.repo, VerifyOptions{Quick: quick})
		require.NoError(w.t, err)
		require.True(w.t, res.OK)
	}
}

// same compares without printing megabytes.
func same(t testing.TB, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	i := 0
	for i < min(len(want), len(got)) && want[i] == got[i] {
		i++
	}
	require.FailNow(t, "bytes differ", "at %d; %d wanted, %d there", i, len(want), len(got))
}

func lastChain(t testing.TB, dir Dir) []byte {
	t.Helper()
	repo, err := Open(context.Background(), dir)
	require.NoError(t, err)
	chains, _, err := repo.Chains(context.Background())
	require.NoError(t, err)
	if len(chains) == 0 {
		return nil
	}
	return chainBytes(t, repo, chains[len(chains)-1])
}

func chainBytes(t testing.TB, repo *Repository, c Chain) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, inc := range c.Increments {
		require.NoError(t, repo.Copy(context.Background(), inc, &b))
	}
	return b.Bytes()
}

// repozoFiles is repozo's own choice of files: by the listing, from the last full on (find_files in repozo.py).
func repozoFiles(t testing.TB, dir Dir) []string {
	t.Helper()
	entries, err := os.ReadDir(string(dir))
	require.NoError(t, err)
	var files []string
	for _, e := range slices.Backward(entries) {
		switch filepath.Ext(e.Name()) {
		case ".deltafs", ".deltafsz":
			files = append(files, e.Name())
		case ".fs", ".fsz":
			files = append(files, e.Name())
			slices.Reverse(files)
			return files
		}
	}
	return nil
}

func unzipped(t testing.TB, dir Dir, name string) []byte {
	t.Helper()
	f, err := os.Open(dir.Path(name))
	require.NoError(t, err)
	defer f.Close()
	r := io.Reader(f)
	if strings.HasSuffix(name, "z") {
		r, err = gzip.NewReader(f)
		require.NoError(t, err)
	}
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// repozoRecovers is repozo -R.
func repozoRecovers(t testing.TB, dir Dir) (b []byte) {
	t.Helper()
	for _, name := range repozoFiles(t, dir) {
		b = append(b, unzipped(t, dir, name)...)
	}
	return b
}

// repozoVerifies is repozo -V: what the newest .dat lists.
func repozoVerifies(t testing.TB, dir Dir) {
	t.Helper()
	files := repozoFiles(t, dir)
	if len(files) == 0 {
		return
	}
	dat, err := os.ReadFile(dir.Path(strings.TrimSuffix(files[0], filepath.Ext(files[0])) + ".dat"))
	require.NoError(t, err)
	for line := range strings.Lines(string(dat)) {
		f := strings.Fields(line)
		require.Len(t, f, 4, "repozo splits on white space")
		b := unzipped(t, dir, filepath.Base(f[0]))
		var start, end int
		_, err := fmt.Sscan(f[1]+" "+f[2], &start, &end)
		require.NoError(t, err)
		require.Len(t, b, end-start, line)
		sum := md5.Sum(b)
		require.Equal(t, f[3], hex.EncodeToString(sum[:]), line)
	}
}

// snapshot tells everything about a directory: names, contents, times.
func snapshot(t testing.TB, dir Dir) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(string(dir))
	require.NoError(t, err)
	for _, e := range entries {
		fi, err := e.Info()
		require.NoError(t, err)
		content := []byte("none")
		if fi.Mode().IsRegular() {
			content, err = os.ReadFile(dir.Path(e.Name()))
			require.NoError(t, err)
		}
		all[e.Name()] = fmt.Sprintf("%s %s %d %x", fi.Mode(), fi.ModTime(), fi.Size(), md5.Sum(content))
	}
	fi, err := os.Stat(string(dir))
	require.NoError(t, err)
	all["."] = fi.ModTime().String()
	return all
}

// contents is a snapshot without times, and without the lock, which a run leaves where there was none.
func contents(t testing.TB, dir Dir) map[string]string {
	t.Helper()
	all := snapshot(t, dir)
	delete(all, ".")
	delete(all, lockName)
	for name, what := range all {
		f := strings.Fields(what)
		all[name] = f[0] + " " + f[len(f)-1]
	}
	return all
}

func names(t testing.TB, dir Dir, suffix string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(string(dir))
	require.NoError(t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			found = append(found, e.Name())
		}
	}
	return found
}

// counting counts the bytes that are read.
type counting struct {
	filestorage.Reader
	bytes *atomic.Int64
}

func (c counting) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Reader.ReadAt(p, off)
	c.bytes.Add(int64(n))
	return n, err
}

func copyDir(t testing.TB, from Dir) Dir {
	t.Helper()
	to := filepath.Join(t.TempDir(), "repository")
	require.NoError(t, os.CopyFS(to, os.DirFS(string(from))))
	return Dir(to)
}

func manifestsOf(t testing.TB, dir Dir) []*Manifest {
	t.Helper()
	repo, err := Open(context.Background(), dir)
	require.NoError(t, err)
	ms, problems, err := repo.Manifests(context.Background())
	require.NoError(t, err)
	require.Empty(t, problems)
	return ms
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
}

func realFile(t testing.TB, name string) string { return fixturetest.Copy(t, name) }

// blobFacts is what the real ZODB says of the blobs of a file.
type blobFacts struct {
	refs []BlobRef
	ends []int64 // of the transactions
}

func goldenBlobs(t testing.TB, name string) (f blobFacts) {
	for _, txn := range fixturetest.Facts(t, name).Transactions {
		for _, r := range txn.Records {
			if r.IsBlob {
				f.refs = append(f.refs, BlobRef{r.OID, r.TID})
			}
		}
		f.ends = append(f.ends, txn.Pos+int64(txn.Length)+8)
	}
	return f
}

func blobsOf(t testing.TB, src Source, ms []*Manifest) (refs []BlobRef) {
	for _, m := range ms {
		n := len(refs)
		require.NoError(t, ReadBlobs(t.Context(), src, m.Stamp, func(ref BlobRef) { refs = append(refs, ref) }))
		require.EqualValues(t, m.Blobs, len(refs)-n)
	}
	return refs
}

// encode returns the document of a manifest.
func encode(t testing.TB, m *Manifest, blobs ...BlobRef) []byte {
	var b bytes.Buffer
	require.NoError(t, m.Write(&b, slices.Values(blobs)))
	return b.Bytes()
}
