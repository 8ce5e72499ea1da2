package transport

import (
	"context"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
)

// master is a database that grows, and its repository.
type master struct {
	t    *testing.T
	g    *fixtures.Grower
	rng  *rand.Rand
	repo incremental.Dir
	now  time.Time
	bare bool // what it ships has no manifests
}

func newMaster(t *testing.T) *master {
	m := &master{t: t, rng: rand.New(rand.NewPCG(1, 2)), repo: incremental.Dir(t.TempDir()), now: time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC)}
	var err error
	m.g, err = fixtures.Create(filepath.Join(t.TempDir(), "Data.fs"), fixtures.Options{Now: func() time.Time { return m.now }, NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { m.g.Close() })
	return m
}

// backup commits some transactions and backs them up.
func (m *master) backup(change ...func(*incremental.BackupOptions)) incremental.BackupResult {
	m.t.Helper()
	for range 3 {
		m.now = m.now.Add(20 * time.Minute)
		_, err := m.g.CommitRandom(m.rng, 5, 500)
		require.NoError(m.t, err)
	}
	o := incremental.BackupOptions{Data: m.g.Path(), Repository: m.repo, Now: func() time.Time { return m.now }}
	for _, c := range change {
		c(&o)
	}
	res, err := incremental.Backup(m.t.Context(), o)
	require.NoError(m.t, err)
	return res
}

func full(o *incremental.BackupOptions) { o.Full = true }

// standard has two chains, of 3 and of 2 increments, with a pack between them.
func standard(t *testing.T) *master {
	m := newMaster(t)
	m.backup()
	m.backup()
	m.backup()
	require.NoError(t, m.g.Pack(m.g.LastTID()-1))
	require.Equal(t, "full", m.backup().Action)
	require.Equal(t, "delta", m.backup().Action)
	return m
}

// manifests returns those of the repository, oldest first.
func (m *master) manifests() []*incremental.Manifest {
	return manifests(m.t, m.repo)
}

func manifests(t *testing.T, dir incremental.Dir) []*incremental.Manifest {
	t.Helper()
	repo, err := incremental.Open(t.Context(), dir)
	require.NoError(t, err)
	ms, problems, err := repo.Manifests(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
	return ms
}

// stored is the number of bytes in the data files.
func stored(ms []*incremental.Manifest) (n int64) {
	for _, m := range ms {
		n += m.StoredSize
	}
	return n
}

// ship ships to directories and requires success.
func (m *master) ship(dirs ...string) []TargetResult {
	m.t.Helper()
	res, err := Ship(m.t.Context(), ShipOptions{Repository: m.repo, Targets: dirs})
	require.NoError(m.t, err)
	return res
}

// through ships to one directory through a faulty target.
func (m *master) through(ctx context.Context, dir string, f *faulty) (TargetResult, error) {
	m.t.Helper()
	res, err := Ship(ctx, ShipOptions{Repository: m.repo, Targets: []string{dir},
		open: func(ctx context.Context, where string) (Target, error) {
			var err error
			f.Target, err = OpenTarget(ctx, where, TargetOptions{})
			return f, err
		}})
	if len(res) == 0 {
		return TargetResult{}, err
	}
	return res[0], err
}

// tree returns the files below dir by name. Locks are not part of what is shipped.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		b, err := os.ReadFile(path)
		files[d.Name()] = string(b)
		return err
	}))
	return files
}

// same requires that the target has what the repository has, byte for byte.
func (m *master) same(dir string) {
	m.t.Helper()
	want, got := tree(m.t, string(m.repo)), tree(m.t, dir)
	for name := range want {
		require.True(m.t, want[name] == got[name], "%s differs", name)
	}
	require.Equal(m.t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	_, err := incremental.Verify(m.t.Context(), incremental.Dir(dir), incremental.VerifyOptions{})
	require.NoError(m.t, err)
}
