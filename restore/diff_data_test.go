package restore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
)

// The headers of two histories may be the same although their data is not, which the proofs at the end show.
func TestDiffReadsDataWhereAProofDoesNotHold(t *testing.T) {
	for _, how := range []struct{ later, packed bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		v := newVault(t)
		v.commit(3)
		v.backup()
		v.commit(1)
		if how.packed {
			require.NoError(t, v.g.Pack(v.g.LastTID()))
		}
		before := lastBoundary(t, v.g)
		altered := filepath.Join(t.TempDir(), "Data.fs")
		b := v.bytes()
		b[len(b)-8-42-1] ^= 1 // of the last record's data
		require.NoError(t, os.WriteFile(altered, b, 0o644))
		other := incremental.Dir(t.TempDir())
		require.NoError(t, os.CopyFS(string(other), os.DirFS(string(v.repo))))
		last := v.g.LastTID()
		v.backup()
		g, err := fixtures.Open(altered, fixtures.Options{NoSync: true, Now: v.now})
		require.NoError(t, err)
		defer g.Close()
		only := 0
		if how.later {
			v.tick()
			_, err = g.CommitRandom(v.rng, 4, 300)
			require.NoError(t, err)
			only = 1
		}
		v.backupOf(altered, func(o *incremental.BackupOptions) { o.Repository = other })
		for _, c := range []struct{ name, a, b string }{
			{"two files", v.g.Path(), altered},
			{"a repository and a file", string(v.repo), altered},
			{"a file and a repository", v.g.Path(), string(other)},
			{"two repositories", string(v.repo), string(other)},
		} {
			for _, turned := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, turned %v, %+v", c.name, turned, how), func(t *testing.T) {
					side := "b"
					if turned {
						c.a, c.b, side = c.b, c.a, "a"
					}
					got, err := compare(t, c.a, c.b)
					require.NoError(t, err)
					require.False(t, got.Same)
					require.EqualValues(t, 1, got.Altered)
					require.Equal(t, before, got.Common.Position)
					require.Zero(t, got.Packed)
					require.Equal(t, last, got.LastCommon)
					require.Len(t, got.tids(side), only)
				})
			}
		}
	}
}

// lastBoundary is where the last transaction begins.
func lastBoundary(t *testing.T, g *fixtures.Grower) int64 {
	f, c, err := filestorage.Open(g.Path())
	require.NoError(t, err)
	defer c.Close()
	txn, ok, err := f.LastBefore(g.Size())
	require.NoError(t, err)
	require.True(t, ok)
	return txn.Pos
}
