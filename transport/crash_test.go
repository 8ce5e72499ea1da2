package transport

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// Every call to the target is once the last one of a run, and the next run must complete what it left.
func TestShipKilledAtEveryCallIsCompletedByTheNext(t *testing.T) {
	m := newMaster(t)
	m.backup()
	m.backup()
	m.backup(full)
	total := stored(m.manifests())
	for _, how := range []moment{beforeEffect, afterEffect, inTheMiddle} {
		t.Run(fmt.Sprint("killed ", how, " the call"), func(t *testing.T) {
			m.t = t
			n := 1
			for ; ; n++ {
				dir := t.TempDir()
				f := &faulty{at: n, how: how, then: errDead}
				first, err := m.through(t.Context(), dir, f)
				if !f.dead {
					require.NoError(t, err)
					require.Equal(t, total, first.Sent)
					break
				}
				require.ErrorIs(t, err, errDead)
				usable(t, dir)

				g := &faulty{}
				second, err := m.through(t.Context(), dir, g)
				require.NoError(t, err, "call %d", n)
				m.same(dir)
				require.Equal(t, total, first.Sent+second.Sent, "call %d: nothing may travel twice", n)
				require.Subset(t, published(m.manifests()), append(first.Increments, second.Increments...))
				third, err := m.through(t.Context(), dir, &faulty{})
				require.NoError(t, err)
				require.Zero(t, third.Sent+third.Resumed)
				require.Empty(t, third.Increments)
			}
			require.Greater(t, n, 3*6, "three increments with three files each, put and published")
		})
	}
}

// The same with a run that dies again and again, one call later each time.
func TestShipThatDiesInEveryRunGetsThereAtLast(t *testing.T) {
	m := standard(t)
	dir := t.TempDir()
	sent, runs := int64(0), 0
	for {
		f := &faulty{at: 3 + runs, how: inTheMiddle, then: errDead}
		res, err := m.through(t.Context(), dir, f)
		sent += res.Sent
		runs++
		require.Less(t, runs, 100, "no progress")
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errDead)
		usable(t, dir)
	}
	m.same(dir)
	require.Equal(t, stored(m.manifests()), sent)
}

func published(ms []*incremental.Manifest) (stamps []incremental.Stamp) {
	for _, m := range ms {
		stamps = append(stamps, m.Stamp)
	}
	return stamps
}

// usable requires that what is published is whole: manifests only with their data, and a repository that verifies
// or holds nothing yet.
func usable(t *testing.T, dir string) {
	t.Helper()
	repo, err := incremental.Open(t.Context(), incremental.Dir(dir))
	require.NoError(t, err)
	ms, problems, err := repo.Manifests(t.Context())
	require.NoError(t, err)
	require.Empty(t, problems)
	for _, m := range ms {
		inc, err := m.Increment()
		require.NoError(t, err)
		_, err = repo.VerifyStored(t.Context(), inc)
		require.NoError(t, err, "a manifest is there before its data")
	}
	res, err := incremental.Verify(t.Context(), incremental.Dir(dir), incremental.VerifyOptions{})
	if len(res.Chains) == 0 {
		require.ErrorIs(t, err, fault.Gap)
		require.Empty(t, res.Problems)
	} else {
		require.NoError(t, err)
	}
	require.LessOrEqual(t, len(res.Unpublished), 1)
	listed := make(map[string]bool)
	for name, content := range tree(t, dir) {
		if strings.HasSuffix(name, ".dat") {
			for line := range strings.Lines(content) {
				require.True(t, strings.HasSuffix(line, "\n"))
				listed[strings.Fields(line)[0]] = true
			}
		}
	}
	for name := range listed {
		require.FileExists(t, incremental.Dir(dir).Path(name), "the .dat lists what is not there")
	}
}

func TestAFullTargetKeepsTheHalfAndIsGoneOnWith(t *testing.T) {
	m := newMaster(t)
	m.backup()
	m.backup()
	dir := t.TempDir()
	size := m.manifests()[0].StoredSize
	f := &faulty{how: inTheMiddle, then: errFull}
	f.before = func(call string) {
		if call == "put "+m.manifests()[0].File {
			f.at = f.calls + 1
		}
	}
	res, err := m.through(t.Context(), dir, f)
	require.ErrorIs(t, err, errFull)
	require.Contains(t, res.Error, "no space left")
	require.Equal(t, size/2, res.Sent)
	usable(t, dir)
	second := m.ship(dir)[0]
	require.Equal(t, size/2, second.Resumed)
	require.Equal(t, stored(m.manifests())-size/2, second.Sent)
	m.same(dir)
}

// A power failure may leave anything in a file that was not made durable yet.
func TestAHalfThatAPowerFailureSpoiltIsNotTrusted(t *testing.T) {
	m := newMaster(t)
	m.backup()
	dir := incremental.Dir(t.TempDir())
	man := m.manifests()[0]
	whole, err := os.ReadFile(m.repo.Path(man.File))
	require.NoError(t, err)
	for _, spoil := range []func(b []byte) []byte{
		func(b []byte) []byte { return make([]byte, len(b)) },
		func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		func(b []byte) []byte { return append(b, "more"...) },
		func(b []byte) []byte { return nil },
	} {
		// as the temporary file, and as the published one without its manifest
		for _, name := range []string{man.File + ".tmp", man.File} {
			for n := range tree(t, string(dir)) {
				require.NoError(t, os.Remove(dir.Path(n)))
			}
			require.NoError(t, os.WriteFile(dir.Path(name), spoil([]byte(string(whole))), 0o644))
			m.ship(string(dir))
			m.same(string(dir))
		}
	}
}

func TestAPublishedFileWithoutItsManifestIsComparedAndNotSentAgain(t *testing.T) {
	m := newMaster(t)
	m.backup()
	m.backup()
	dir := t.TempDir()
	m.ship(dir)
	last := m.manifests()[1]
	require.NoError(t, os.Remove(incremental.Dir(dir).Path(incremental.ManifestName(last.Stamp))))
	res := m.ship(dir)[0]
	require.Zero(t, res.Sent)
	require.Equal(t, last.StoredSize, res.Resumed)
	require.Equal(t, []incremental.Stamp{last.Stamp}, res.Increments)
	m.same(dir)
}
