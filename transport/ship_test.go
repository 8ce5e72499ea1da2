package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"zodbrepl/fixtures/fixturetest"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestShipSendsOldestFirstAndTheManifestLast(t *testing.T) {
	m := standard(t)
	f := &faulty{}
	res, err := m.through(t.Context(), t.TempDir(), f)
	require.NoError(t, err)
	var want []string
	for _, man := range m.manifests() {
		for _, name := range []string{man.File, string(man.Chain) + ".dat", incremental.ManifestName(man.Stamp)} {
			want = append(want, "put "+name, "publish "+name)
		}
	}
	require.Equal(t, want, f.log)
	require.Equal(t, published(m.manifests()), res.Increments)
	require.Equal(t, stored(m.manifests()), res.Sent)
	require.Zero(t, res.Resumed)
}

func TestShipSendsOnlyWhatIsMissing(t *testing.T) {
	m := standard(t)
	dir := t.TempDir()
	m.ship(dir)
	before := tree(t, dir)
	f := &faulty{}
	res, err := m.through(t.Context(), dir, f)
	require.NoError(t, err)
	require.Empty(t, f.log, "nothing is new")
	require.Equal(t, TargetResult{Target: dir, Increments: []incremental.Stamp{}, Standbys: []incremental.Answer{}}, res)
	require.Equal(t, before, tree(t, dir))
	m.backup()
	last := m.manifests()[5]
	res = m.ship(dir)[0]
	require.Equal(t, []incremental.Stamp{last.Stamp}, res.Increments)
	require.Equal(t, last.StoredSize, res.Sent)
	m.same(dir)
}

// At every call, the .dat on the target lists only what is there, whole.
func TestTheDatOnTheTargetListsOnlyWhatIsThere(t *testing.T) {
	m := standard(t)
	dir := incremental.Dir(t.TempDir())
	calls := 0
	f := &faulty{before: func(call string) {
		calls++
		for name, content := range tree(t, string(dir)) {
			if !strings.HasSuffix(name, ".dat") {
				continue
			}
			for line := range strings.Lines(content) {
				name := strings.Fields(line)[0]
				got, err := os.ReadFile(dir.Path(name))
				if err != nil {
					t.Errorf("at %q: %v", call, err)
					return
				}
				want, _ := os.ReadFile(m.repo.Path(name))
				if !bytes.Equal(want, got) {
					t.Errorf("at %q: %s is not whole", call, name)
				}
			}
		}
	}}
	_, err := m.through(t.Context(), string(dir), f)
	require.NoError(t, err)
	require.Greater(t, calls, 30)
	m.same(string(dir))
}

func TestWhatWasChangedOnTheTargetIsRepaired(t *testing.T) {
	m := standard(t)
	dir := incremental.Dir(t.TempDir())
	first, second := m.manifests()[0], m.manifests()[1]
	for _, c := range []struct {
		name, file string
		content    []byte // nil: removed
	}{
		{"a full that was cut", first.File, []byte("x")},
		{"a delta that was cut, with others behind it", second.File, []byte("x")},
		{"a full that was removed", first.File, nil},
		{"a manifest that was cut", incremental.ManifestName(first.Stamp), []byte("{")},
		{"a manifest that was removed", incremental.ManifestName(second.Stamp), nil},
		{"a .dat that was cut", string(first.Chain) + ".dat", []byte(first.DatLine())},
		{"a .dat that was removed", string(first.Chain) + ".dat", nil},
		{"the newest manifest cut", incremental.ManifestName(m.manifests()[4].Stamp), []byte("{}")},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.ship(string(dir))
			require.NoError(t, os.Remove(dir.Path(c.file)))
			if c.content != nil {
				require.NoError(t, os.WriteFile(dir.Path(c.file), c.content, 0o644))
			}
			m.ship(string(dir))
			m.same(string(dir))
		})
	}
}

