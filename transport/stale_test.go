package transport

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// branch makes a backup as a node that was promoted after the newest increment of m makes it.
func branch(m *master, epoch int) func(*incremental.BackupOptions) {
	ms := m.manifests()
	last := ms[len(ms)-1]
	b := last.Promotions.With(incremental.Promotion{Epoch: epoch, ID: incremental.NewPromotionID(), Host: "bms2", Time: m.now,
		Stamp: last.Stamp, Position: last.End, LastTID: last.LastTID})
	return func(o *incremental.BackupOptions) { o.Lineage, o.Epoch, o.Promotions = last.Lineage, epoch, b }
}

// What a stale master has shipped before the promoted node ships is set aside on the target, also when both have an
// increment of one name; then the target is a good repository of the new epoch, and its fence keeps the stale master out.
func TestShipSetsAsideWhatAStaleMasterHasShipped(t *testing.T) {
	for name, stale := range map[string]func(m *master){
		"deltas": func(m *master) { m.backup(); m.backup() },
		"a full": func(m *master) { m.backup(full) },
		"without manifests, as repozo and rsync leave them": func(m *master) {
			m.now = m.now.Add(1234567890)
			m.backup()
			m.backup(full)
			m.bare = true
		},
		"increments of other names": func(m *master) { m.now = m.now.Add(1234567890); m.backup(); m.backup(full) },
	} {
		t.Run(name, func(t *testing.T) {
			m, dir := newMaster(t), t.TempDir()
			m.backup()
			m.backup()
			m.ship(dir)
			other := m.twin()
			mine := branch(m, 2)
			had := tree(t, dir)
			stale(m)
			m.ship(dir)
			if m.bare {
				for n := range tree(t, dir) {
					if _, old := had[n]; !old && strings.HasSuffix(n, ".manifest") {
						require.NoError(t, os.Remove(incremental.Dir(dir).Path(n)))
					}
				}
			}
			before := tree(t, dir)
			other.backup(mine)
			other.backup(mine)
			other.ship(dir)
			after := tree(t, dir)
			set := 0
			for n, content := range after {
				if old, ok := strings.CutSuffix(n, ".stale"); ok {
					require.True(t, before[old] == content, "%s was not kept as it was", n)
					set++
				}
			}
			require.Positive(t, set)
			for n, content := range tree(t, string(other.repo)) {
				require.True(t, content == after[n] || n == incremental.FenceName, n) // which is own here alone
			}
			_, err := incremental.Verify(t.Context(), incremental.Dir(dir), incremental.VerifyOptions{})
			require.NoError(t, err)
			m.backup()
			require.Equal(t, 3, fault.ExitCode(m.refuses(dir, fault.Refused)))
			other.backup(mine)
			require.Len(t, other.ship(dir)[0].Increments, 1)
		})
	}
}

func TestTheFenceOfATargetStopsAStaleMasterBeforeAnyIncrementDoes(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	m.ship(dir)
	other := m.twin()
	other.backup(branch(m, 2))
	b, err := os.ReadFile(other.repo.Path(incremental.FenceName))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(incremental.Dir(dir).Path(incremental.FenceName), b, 0o644))
	m.backup()
	err = m.refuses(dir, fault.Refused)
	require.ErrorContains(t, err, "the fence on "+dir)
	_, err = incremental.Backup(t.Context(), incremental.BackupOptions{Data: m.g.Path(), Repository: m.repo})
	require.ErrorIs(t, err, fault.Refused)
}

// An increment of an older epoch that belongs to the history is not taken for a stale one, when this repository lacks it.
func TestATargetThatHasMoreOfTheHistoryIsNotWrittenTo(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	behind := m.twin()
	m.backup()
	m.ship(dir)
	mine := branch(m, 2)
	behind.backup(mine)
	err := behind.refuses(dir, fault.Gap)
	require.ErrorContains(t, err, "belongs to this history")
	require.NotEmpty(t, fault.Next(err))
}

// A master that begins a repository anew, because the other of two had written into the old one, must not mix its
// increments with the other's on a target: those look as if they had been pruned.
func TestATargetOfTheOtherOfTwoMastersIsRefusedAlsoByARepositoryThatWasBegunAnew(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	other := m.twin()
	one, two := branch(m, 2), branch(m, 2)
	m.backup(one)
	m.ship(dir)
	before := tree(t, dir)
	other.repo = incremental.Dir(t.TempDir())
	other.now = m.now.Add(time.Hour)
	other.backup(two)
	err := other.refuses(dir, fault.Diverged)
	require.ErrorContains(t, err, "two masters")
	require.Equal(t, before, tree(t, dir))
}

// Of two that were promoted to one epoch, the one that has committed nothing yet does not take the other for a stale
// master, nor for one that was promoted after it: nobody is fenced.
func TestAQuietPromotedNodeRefusesTheTargetOfAnother(t *testing.T) {
	m, dir := newMaster(t), t.TempDir()
	m.backup()
	quiet, other := m.twin(), m.twin()
	o := incremental.BackupOptions{Data: quiet.g.Path(), Repository: quiet.repo, Now: func() time.Time { return quiet.now }}
	branch(quiet, 2)(&o)
	res, err := incremental.Backup(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, "none", res.Action)
	other.backup(branch(other, 2))
	other.ship(dir)
	before := tree(t, dir)
	err = quiet.refuses(dir, fault.Diverged)
	require.ErrorContains(t, err, "two masters")
	require.Equal(t, before, tree(t, dir))
	fence, err := incremental.ReadFence(t.Context(), quiet.repo)
	require.NoError(t, err)
	require.True(t, fence.Own)
}
