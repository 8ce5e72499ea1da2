//go:build interop

package hosts

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func (n *node) handoverArgs(more ...string) []string {
	return append([]string{"handover", "--data", n.data, "-r", n.repo, "--to", n.other.url()}, more...)
}

func (n *node) promoted() bool {
	n.t.Helper()
	r := run(n.t, "status", "--json", "--local", "--data", n.data)
	return r.code == 0 && decode(n.t, r.stdout)["role"] == "promoted"
}

// accepting is a pair of which a is the master and b follows, and would take over.
func accepting(t *testing.T) (a, b *node, w *daemon) {
	t.Helper()
	a, b = newPair(t)
	commit(t, a.data, 5)
	a.backup()
	w = b.watch("--accept-handover")
	b.follows()
	return a, b, w
}

// takenOver holds what must be so after a handover: one master, which has everything, and a standby that follows it
// without a full.
func takenOver(t *testing.T, old, master *node, w *daemon, epoch int) (next *daemon) {
	t.Helper()
	require.Equal(t, 3, w.end(t))
	require.True(t, same(t, old.data, master.data), "nothing is lost")
	require.True(t, master.promoted())
	require.EqualValues(t, epoch, master.status()["epoch"])
	require.Equal(t, "standby", old.status()["role"])
	require.Equal(t, 3, old.run(old.backupArgs()...).code)
	before := kept(t, filepath.Dir(old.data), filepath.Dir(master.data))
	require.Contains(t, old.good(old.handoverArgs()...), "handed over", "twice is no matter")
	untouched(t, before, filepath.Dir(old.data), filepath.Dir(master.data))
	fulls := func() int {
		found, err := filepath.Glob(filepath.Join(old.repo, "*.fsz"))
		require.NoError(t, err)
		return len(found)
	}
	made := fulls()
	next = old.watch("--accept-handover")
	commit(t, master.data, 2)
	master.backup()
	old.follows()
	require.Equal(t, made, fulls(), "no full copy")
	return next
}

func TestHandoverBetweenTwoHosts(t *testing.T) {
	t.Parallel()
	a, b, w := accepting(t)
	require.Equal(t, 3, b.run(b.handoverArgs()...).code, "a standby has nothing to hand over")
	lock := lockData(t, a.data)
	require.Equal(t, 3, a.run(a.handoverArgs()...).code, "ZEO runs")
	require.NoError(t, lock.Release())
	for round := range 4 {
		commit(t, a.data, 2) // not backed up: handover does
		a.good(a.handoverArgs()...)
		w = takenOver(t, a, b, w, round+2)
		a, b = b, a
	}
}

// The line goes, and the process of the old master with it, at one moment or another. Whatever that was, the next run
// brings it to its end, and there is one master.
func TestTheLineBreaksDuringAHandover(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		// offered: the offer stands in the master's repository, so no backup may be made any more.
		offered bool
		when    func(t *testing.T, a, b *node)
	}{
		{"while the last increment is on its way", false, func(t *testing.T, a, b *node) {
			until(t, "a part has come", func() bool {
				parts, _ := filepath.Glob(filepath.Join(b.repo, "*.tmp"))
				return len(parts) > 0
			})
		}},
		{"when the offer is there", true, func(t *testing.T, a, b *node) {
			until(t, "the offer", func() bool {
				offers, _ := filepath.Glob(filepath.Join(b.repo, "*.handover*"))
				return len(offers) > 0
			})
		}},
		{"when the standby has taken over", true, func(t *testing.T, a, b *node) {
			until(t, "promoted", b.promoted)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b, w := accepting(t)
			commitLarge(t, a.data, 2<<20)
			h := a.start(append([]string{binary}, a.handoverArgs("--limit-rate", "1M")...)...)
			c.when(t, a, b)
			a.deaf(true)
			h.signal(syscall.SIGKILL)
			h.end(t)
			if c.offered {
				require.Equal(t, 3, a.run("backup", "-f", a.data, "-r", a.repo).code, "it is under way: no backup")
			}
			a.deaf(false)

			// Nobody may be the master twice: it can be taken back only when it was not taken.
			if back := a.run(a.handoverArgs("--cancel")...); back.code == 0 {
				require.False(t, b.promoted())
				commit(t, a.data, 1)
				a.backup()
				b.follows()
				require.False(t, b.promoted(), "the offer is void")
			} else {
				require.Equal(t, 3, back.code, back.stderr)
				until(t, "b is the master", b.promoted)
			}
			a.good(a.handoverArgs()...)
			takenOver(t, a, b, w, 2)
		})
	}
}

// Both are promoted. Nothing is overwritten on either, and both have something to say.
func TestBothArePromoted(t *testing.T) {
	t.Parallel()
	_, b, w := normal(t)
	second := filepath.Join(mkdir(t, b.dir, "second"), "Data.fs") // another standby of the same master
	b.good("watch", "--once", "--from", b.repo, "--data", second)
	b.good("promote", "--data", b.data)
	require.Equal(t, 3, w.end(t))
	b.good("promote", "--data", second, "--no-drain")
	commit(t, b.data, 2)
	commit(t, second, 3)
	before := kept(t, b.dir)
	for _, data := range []string{b.data, second} {
		require.Contains(t, b.code(5, "backup", "-f", data, "-r", b.repo), "two masters")
		require.Contains(t, b.code(5, "rejoin", "--data", data, "--from", b.repo), "two masters", "which of the two counts, a person says")
	}
	require.Equal(t, 1, b.run("diff", b.data, second).code)
	untouched(t, before, b.dir)

	b.good("rejoin", "--give-up", "--data", second, "--from", b.repo)
	b.good("backup", "-f", b.data, "-r", b.repo) // it was told
	b.good("watch", "--once", "--from", b.repo, "--data", second)
	require.True(t, same(t, b.data, second))
}
