package restore

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// twoChains has a chain of three increments and, after a pack, one of three.
func twoChains(t *testing.T) (v *vault, first, second []moment) {
	v = newVault(t)
	for range 3 {
		v.commit(2)
		v.backup()
	}
	first = moments(t, v.bytes())
	require.NoError(t, v.g.Pack(first[5].tid))
	for range 3 {
		v.commit(2)
		v.backup()
	}
	return v, first, moments(t, v.bytes())
}

func (v *vault) remove(names ...string) {
	v.t.Helper()
	for _, n := range names {
		require.NoError(v.t, os.Remove(v.repo.Path(n)))
	}
}

// A piece is missing: what was before it can be recovered, what comes after it is refused, and the remedy works.
func TestAGapNamesWhatCanBeHad(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(v *vault, ms []*incremental.Manifest)
		whole  int // increments of the newest chain that are before the damage
	}{
		{"the last delta's file is missing", func(v *vault, ms []*incremental.Manifest) { v.remove(ms[5].File) }, 2},
		{"the last delta and its manifest are missing", func(v *vault, ms []*incremental.Manifest) {
			v.remove(ms[5].File, incremental.ManifestName(ms[5].Stamp))
		}, 2},
		{"a delta in the middle is missing", func(v *vault, ms []*incremental.Manifest) { v.remove(ms[4].File) }, 1},
		{"a manifest in the middle cannot be read", func(v *vault, ms []*incremental.Manifest) {
			require.NoError(v.t, os.WriteFile(v.repo.Path(incremental.ManifestName(ms[4].Stamp)), []byte("{"), 0o644))
		}, 1},
		{"a delta in the middle is a symbolic link", func(v *vault, ms []*incremental.Manifest) {
			require.NoError(v.t, os.Rename(v.repo.Path(ms[4].File), v.repo.Path("elsewhere")))
			require.NoError(v.t, os.Symlink("elsewhere", v.repo.Path(ms[4].File)))
		}, 1},
		{"the newest full cannot be used", func(v *vault, ms []*incremental.Manifest) {
			require.NoError(v.t, os.WriteFile(v.repo.Path(incremental.ManifestName(ms[3].Stamp)), []byte("{"), 0o644))
		}, 0},
		{"the .dat cannot be read", func(v *vault, ms []*incremental.Manifest) {
			require.NoError(v.t, os.WriteFile(v.repo.Path(string(ms[3].Chain)+".dat"), []byte("no\nlines\n"), 0o644))
		}, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, first, second := twoChains(t)
			ms := v.manifests()
			c.damage(v, ms)
			last := first[5].tid // that can still be had
			if c.whole > 0 {
				last = ms[2+c.whole].LastTID
			}
			err := v.requireGap(0, last)
			require.ErrorContains(t, err, "broken")
			for _, m := range first {
				v.requireAt(m.tid, m.raw)
			}
			for _, m := range second {
				switch {
				case m.tid <= first[5].tid:
				case m.tid <= last:
					v.requireAt(m.tid, m.raw)
				default:
					v.requireGap(m.tid, last)
				}
			}
			v.requireGap(second[len(second)-1].tid+1, last)
		})
	}
}

func TestADateBeforeAGapCanBeHad(t *testing.T) {
	v, _, second := twoChains(t)
	ms := v.manifests()
	v.remove(ms[5].File)
	until := func(s incremental.Stamp) ([]byte, error) {
		var b bytes.Buffer
		_, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Stdout: &b, Until: s})
		return b.Bytes(), err
	}
	got, err := until(ms[4].Stamp)
	require.NoError(t, err)
	requireSame(t, second[len(second)-3].raw, got)
	// A date that ends early, as repozo takes them, is before the gap: strings are compared.
	_, err = until(ms[5].Stamp)
	require.ErrorIs(t, err, fault.Gap)
	_, err = until(ms[5].Stamp[:len(ms[5].Stamp)-1])
	require.NoError(t, err)
	_, err = until("2030")
	require.ErrorIs(t, err, fault.Gap)
	_, err = until("2023")
	require.ErrorIs(t, err, fault.Gap)
}

