package restore

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// vault is a database that grows and its repository, to recover from.
type vault struct {
	t     *testing.T
	g     *fixtures.Grower
	rng   *rand.Rand
	clock time.Time
	repo  incremental.Dir
}

func newVault(t *testing.T) *vault {
	v := &vault{t: t, rng: rand.New(rand.NewPCG(3, 4)), clock: time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC), repo: incremental.Dir(t.TempDir())}
	var err error
	v.g, err = fixtures.Create(filepath.Join(t.TempDir(), "Data.fs"), fixtures.Options{NoSync: true, Now: v.now})
	require.NoError(t, err)
	t.Cleanup(func() { v.g.Close() })
	return v
}

func (v *vault) now() time.Time { return v.clock }

func (v *vault) tick() { v.clock = v.clock.Add(time.Minute) }

// commit commits n transactions, a minute apart.
func (v *vault) commit(n int) {
	v.t.Helper()
	for range n {
		v.tick()
		_, err := v.g.CommitRandom(v.rng, 4, 300)
		require.NoError(v.t, err)
	}
}

func (v *vault) backup(change ...func(*incremental.BackupOptions)) incremental.BackupResult {
	v.t.Helper()
	return v.backupOf(v.g.Path(), change...)
}

func (v *vault) backupOf(path string, change ...func(*incremental.BackupOptions)) incremental.BackupResult {
	v.t.Helper()
	v.tick()
	o := incremental.BackupOptions{Data: path, Repository: v.repo, Now: v.now}
	for _, c := range change {
		c(&o)
	}
	res, err := incremental.Backup(v.t.Context(), o)
	require.NoError(v.t, err)
	return res
}

func (v *vault) bytes() []byte {
	v.t.Helper()
	b, err := os.ReadFile(v.g.Path())
	require.NoError(v.t, err)
	return b[:v.g.Size()]
}

func (v *vault) manifests() []*incremental.Manifest {
	v.t.Helper()
	repo, err := incremental.Open(v.t.Context(), v.repo)
	require.NoError(v.t, err)
	ms, problems, err := repo.Manifests(v.t.Context())
	require.NoError(v.t, err)
	require.Empty(v.t, problems)
	return ms
}

// moment is a transaction and the Data.fs that ends with it.
type moment struct {
	tid filestorage.TID
	raw []byte
	// gone: a pack has touched this transaction and one after it
	gone bool
}

// moments returns one for every transaction of a Data.fs.
func moments(t *testing.T, raw []byte) (ms []moment) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	require.NoError(t, os.WriteFile(path, raw, 0o644))
	f, c, err := filestorage.Open(path)
	require.NoError(t, err)
	defer c.Close()
	for txn, err := range f.Transactions(filestorage.MagicSize) {
		require.NoError(t, err)
		if txn.Status == filestorage.StatusPacked && len(ms) > 0 {
			ms[len(ms)-1].gone = true
		}
		ms = append(ms, moment{tid: txn.TID, raw: raw[:txn.End()]})
	}
	return ms
}

// at recovers to memory.
func (v *vault) at(tid filestorage.TID) ([]byte, error) {
	var b bytes.Buffer
	_, err := Recover(v.t.Context(), RecoverOptions{Source: v.repo, Stdout: &b, At: momentAt(tid)})
	return b.Bytes(), err
}

func (v *vault) requireAt(tid filestorage.TID, want []byte) {
	v.t.Helper()
	got, err := v.at(tid)
	require.NoError(v.t, err, "at %s", tid)
	requireSame(v.t, want, got)
}

// requireGap requires that the moment cannot be had, and that what is named instead can.
func (v *vault) requireGap(tid filestorage.TID, named ...filestorage.TID) error {
	v.t.Helper()
	got, err := v.at(tid)
	require.ErrorIs(v.t, err, fault.Gap)
	require.Empty(v.t, got, "bytes were written before the gap was told")
	for _, n := range named {
		require.Contains(v.t, fault.Next(err)+err.Error(), n.String())
		_, err := v.at(n)
		require.NoError(v.t, err, "what the remedy names must be had")
	}
	return err
}

// requireIndexed requires that the index beside path is accepted, and is that which is made afresh.
func requireIndexed(t *testing.T, path string) {
	t.Helper()
	f, c, err := filestorage.Open(path)
	require.NoError(t, err)
	defer c.Close()
	size, err := f.Size()
	require.NoError(t, err)
	got, err := os.ReadFile(path + ".index")
	require.NoError(t, err)
	var fresh filestorage.Index
	_, err = f.ExtendIndex(t.Context(), &fresh, filestorage.MagicSize, size, nil)
	require.NoError(t, err)
	var want bytes.Buffer
	require.NoError(t, filestorage.WriteIndex(&want, &fresh, size))
	require.True(t, bytes.Equal(want.Bytes(), got), "the index is not a fresh one")
	if fresh.Len() > 0 { // LoadIndex refuses an index of nothing
		_, pos, err := f.LoadIndex(path + ".index")
		require.NoError(t, err)
		require.Equal(t, size, pos)
	}
}

// requireClean requires that nothing but the output, its index and its lock is in its directory.
func requireClean(t *testing.T, output string, also ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(output))
	require.NoError(t, err)
	for _, e := range entries {
		ext, ok := strings.CutPrefix(e.Name(), filepath.Base(output))
		require.True(t, ok, e.Name())
		require.Contains(t, append([]string{"", ".index", ".lock"}, also...), ext)
	}
}

// flaky is a repository in which reading fails.
type flaky struct {
	incremental.Dir
	file  string // whose reading fails
	after int64  // bytes
	from  int    // the first opening that fails, from 1
	err   error

	opened int
}

func (f *flaky) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	r, err := f.Dir.Open(ctx, name)
	if err != nil || name != f.file {
		return r, err
	}
	if f.opened++; f.opened < f.from {
		return r, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, f.after), failing{f.err}), r}, nil
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func fixturesOpen(path string, now func() time.Time) (*fixtures.Grower, error) {
	return fixtures.Open(path, fixtures.Options{NoSync: true, Now: now})
}
