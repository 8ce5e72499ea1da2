package incremental

import (
	"bytes"
	"flag"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Any life: growth, packs, aborts, backups that die anywhere, a clock that jumps, manifests that get lost. After every
// step the repository verifies, and after every backup that ends the newest chain is Data.fs.
func TestAnyLifeOfARepository(t *testing.T) {
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked { // every check makes the disk wait hundreds of times
		require.NoError(t, flag.Set("rapid.checks", "12"))
	}
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		require.NoError(t, err)
		w := newWorldIn(t, dir)
		defer w.g.Close()
		w.zstd = rapid.Bool().Draw(rt, "zstd")
		changes := []func(*BackupOptions){deep, full}
		if !w.zstd {
			changes = append(changes, plain)
		}
		histories := [][]byte{nil}
		clock := w.now
		jump := func(o *BackupOptions) {
			clock = clock.Add(time.Duration(rapid.IntRange(-5000, 9000).Draw(rt, "clock")) * time.Second)
			o.Now = func() time.Time { return clock }
		}
		options := func() []func(*BackupOptions) {
			return append([]func(*BackupOptions){jump}, rapid.SliceOfN(rapid.SampledFrom(changes), 0, 1).Draw(rt, "options")...)
		}
		check := func() {
			if len(repozoFiles(t, w.repo))+len(names(t, w.repo, "fszst")) == 0 {
				return
			}
			_, err := Verify(t.Context(), w.repo, VerifyOptions{})
			require.NoError(t, err)
			repozoVerifies(t, w.repo)
			all := [][]byte{lastChain(t, w.repo)}
			if !w.zstd {
				all = append(all, repozoRecovers(t, w.repo))
			}
			for _, b := range all {
				require.True(t, slices.ContainsFunc(histories, func(h []byte) bool { return bytes.HasPrefix(h, b) }))
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"grow": func(rt *rapid.T) { w.grow(rapid.IntRange(1, 3).Draw(rt, "n")) },
			"vote and abort": func(*rapid.T) {
				txn := w.g.BeginRandom(w.rng, 2, 300)
				require.NoError(t, txn.Vote())
				_, err := w.try(jump)
				require.NoError(t, err)
				require.NoError(t, txn.Abort())
				histories = append(histories, w.committed())
			},
			"pack": func(*rapid.T) {
				histories = append(histories, w.committed())
				require.NoError(t, w.g.Pack(w.g.LastTID()))
				histories = append(histories, w.committed())
			},
			"backup": func(*rapid.T) {
				_, err := w.try(options()...)
				require.NoError(t, err)
				w.whole()
			},
			"die": func(rt *rapid.T) {
				histories = append(histories, w.committed())
				w.dieAt(rapid.SampledFrom(crashPoints).Draw(rt, "point"), rapid.IntRange(1, 2).Draw(rt, "time"), options()...)
			},
			"lose the manifests": func(*rapid.T) {
				for _, name := range names(t, w.repo, manifestExt) {
					require.NoError(t, os.Remove(w.repo.Path(name)))
				}
			},
			"": func(*rapid.T) {
				histories = append(histories, w.committed())
				check()
			},
		})
		_, err = w.try(jump)
		require.NoError(t, err)
		w.whole()
		require.Empty(t, names(t, w.repo, unpublishedExt))
		require.Empty(t, names(t, w.repo, ".tmp"))
	})
}