func TestADamagedIncrementIsNotShipped(t *testing.T) {
	m := newMaster(t)
	m.backup()
	m.backup()
	m.backup()
	bad := m.manifests()[1]
	b, err := os.ReadFile(m.repo.Path(bad.File))
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(m.repo.Path(bad.File), b, 0o644))
	dir := t.TempDir()
	res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{dir}})
	require.ErrorIs(t, err, fault.Unverified)
	require.ErrorContains(t, err, bad.File)
	require.NotEmpty(t, fault.Next(err))
	require.Equal(t, []incremental.Stamp{m.manifests()[0].Stamp}, res[0].Increments)
	require.Equal(t, m.manifests()[0].StoredSize, res[0].Sent)
	require.NoFileExists(t, filepath.Join(dir, bad.File))
	usable(t, dir)
}

func TestShipWithAGapInTheSource(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(m *master, ms []*incremental.Manifest) error
		sent   int // increments that arrive
		kind   error
	}{
		{"a delta of the newest chain is missing: what is before it arrives",
			func(m *master, ms []*incremental.Manifest) error { return os.Remove(m.repo.Path(ms[4].File)) }, 4, fault.Gap},
		{"a delta and its manifest are missing, which the .dat tells",
			func(m *master, ms []*incremental.Manifest) error {
				return errors.Join(os.Remove(m.repo.Path(ms[4].File)), os.Remove(m.repo.Path(incremental.ManifestName(ms[4].Stamp))))
			}, 4, fault.Gap},
		{"the newest full's manifest cannot be read: the chains before arrive",
			func(m *master, ms []*incremental.Manifest) error {
				return os.WriteFile(m.repo.Path(incremental.ManifestName(ms[3].Stamp)), []byte("{"), 0o644)
			}, 3, fault.Unverified},
		{"a gap in an old chain is no error: it was replaced",
			func(m *master, ms []*incremental.Manifest) error { return os.Remove(m.repo.Path(ms[2].File)) }, 4, nil},
	} {
		for _, there := range []bool{false, true} { // whether the target has all of it already
			t.Run(fmt.Sprint(c.name, ", there before: ", there), func(t *testing.T) {
				m, dir := standard(t), t.TempDir()
				ms := m.manifests()
				if there {
					m.ship(dir)
				}
				before := tree(t, dir)
				require.NoError(t, c.damage(m, ms))
				res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{dir}})
				require.Equal(t, c.kind != nil, err != nil, "%v", err)
				if c.kind != nil {
					require.ErrorIs(t, err, c.kind)
					require.NotErrorIs(t, err, fault.Diverged)
				}
				if there {
					require.Empty(t, res[0].Increments)
					require.Equal(t, before[ms[0].File], tree(t, dir)[ms[0].File])
					require.FileExists(t, filepath.Join(dir, ms[4].File), "the target keeps what the source lost")
					return
				}
				require.Len(t, res[0].Increments, c.sent)
				usable(t, dir)
			})
		}
	}
}

func TestRepositoriesThatCannotBeShipped(t *testing.T) {
	for _, c := range []struct {
		name string
		repo func(t *testing.T) string
		kind error
		next string
	}{
		{"one that is empty", func(t *testing.T) string { return t.TempDir() }, fault.Gap, "zodbrepl backup"},
		{"one that repozo made alone", func(t *testing.T) string { return fixturetest.Copy(t, "repozo/gzip") }, fault.Gap, "zodbrepl backup"},
		{"one that is missing", func(t *testing.T) string { return filepath.Join(t.TempDir(), "x") }, nil, "mkdir"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			repo := c.repo(t)
			_, err := Ship(t.Context(), ShipOptions{Repository: incremental.Dir(repo), Targets: []string{dir}})
			require.Error(t, err)
			if c.kind != nil {
				require.ErrorIs(t, err, c.kind)
			}
			require.Contains(t, fault.Next(err), c.next)
			require.Empty(t, tree(t, dir))
		})
	}
}

