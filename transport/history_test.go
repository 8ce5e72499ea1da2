package transport

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// twin is another repository of the same database: of another host, or of a promoted node.
func (m *master) twin() *master {
	m.t.Helper()
	twin := *m
	twin.repo = incremental.Dir(m.t.TempDir())
	require.NoError(m.t, os.CopyFS(string(twin.repo), os.DirFS(string(m.repo))))
	return &twin
}

func promoted(m *master) func(*incremental.BackupOptions) {
	man := m.manifests()[0]
	return func(o *incremental.BackupOptions) { o.Lineage, o.Epoch = man.Lineage, man.Epoch+1 }
}

// refuses requires that nothing is sent to dir, and returns the error.
func (m *master) refuses(dir string, kind error) error {
	m.t.Helper()
	before := tree(m.t, dir)
	res, err := Ship(m.t.Context(), ShipOptions{Repository: m.repo, Targets: []string{dir}})
	require.ErrorIs(m.t, err, kind)
	require.NotEmpty(m.t, fault.Next(err))
	require.NotEmpty(m.t, fault.Kept(err))
	require.Equal(m.t, before, tree(m.t, dir))
	if len(res) > 0 {
		require.Empty(m.t, res[0].Increments)
		require.Zero(m.t, res[0].Sent)
	}
	return err
}

func TestATargetOfAnotherDatabaseIsRefused(t *testing.T) {
	t.Run("whose increments are newer", func(t *testing.T) {
		m, other, dir := newMaster(t), newMaster(t), t.TempDir()
		m.backup()
		other.now = other.now.AddDate(1, 0, 0)
		other.backup()
		other.ship(dir)
		m.refuses(dir, fault.Diverged)
	})
	t.Run("whose increments are all older than ours", func(t *testing.T) {
		m, other, dir := newMaster(t), newMaster(t), t.TempDir()
		m.now = m.now.AddDate(1, 0, 0)
		m.backup()
		other.backup()
		other.ship(dir)
		m.refuses(dir, fault.Diverged)
	})
	t.Run("whose increments have our stamps", func(t *testing.T) {
		m, other, dir := newMaster(t), newMaster(t), t.TempDir()
		m.backup()
		other.backup()
		other.ship(dir)
		require.Equal(t, m.manifests()[0].Stamp, other.manifests()[0].Stamp)
		m.refuses(dir, fault.Diverged)
	})
}

func TestTwoMastersInOneEpochAreADivergence(t *testing.T) {
	t.Run("when the other's increment has a stamp of its own", func(t *testing.T) {
		m, dir := newMaster(t), t.TempDir()
		m.backup()
		other := m.twin()
		m.backup()
		other.backup()
		other.ship(dir)
		m.refuses(dir, fault.Diverged)
	})
	t.Run("when both made one in the same second", func(t *testing.T) {
		m, dir := newMaster(t), t.TempDir()
		m.backup()
		other := m.twin()
		m.backup()
		clock := m.now
		other.now = clock
		other.backup(func(o *incremental.BackupOptions) { o.Now = func() time.Time { return clock } })
		require.Equal(t, published(m.manifests()), published(other.manifests()))
		other.ship(dir)
		m.refuses(dir, fault.Diverged)
	})
}

func TestAHigherEpochOnTheTargetStopsAStaleMaster(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	m.ship(dir)
	other := m.twin()
	other.backup(promoted(m))
	other.ship(dir)
	m.backup()
	err := m.refuses(dir, fault.Refused)
	require.Equal(t, 3, fault.ExitCode(err))
	fence, err := incremental.ReadFence(t.Context(), m.repo)
	require.NoError(t, err)
	require.Equal(t, 2, fence.Epoch)
	require.Equal(t, m.manifests()[0].Lineage, fence.Lineage)
	require.Contains(t, fence.Where, dir)
	// From now on it refuses everywhere.
	m.refuses(t.TempDir(), fault.Refused)
	_, err = incremental.Backup(t.Context(), incremental.BackupOptions{Data: m.g.Path(), Repository: m.repo, Full: true})
	require.ErrorIs(t, err, fault.Refused)
	// The new master goes on.
	other.backup(promoted(m))
	require.Len(t, other.ship(dir)[0].Increments, 1)
}

