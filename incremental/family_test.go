package incremental

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func codec(name string) func(*BackupOptions) { return func(o *BackupOptions) { o.Codec = name } }

func TestZstdIsNotMixedWithTheCodecsOfRepozo(t *testing.T) {
	for _, tt := range []struct{ there, asked string }{
		{"gzip", "zstd"}, {"none", "zstd"}, {"zstd", "gzip"}, {"zstd", "none"},
	} {
		t.Run(tt.asked+" into a repository of "+tt.there, func(t *testing.T) {
			w := newWorld(t)
			w.grow(2)
			w.backup(codec(tt.there))
			w.grow(1)
			before := snapshot(t, w.repo)
			for _, more := range []func(*BackupOptions){func(*BackupOptions) {}, full, killOld} {
				_, err := w.try(codec(tt.asked), more)
				require.ErrorIs(t, err, fault.Usage)
				require.ErrorContains(t, err, "not mixed")
				require.NotEmpty(t, fault.Next(err))
				require.Equal(t, before, snapshot(t, w.repo))
			}
			w.backup(codec(""))
			require.Equal(t, tt.there == "zstd", len(names(t, w.repo, ".deltafszst")) == 1, "without a codec it goes on")
			w.verifies()
		})
	}
}

// What somebody has mixed by hand is told, and nothing is added to it.
func TestARepositoryOfBothFamiliesIsNotContinued(t *testing.T) {
	w := newWorld(t)
	w.grow(2)
	w.backup()
	w.grow(1)
	other := newZstdWorld(t)
	other.grow(2)
	res := other.backup()
	require.NoError(t, os.Rename(other.repo.Path(res.File), w.repo.Path(res.File)))
	before := snapshot(t, w.repo)
	for _, asked := range []string{"", "gzip", "zstd"} {
		_, err := w.try(codec(asked))
		require.ErrorContains(t, err, "holds increments of zstd")
		require.NotEmpty(t, fault.Next(err))
		require.Equal(t, before, snapshot(t, w.repo))
	}
	vr, _ := Verify(t.Context(), w.repo, VerifyOptions{})
	require.Contains(t, vr.Warnings[0], "both")
}

func TestALevelThatTheCodecDoesNotHave(t *testing.T) {
	w := newWorld(t)
	w.grow(1)
	before := snapshot(t, w.repo)
	for name, level := range map[string]int{"gzip": 10, "zstd": 5, "none": 1, "": -1} {
		_, err := w.try(codec(name), func(o *BackupOptions) { o.Level = level })
		require.ErrorIs(t, err, fault.Usage, name)
		require.Equal(t, before, snapshot(t, w.repo), "%s: not even a lock", name)
	}
	w.backup(func(o *BackupOptions) { o.Level = 1 })
	w.whole()
}
