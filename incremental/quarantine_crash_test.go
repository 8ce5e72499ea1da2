package incremental

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
)

// A promoted node that dies while it sets aside what a stale master wrote has lost none of it, and its next backup goes on.
func TestABackupThatDiesWhileItSetsAsideWhatIsStaleCanBeRepeated(t *testing.T) {
	for _, c := range []struct {
		point string
		nth   int
	}{{"stale set aside", 1}, {"stale set aside", 2}, {"dat mended", 1}} {
		t.Run(fmt.Sprint(c.point, " ", c.nth), func(t *testing.T) {
			w := newWorld(t)
			w.grow(3)
			res := w.backup()
			last, err := ReadManifest(t.Context(), w.repo, Stamp(res.File[:len(stampLayout)]))
			require.NoError(t, err)
			data := filepath.Join(t.TempDir(), "Data.fs")
			require.NoError(t, os.WriteFile(data, w.committed(), 0o644))
			next, err := fixtures.Open(data, fixtures.Options{NoSync: true})
			require.NoError(t, err)
			defer next.Close()
			_, err = next.CommitRandom(rand.New(rand.NewPCG(5, 6)), 2, 300)
			require.NoError(t, err)

			stale := map[string][]byte{}
			for range 2 {
				w.grow(2)
				file := w.backup().File
				stale[file], err = os.ReadFile(w.repo.Path(file))
				require.NoError(t, err)
			}
			w.now = w.now.Add(time.Hour)
			promoted := func(o *BackupOptions) {
				o.Data, o.Lineage, o.Epoch = data, last.Lineage, 2
				o.Promotions = Branch{}.With(Promotion{Epoch: 2, ID: "promotion", Host: "bms2", Stamp: last.Stamp, Position: last.End, LastTID: last.LastTID})
			}
			require.True(t, w.dieAt(c.point, c.nth, promoted))
			require.Equal(t, "delta", w.backup(promoted).Action)
			for file, content := range stale {
				got, err := os.ReadFile(w.repo.Path(file + staleExt))
				require.NoError(t, err)
				require.Equal(t, content, got)
			}
			v, err := Verify(t.Context(), w.repo, VerifyOptions{})
			require.NoError(t, err)
			require.True(t, v.OK)
		})
	}
}