func TestTargetsThatCannotBeShippedTo(t *testing.T) {
	m := newMaster(t)
	m.backup()
	for _, c := range []struct {
		name  string
		where func(t *testing.T) string
		says  string
		code  int
	}{
		{"a missing one", func(t *testing.T) string { return filepath.Join(t.TempDir(), "x") }, "does not exist", 1},
		{"a file", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "f")
			require.NoError(t, os.WriteFile(path, nil, 0o644))
			return path
		}, "not a directory", 1},
		{"the repository itself", func(*testing.T) string { return string(m.repo) }, "repository itself", 2},
		{"the repository itself through a link", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "l")
			require.NoError(t, os.Symlink(string(m.repo), path))
			return path
		}, "repository itself", 2},
		{"an unknown scheme", func(*testing.T) string { return "gopher://x" }, "gopher", 2},
		{"nothing", func(*testing.T) string { return "" }, "empty", 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			good, bad := t.TempDir(), c.where(t)
			before := tree(t, string(m.repo))
			res, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{bad, good}})
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, bad)
			require.Equal(t, c.code, fault.ExitCode(err))
			require.NotEmpty(t, fault.Next(err))
			require.Equal(t, before, tree(t, string(m.repo)))
			if c.code == 2 {
				require.Nil(t, res)
				require.Empty(t, tree(t, good), "a wrong argument is told before anything is sent")
				return
			}
			require.NotEmpty(t, res[0].Error)
			require.Empty(t, res[1].Error)
			m.same(good)
		})
	}
}

func TestFailuresOfATargetSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		err  error
		says string
	}{
		{&os.PathError{Op: "open", Path: "x", Err: unix.EROFS}, "cannot be written"},
		{&os.PathError{Op: "open", Path: "x", Err: unix.EACCES}, "cannot be written"},
		{&os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC}, "is full"},
		{&os.PathError{Op: "write", Path: "x", Err: unix.EDQUOT}, "is full"},
		{&os.PathError{Op: "write", Path: "x", Err: unix.EIO}, "/mnt"},
	} {
		err := dirTarget{Dir: "/mnt"}.explain(c.err)
		require.ErrorContains(t, err, c.says)
		require.ErrorIs(t, err, c.err)
		require.Equal(t, c.says == "/mnt", fault.Next(err) == "")
	}
}

// closing tells when a target was closed.
type closing struct {
	Target
	closed chan struct{}
}

func (c closing) Close() error {
	defer close(c.closed)
	return c.Target.Close()
}

func TestATargetThatHangsOrIsDeadHoldsBackNoOther(t *testing.T) {
	m := standard(t)
	hanging, dead, good := t.TempDir(), t.TempDir(), t.TempDir()
	release, closed, reached := make(chan struct{}), make(chan struct{}), make(chan struct{})
	type outcome struct {
		res []TargetResult
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		res, err := Ship(context.Background(), ShipOptions{Repository: m.repo, Targets: []string{hanging, dead, good},
			open: func(ctx context.Context, where string) (Target, error) {
				target, err := OpenTarget(ctx, where, TargetOptions{})
				switch where {
				case hanging:
					hung := false
					return &faulty{Target: target, before: func(call string) {
						if strings.HasPrefix(call, "put") && !hung {
							hung = true
							close(reached)
							<-release
						}
					}}, err
				case dead:
					return nil, errDead
				}
				return closing{target, closed}, err
			}})
		done <- outcome{res, err}
	}()
	<-reached
	<-closed // the good one was served while the other hung
	m.same(good)
	require.Empty(t, tree(t, hanging))
	close(release)
	got := <-done
	require.ErrorIs(t, got.err, errDead)
	require.ErrorContains(t, got.err, dead)
	require.NotContains(t, got.err.Error(), good)
	require.Equal(t, []string{hanging, dead, good}, []string{got.res[0].Target, got.res[1].Target, got.res[2].Target})
	require.Equal(t, []bool{true, false, true}, []bool{got.res[0].Error == "", got.res[1].Error == "", got.res[2].Error == ""})
	m.same(hanging)
}

