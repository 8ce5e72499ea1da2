package incremental

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

var crashPoints = []string{"stored", "renamed", "listed", "published"}

// A run that dies at any point, and the next one that dies too, leave what both tools read correctly, and what the
// run after them brings in order without a person.
func TestARunThatDiesAtAnyPointLosesAndDoublesNothing(t *testing.T) {
	for _, scenario := range []struct {
		name  string
		setup func(*world)
		with  []func(*BackupOptions)
		twice bool // die at every point in the second run too
		zstd  bool
	}{
		{"the first full", func(w *world) {}, nil, false, false},
		{"a delta", func(w *world) { w.backup() }, nil, true, false},
		{"the second delta, plain", func(w *world) { w.backup(); w.grow(1); w.backup() }, []func(*BackupOptions){plain}, false, false},
		{"a full that is asked for", func(w *world) { w.backup() }, []func(*BackupOptions){full}, false, false},
		{"a full after a pack", func(w *world) { w.backup(); w.grow(1); w.pack() }, nil, false, false},
		{"the adoption of repozo's", func(w *world) { w.backup(); w.grow(1); w.backup(plain); w.byRepozo() }, nil, true, false},
		{"the first full with zstd", func(w *world) {}, nil, false, true},
		{"a delta with zstd", func(w *world) { w.backup() }, nil, true, true},
		{"a full after a pack with zstd", func(w *world) { w.backup(); w.grow(1); w.pack() }, nil, false, true},
	} {
		for _, first := range crashPoints {
			for i, second := range append([]string{""}, crashPoints...) {
				if i > 1 && !scenario.twice {
					continue
				}
				t.Run(fmt.Sprintf("%s dies when %s, then when %q", scenario.name, first, second), func(t *testing.T) {
					t.Parallel()
					w := newWorld(t)
					w.zstd = scenario.zstd
					w.grow(4)
					scenario.setup(w)
					states := [][]byte{nil}
					if b := lastChain(t, w.repo); b != nil {
						states = [][]byte{b}
					}
					w.grow(2)
					states = append(states, w.committed())
					require.True(t, w.dieAt(first, 1, scenario.with...))
					w.isOneOf(states)
					switch i % 3 {
					case 1:
						w.grow(1)
					case 2:
						w.packAndGrowPast()
					}
					states = append(states, w.committed())
					if second != "" {
						w.dieAt(second, 1)
						w.isOneOf(states)
					}
					w.grow(i % 2)
					w.backup()
					w.whole()
					require.Empty(t, names(t, w.repo, ".tmp"))
					require.Empty(t, names(t, w.repo, unpublishedExt))
					require.Equal(t, "none", w.backup().Action)
					// Every transaction once: the chains are contiguous, and each is a history that Data.fs had.
					repo, err := Open(t.Context(), w.repo)
					require.NoError(t, err)
					unpublished, err := repo.Unpublished(t.Context())
					require.NoError(t, err)
					require.Empty(t, unpublished)
					chains, others, err := repo.Chains(t.Context())
					require.NoError(t, err)
					require.Empty(t, others)
					for _, c := range chains {
						require.Empty(t, c.Problems)
						b := chainBytes(t, repo, c)
						require.True(t, anyPrefix(append(states, w.committed()), b))
					}
				})
			}
		}
	}
}

// A manifest that names many blobs is written in many parts: a run may die between any two.
func TestARunThatDiesWithinAManifestIsFinishedByTheNext(t *testing.T) {
	for half := range 3 {
		w := newWorld(t)
		w.grow(3)
		w.backup()
		before := w.committed()
		doc, err := os.ReadFile(w.repo.Path(names(t, w.repo, manifestExt)[0]))
		require.NoError(t, err)
		w.grow(2)
		require.True(t, w.dieAt("listed", 1))
		manifest := w.repo.Path(strings.TrimSuffix(names(t, w.repo, ".deltafsz")[0], ".deltafsz") + manifestExt)
		require.NoFileExists(t, manifest)
		writeFile(t, manifest+durable.TempSuffix, string(doc[:len(doc)*half/2]))
		w.isOneOf([][]byte{before, w.committed()})
		w.backup()
		w.whole()
		require.FileExists(t, manifest)
		require.NoFileExists(t, manifest+durable.TempSuffix)
	}
}

func anyPrefix(states [][]byte, b []byte) bool {
	for _, s := range states {
		if bytes.HasPrefix(s, b) {
			return true
		}
	}
	return false
}

// isOneOf checks a repository as a run left it that died.
func (w *world) isOneOf(states [][]byte) {
	w.t.Helper()
	was := contents(w.t, w.repo)
	_, err := Verify(w.t.Context(), w.repo, VerifyOptions{})
	if err != nil {
		require.ErrorIs(w.t, err, fault.Gap)
		require.ErrorContains(w.t, err, "holds no increment")
	}
	ours, theirs := lastChain(w.t, w.repo), repozoRecovers(w.t, w.repo)
	if w.zstd {
		require.Nil(w.t, theirs, "repozo does not see it")
		theirs = ours
	}
	equal := func(b []byte) bool {
		for _, s := range states {
			if bytes.Equal(s, b) {
				return true
			}
		}
		return false
	}
	require.True(w.t, equal(ours), "what zodbrepl reads is a state of a backup")
	require.True(w.t, equal(theirs), "what repozo reads is a state of a backup")
	repozoVerifies(w.t, w.repo)
	require.Equal(w.t, was, contents(w.t, w.repo), "reading changes nothing")
}

func TestADeadRunsTemporaryFilesAreRemovedAndNothingElse(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	dead := []string{"2024-05-06-08-08-12.deltafsz.tmp", "2024-05-06-08-08-12.fs.tmp", "2024-05-06-08-08-12.dat.tmp",
		"2024-05-06-08-08-12.manifest.tmp", "zodbrepl.fence.tmp"}
	kept := []string{"tmp.tmp", "notes.tmp", "2024-05-06-08-08-12.notes.tmp", "2024-05-06-08-08-12.deltafsz.unpublished", "host.1a2b3c4d.standby.tmp"}
	for _, name := range append(dead, kept...) {
		writeFile(t, w.repo.Path(name), "left")
	}
	require.Equal(t, "none", w.backup().Action)
	for _, name := range dead {
		require.NoFileExists(t, w.repo.Path(name))
	}
	for _, name := range kept {
		require.FileExists(t, w.repo.Path(name))
	}
	w.grow(1)
	require.Equal(t, "delta", w.backup().Action)
	w.whole()
}

// A fenced or foreign node must not even tidy up.
func TestARefusedRunChangesNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		with func(*BackupOptions)
		kind error
	}{
		{"an older epoch than the repository's", epoch("", 1), fault.Refused},
		{"another lineage", epoch("0000", 3), fault.Diverged},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.grow(2)
			first := w.backup()
			w.grow(1)
			w.backup(epoch(first.Lineage, 2))
			w.grow(1)
			require.True(t, w.dieAt("listed", 1, epoch(first.Lineage, 2)))
			writeFile(t, w.repo.Path("2024-05-06-08-08-12.fs.tmp"), "left")
			require.NoError(t, os.Truncate(w.repo.Path(lockName), 0))
			before := snapshot(t, w.repo)
			_, err := w.try(tt.with)
			require.ErrorIs(t, err, tt.kind)
			require.Equal(t, before, snapshot(t, w.repo))
			_, err = w.try(tt.with, full)
			require.ErrorIs(t, err, tt.kind, "nor with --full")
			require.Equal(t, before, snapshot(t, w.repo))
		})
	}
}