func TestAnIncrementOfAStaleMasterOnTheTargetDoesNotStopTheNewOne(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	m.ship(dir)
	other := m.twin()
	m.backup() // stale: it does not know yet
	m.ship(dir)
	other.backup(promoted(m))
	res := other.ship(dir)[0]
	require.Len(t, res.Increments, 1)
}

func TestAPromotedStandbyOnTheTargetStopsTheFormerMaster(t *testing.T) {
	m := newMaster(t)
	m.backup()
	own := m.manifests()[0]
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()}
	m.ship(dirs...)
	for _, dir := range dirs { // all raise the fence at once
		target, err := OpenTarget(t.Context(), dir, TargetOptions{})
		require.NoError(t, err)
		a := answer()
		a.Lineage, a.Epoch, a.Role = own.Lineage, own.Epoch+1, "promoted"
		require.NoError(t, SendAnswer(t.Context(), target, a))
	}
	m.backup()
	res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: dirs})
	require.ErrorIs(t, err, fault.Refused)
	for _, r := range res {
		require.Contains(t, r.Error, "promoted")
		require.NotContains(t, r.Error, "recorded")
		require.Len(t, r.Standbys, 1, "its answer is shown all the same")
		require.Zero(t, r.Sent)
	}
	fence, err := incremental.ReadFence(t.Context(), m.repo)
	require.NoError(t, err)
	require.Equal(t, own.Epoch+1, fence.Epoch)
	require.NoFileExists(t, m.repo.Path("zodbrepl.fence.tmp"))
}

func TestAFenceThatCannotBeRecordedIsStillARefusal(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	m.ship(dir)
	other := m.twin()
	other.backup(promoted(m))
	other.ship(dir)
	m.backup()
	require.NoError(t, os.Mkdir(m.repo.Path("zodbrepl.fence.tmp"), 0o755)) // it cannot be written
	err := m.refuses(dir, fault.Refused)
	require.ErrorContains(t, err, "could not be recorded")
}

func TestAnswersOfStandbysAreRead(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	target, err := OpenTarget(t.Context(), dir, TargetOptions{})
	require.NoError(t, err)
	own, foreign := answer(), answer()
	own.Lineage, own.Epoch = m.manifests()[0].Lineage, m.manifests()[0].Epoch
	foreign.Data, foreign.Epoch, foreign.Condition, foreign.Message = "/other", 99, "gap", "a piece is missing"
	require.NoError(t, SendAnswer(t.Context(), target, own))
	require.NoError(t, SendAnswer(t.Context(), target, foreign))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bad.standby"), []byte("{nonsense"), 0o644))
	log, said := logged()
	res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{dir}, Log: log})
	require.NoError(t, err)
	require.ElementsMatch(t, []incremental.Answer{own, foreign}, res[0].Standbys)
	require.Contains(t, said.String(), "bad.standby")
	require.Contains(t, said.String(), "a piece is missing")
	require.Len(t, res[0].Increments, 1)
}

func TestAStaleIncrementInTheSourceIsNoGap(t *testing.T) {
	m := newMaster(t)
	m.backup()
	other := m.twin()
	m.backup(promoted(m))
	other.now = m.now.AddDate(0, 0, 1)
	other.backup() // the stale master's, carried into the new master's repository
	stale := other.manifests()[1]
	for _, name := range []string{stale.File, incremental.ManifestName(stale.Stamp)} {
		b, err := os.ReadFile(other.repo.Path(name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(m.repo.Path(name), b, 0o644))
	}
	log, said := logged()
	dir := t.TempDir()
	res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{dir}, Log: log})
	require.NoError(t, err)
	require.Len(t, res[0].Increments, 2)
	require.NoFileExists(t, filepath.Join(dir, stale.File))
	require.Contains(t, said.String(), stale.File)
}

func TestManyTargetsAtOnceEachGetAll(t *testing.T) {
	m := standard(t)
	var dirs []string
	for range 6 {
		dirs = append(dirs, t.TempDir())
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: dirs, Progress: func(p ShipProgress) {
		mu.Lock()
		defer mu.Unlock()
		seen[p.Target] = true
	}})
	require.NoError(t, err)
	require.Len(t, seen, len(dirs))
	for i, dir := range dirs {
		require.Equal(t, dir, res[i].Target)
		m.same(dir)
	}
}