func TestTwoShipsToOneTargetAtOnce(t *testing.T) {
	m := newMaster(t)
	m.backup()
	dir := t.TempDir()
	inside, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		once := false
		_, err := m.through(context.Background(), dir, &faulty{before: func(string) {
			if !once {
				once = true
				close(inside)
				<-release
			}
		}})
		done <- err
	}()
	<-inside
	for _, spelled := range []string{dir, dir + "/", "file://" + dir} {
		_, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{spelled}})
		require.ErrorIs(t, err, fault.Busy, spelled)
		require.Equal(t, 75, fault.ExitCode(err))
	}
	m.ship(t.TempDir()) // another target is another matter
	close(release)
	require.NoError(t, <-done)
	m.same(dir)
	_, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{dir, dir}})
	require.True(t, err == nil || errors.Is(err, fault.Busy), "%v", err)
}

// Another that ships to the same place, as one that was promoted does, clears up what it takes for left over.
func TestWhatAnotherHasClearedAwayIsToldAndSentAgain(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	man := m.manifests()[0]
	for _, name := range []string{man.File, string(man.Stamp) + ".dat", incremental.ManifestName(man.Stamp)} {
		_, err := m.through(t.Context(), dir, &faulty{before: func(call string) {
			if call == "publish "+name {
				require.NoError(t, os.Remove(filepath.Join(dir, name+".tmp")))
			}
		}})
		require.ErrorContains(t, err, name+" was removed there")
		require.Equal(t, 1, fault.ExitCode(err))
		require.Contains(t, fault.Next(err), "ship again")
		require.NotEmpty(t, fault.Kept(err))
		require.NoFileExists(t, filepath.Join(dir, name))
	}
	m.ship(dir)
	m.same(dir)
}

func TestATargetThatWasPrunedIsNotFilledAgain(t *testing.T) {
	m, dir := standard(t), incremental.Dir(t.TempDir())
	m.ship(string(dir))
	for name := range tree(t, string(dir)) {
		if name < string(m.manifests()[3].Chain) {
			require.NoError(t, os.Remove(dir.Path(name)))
		}
	}
	m.backup()
	res := m.ship(string(dir))[0]
	require.Len(t, res.Increments, 1)
	require.Len(t, manifests(t, dir), 3)
	_, err := incremental.Verify(t.Context(), dir, incremental.VerifyOptions{})
	require.NoError(t, err)
}

func TestASourceThatWasPrunedLeavesTheTargetAlone(t *testing.T) {
	m, dir := standard(t), incremental.Dir(t.TempDir())
	m.ship(string(dir))
	m.backup(full, func(o *incremental.BackupOptions) { o.KillOld = true })
	require.Len(t, m.manifests(), 1)
	require.Len(t, m.ship(string(dir))[0].Increments, 1)
	require.Len(t, manifests(t, dir), 6)
	_, err := incremental.Verify(t.Context(), dir, incremental.VerifyOptions{})
	require.NoError(t, err)
}

func TestShipEndsWithItsContext(t *testing.T) {
	m, dir := standard(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Ship(ctx, ShipOptions{Repository: m.repo, Targets: []string{dir},
		Progress: func(p ShipProgress) {
			target, file, done, total := p.Target, p.File, p.Done, p.Total
			if target != dir || done > total || !slices.Contains([]string{m.manifests()[0].File}, file) {
				t.Errorf("progress of %s to %s: %d of %d", file, target, done, total)
			}
			cancel()
		}})
	require.ErrorIs(t, err, context.Canceled)
	m.ship(dir)
	m.same(dir)
}

// logged collects what is logged.
func logged() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}
