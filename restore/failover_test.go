package restore

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
)

// failover is a pair whose standby was promoted and goes on in the shared directory, while the former master has
// committed what nobody else has.
type failover struct {
	*pair
	former string           // the former master's Data.fs
	next   *fixtures.Grower // the new master's
	// common is the position up to which both were the same.
	common int64
}

// failOver promotes the standby of a pair after its master has committed so many transactions more.
func (p *pair) failOver(only int) *failover {
	p.grow(only)
	_, err := p.promote()
	require.NoError(p.t, err)
	f := &failover{pair: p, former: p.g.Path(), common: int64(len(p.standbyBytes()))}
	f.next, err = fixtures.Open(p.data, fixtures.Options{NoSync: true, Now: p.now})
	require.NoError(p.t, err)
	if c, ok := p.t.(interface{ Cleanup(func()) }); ok {
		c.Cleanup(func() { f.next.Close() })
	}
	return f
}

// goOn commits on the new master and backs up into the shared directory.
func (f *failover) goOn(transactions int, change ...func(*incremental.BackupOptions)) {
	for range transactions {
		_, err := f.next.CommitRandom(f.rng, 3, 400)
		require.NoError(f.t, err)
	}
	o := incremental.BackupOptions{Data: f.data, Repository: f.shipped, Now: f.now}
	for _, c := range change {
		c(&o)
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	res, err := Backup(context.Background(), o)
	require.NoError(f.t, err)
	f.remember(f.data, res)
}

func (f *failover) rejoin(change ...func(*RejoinOptions)) (RejoinResult, error) {
	o := RejoinOptions{Data: f.former, Source: f.shipped, Now: f.now}
	for _, c := range change {
		c(&o)
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return Rejoin(context.Background(), o)
}

func dry(o *RejoinOptions) { o.DryRun = true }

// follow lets the former master follow, and holds it to what the new one has.
func (f *failover) follow() {
	_, err := f.watch(func(o *WatchOptions) { o.Data = f.former })
	require.NoError(f.t, err)
	f.requireFollowed()
}

func (f *failover) requireFollowed() {
	want, ok := f.at[f.newest()]
	require.True(f.t, ok)
	got, err := os.ReadFile(f.former)
	require.NoError(f.t, err)
	requireSame(f.t, want, got)
	requireFresh(f.t, f.former)
	st, _, err := ReadState(f.former)
	require.NoError(f.t, err)
	require.Equal(f.t, Standby, st.Role)
	require.Equal(f.t, "current", st.Condition.Name)
	require.Equal(f.t, f.newest(), st.Applied.Stamp)
	require.False(f.t, st.Rejoin.pending())
}

// requireFresh holds the index beside a Data.fs to one that is built from it.
func requireFresh(t require.TestingT, data string) {
	(&pair{t: t, data: data}).requireFreshIndex()
}

// requireKept holds a file of diverged bytes to the bytes of the former master.
func requireKept(t require.TestingT, path string, raw []byte, common int64) {
	f, d, c, err := OpenData(path)
	require.NoError(t, err)
	defer c.Close()
	require.NotNil(t, d)
	require.Equal(t, common, d.Position)
	require.Equal(t, common, f.First())
	size, err := f.Size()
	require.NoError(t, err)
	require.EqualValues(t, len(raw), size)
	got := make([]byte, size-common+d.Before)
	_, err = f.ReadAt(got, common-d.Before)
	require.NoError(t, err)
	requireSame(t, raw[common-d.Before:], got)
}

// tidsFrom lists the transactions of a Data.fs, or a part, from a position on.
func tidsFrom(t require.TestingT, path string, from int64) (tids []filestorage.TID) {
	f, _, c, err := OpenData(path)
	require.NoError(t, err)
	defer c.Close()
	for txn, err := range f.Transactions(max(from, f.First())) {
		require.NoError(t, err)
		tids = append(tids, txn.TID)
	}
	return tids
}

func formerTree(t require.TestingT, f *failover) map[string]string {
	return tree(t, filepath.Dir(f.former))
}

func raw(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}