func TestAnEmptyRepositoryGivesNothing(t *testing.T) {
	v := newVault(t)
	v.requireGap(0)
	v.requireGap(1 << 60)
	require.NoError(t, os.WriteFile(v.repo.Path("2024-03-01-10-00-00.deltafsz"), nil, 0o644))
	err := v.requireGap(0)
	require.ErrorContains(t, err, "without a full")
}

// another copies the repository as it is now, as a stale master has it.
func (v *vault) another() *vault {
	v.t.Helper()
	other := *v
	other.repo = incremental.Dir(v.t.TempDir())
	require.NoError(v.t, os.CopyFS(string(other.repo), os.DirFS(string(v.repo))))
	return &other
}

// take carries an increment from another repository into this one.
func (v *vault) take(other *vault, m *incremental.Manifest) {
	v.t.Helper()
	for _, n := range []string{m.File, incremental.ManifestName(m.Stamp)} {
		require.NoError(v.t, os.WriteFile(v.repo.Path(n), read(v.t, other.repo.Path(n)), 0o644))
	}
}

func TestWhatAStaleMasterWroteIsNotRecovered(t *testing.T) {
	for _, kind := range []string{"delta", "full"} {
		t.Run("a "+kind, func(t *testing.T) {
			v := newVault(t)
			v.commit(2)
			v.backup()
			stale := v.another()
			lineage := v.manifests()[0].Lineage
			promoted := func(o *incremental.BackupOptions) { o.Lineage, o.Epoch = lineage, 2 }
			v.commit(2)
			v.backup(promoted)
			want := moments(t, v.bytes())
			stale.clock = v.clock.Add(time.Minute)
			stale.commit(2) // the same file goes on; what matters is who writes
			stale.backup(func(o *incremental.BackupOptions) { o.Full = kind == "full" })
			ms := stale.manifests()
			require.EqualValues(t, kind, ms[1].Kind)
			v.take(stale, ms[1])
			for _, m := range want {
				v.requireAt(m.tid, m.raw)
			}
			v.requireAt(0, want[3].raw)
			v.requireAt(ms[1].LastTID, want[3].raw)
			var log bytes.Buffer
			_, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Stdout: &bytes.Buffer{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
			require.NoError(t, err)
			require.Equal(t, kind == "full", bytes.Contains(log.Bytes(), []byte("stale master")))
		})
	}
}

func TestTwoDatabasesInOneRepositoryAreRefused(t *testing.T) {
	v, other := newVault(t), newVault(t)
	v.commit(2)
	v.backup()
	other.clock = v.clock.Add(time.Hour)
	other.commit(2)
	other.backup()
	v.take(other, other.manifests()[0])
	for _, at := range []filestorage.TID{0, v.g.LastTID(), other.g.LastTID()} {
		got, err := v.at(at)
		require.ErrorIs(t, err, fault.Diverged)
		require.NotEmpty(t, fault.Next(err))
		require.Empty(t, got)
	}
}

func TestAChainOfRepozoThatCannotBeReadDoesNotHideAnother(t *testing.T) {
	v := newVault(t)
	v.commit(2)
	v.backup()
	first := v.manifests()[0]
	v.commit(2)
	v.backup(full)
	all := moments(t, v.bytes())
	v.remove(incremental.ManifestName(first.Stamp)) // now as repozo would have made it
	v.requireAt(all[1].tid, all[1].raw)
	require.NoError(t, os.WriteFile(v.repo.Path(first.File), []byte("damaged"), 0o644))
	for _, m := range all {
		v.requireAt(m.tid, m.raw) // the full has it too
	}
	_, err := v.at(all[0].tid - 1)
	require.ErrorIs(t, err, fault.Unverified, "the damaged chain may have had it")
}

func TestARecoveryEndsWithItsContext(t *testing.T) {
	r := newRecoveries(t)
	for _, how := range outputs {
		before := r.before(how)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Recover(ctx, RecoverOptions{Source: r.repo, Output: r.out, Progress: func(int64, int64) { cancel() }})
		require.ErrorIs(t, err, context.Canceled)
		requireUnchanged(t, before, filepath.Dir(r.out))
	}
}
