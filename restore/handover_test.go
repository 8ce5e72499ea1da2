package restore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// handingOver are the options of a handover from a repository to the standby that reads place.
func handingOver(data string, repo, place incremental.Dir) HandoverOptions {
	o := HandoverOptions{Data: data, Repository: repo, Place: place, Wait: waitLimit, poll: time.Millisecond, hear: 100 * time.Millisecond}
	if place != repo {
		o.Ship = func(context.Context) error { return carry(repo, place) }
	}
	return o
}

// carry brings a directory up to date, as transport does: manifests last, and nothing that is no increment.
func carry(from, to incremental.Dir) error {
	entries, err := os.ReadDir(string(from))
	if err != nil {
		return err
	}
	for _, manifests := range []bool{false, true} {
		for _, e := range entries {
			n := e.Name()
			ext := filepath.Ext(n)
			if strings.HasSuffix(n, ".manifest") != manifests || !strings.HasPrefix(n, "20") || strings.HasPrefix(ext, ".handover") {
				continue
			}
			b, err := os.ReadFile(from.Path(n))
			if err != nil {
				return err
			}
			if there, err := os.ReadFile(to.Path(n)); err == nil && bytes.Equal(b, there) {
				continue
			}
			if err := to.WriteFile(context.Background(), n, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// twin is two hosts, each with a Data.fs and a repository of its own. The master backs up into its own and ships to the
// other's, which the standby there follows.
type twin struct {
	*pair
	a, b   *pair // shipped is the host's own repository
	master *pair
	made   int // fulls
}

// newTwin has a as the master, whose transactions so far b has.
func newTwin(t require.TestingT, dir string) *twin {
	p := newPairIn(t, dir)
	w := &twin{pair: p}
	w.a = p.node("a", incremental.Dir(mkdir(t, dir, "repo-a")))
	w.b = p.node("b", incremental.Dir(mkdir(t, dir, "repo-b")))
	w.master = w.a
	g, err := fixtures.Create(w.a.data, fixtures.Options{NoSync: true, Now: p.now})
	require.NoError(t, err)
	require.NoError(t, g.Close())
	w.write(5)
	w.sync()
	w.write(2)
	w.sync()
	require.Equal(t, w.a.standbyBytes(), w.b.standbyBytes())
	return w
}

func (w *twin) other(p *pair) *pair {
	if p == w.a {
		return w.b
	}
	return w.a
}

func (w *twin) standby() *pair { return w.other(w.master) }

// write commits on the master. All nodes share one clock.
func (w *twin) write(transactions int) {
	w.tick()
	w.master.write(transactions)
	w.clock = w.master.forward(0)
}

func (w *twin) tick() {
	w.clock = w.clock.Add(time.Minute)
	w.a.setClock(w.clock)
	w.b.setClock(w.clock)
}

// sync backs the master up, ships, and lets the standby follow.
func (w *twin) sync() {
	w.tick()
	res := w.master.mustSave(w.master.shipped)
	if res.Action == "full" {
		w.made++
	}
	require.NoError(w.t, carry(w.master.shipped, w.standby().shipped))
	w.follow()
}

func (w *twin) follow() {
	s := w.standby()
	_, err := s.watch(func(o *WatchOptions) { o.AcceptHandover, o.Tell = true, tellIn(s.shipped) })
	require.NoError(w.t, err)
}

// tellIn writes answers into a directory.
func tellIn(dir incremental.Dir) func(context.Context, incremental.Answer) error {
	return func(ctx context.Context, a incremental.Answer) error {
		b, err := a.Encode()
		if err != nil {
			return err
		}
		return dir.WriteFile(ctx, a.Name(), b)
	}
}

func (w *twin) options() HandoverOptions {
	return handingOver(w.master.data, w.master.shipped, w.standby().shipped)
}

// accepting starts a watch that takes over.
func (w *twin) accepting(change ...func(*WatchOptions)) *running {
	s := w.standby()
	return s.start(append([]func(*WatchOptions){func(o *WatchOptions) {
		o.AcceptHandover, o.Tell, o.Now = true, tellIn(s.shipped), s.now
	}}, change...)...)
}

// exchange hands over.
func (w *twin) exchange() HandoverResult {
	run := w.accepting()
	res, err := HandOver(context.Background(), w.options())
	require.NoError(w.t, err)
	err = run.end(w.t)
	require.ErrorIs(w.t, err, fault.Refused)
	require.True(w.t, run.res.TookOver)
	w.exchanged()
	return res
}

// exchanged is what must be so after a handover, whatever happened on the way.
func (w *twin) exchanged() {
	old, now := w.master, w.standby()
	w.master = now
	require.Equal(w.t, Promoted, now.state().Role)
	require.Equal(w.t, Standby, old.state().Role)
	require.Equal(w.t, now.state().Epoch, old.state().Epoch)
	require.Equal(w.t, now.state().Promotions, old.state().Promotions)
	requireSame(w.t, now.standbyBytes(), old.standbyBytes())
	_, err := old.save(old.shipped)
	require.ErrorIs(w.t, err, fault.Refused, "the former master is not backed up")
	_, err = incremental.Backup(context.Background(), incremental.BackupOptions{Data: old.data, Repository: old.shipped})
	require.ErrorIs(w.t, err, fault.Refused, "not even when its state is lost: the fence")
	fence, err := incremental.ReadFence(context.Background(), old.shipped)
	require.NoError(w.t, err)
	require.GreaterOrEqual(w.t, fence.Epoch, old.state().Epoch)
	_, held, err := filestorage.LockHolder(old.data)
	require.NoError(w.t, err)
	require.False(w.t, held)
}

// masters counts the hosts that are the master: that would be backed up.
func (w *twin) masters() (n int) {
	for _, p := range []*pair{w.a, w.b} {
		lineage, epoch, promotions, err := MasterOf(p.data)
		if err != nil {
			continue
		}
		w.tick()
		_, err = incremental.Backup(context.Background(), incremental.BackupOptions{Data: p.data, Repository: p.shipped, Lineage: lineage, Epoch: epoch, Promotions: promotions, Now: w.now})
		if err == nil {
			n++
		}
	}
	return n
}

func TestTenHandoversBackAndForthLoseNothingAndCopyNothingWhole(t *testing.T) {
	w := newTwin(t, t.TempDir())
	inode := map[*pair]os.FileInfo{}
	for _, p := range []*pair{w.a, w.b} {
		fi, err := os.Stat(p.data)
		require.NoError(t, err)
		inode[p] = fi
	}
	var tids []filestorage.TID
	for i := range 10 {
		from := w.master
		w.write(2)
		last := w.lastOf(from)
		tids = append(tids, last)
		res := w.exchange()
		require.Equal(t, "handed-over", res.State)
		require.Equal(t, last, res.LastTID, "what was committed last is there")
		require.Equal(t, i+2, res.Epoch)
		require.True(t, res.Promoted)
		require.NotEqual(t, from, w.master)
		w.write(1)
		w.sync() // the former master follows by a delta
		requireSame(t, w.master.standbyBytes(), from.standbyBytes())
		require.Equal(t, i+2, from.state().Epoch)
	}
	require.Equal(t, 1, w.made, "fulls")
	for p, fi := range inode {
		now, err := os.Stat(p.data)
		require.NoError(t, err)
		require.True(t, os.SameFile(fi, now), "a whole copy was made of %s", p.data)
		res, err := incremental.Verify(context.Background(), p.shipped, incremental.VerifyOptions{})
		require.NoError(t, err)
		require.Len(t, res.Chains, 1)
	}
	got := tidsOf(t, w.master.data)
	for _, tid := range tids {
		require.Contains(t, got, tid)
	}
	require.Len(t, got, 5+2+10*3)
}

func (w *twin) lastOf(p *pair) filestorage.TID {
	tids := tidsOf(w.t, p.data)
	return tids[len(tids)-1]
}

func tidsOf(t require.TestingT, data string) (tids []filestorage.TID) {
	f, c, err := filestorage.Open(data)
	require.NoError(t, err)
	defer c.Close()
	for txn, err := range f.Transactions(filestorage.MagicSize) {
		require.NoError(t, err)
		tids = append(tids, txn.TID)
	}
	return tids
}

// Where both hosts see one directory, it is the repository of whoever is the master, and what the other follows.
func TestAHandoverWithinOneDirectory(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.b.shipped = w.a.shipped
	w.follow()
	for range 3 { // the second time, nothing was committed since the first
		w.exchange()
		w.sync()
	}
	w.write(1)
	w.sync()
	require.Equal(t, 4, w.master.state().Epoch)
	require.Equal(t, 1, w.made)
}

func TestAnUnfinishedTransactionIsKeptBesideTheFileOfTheFormerMaster(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	committed := w.master.standbyBytes()
	g, err := fixtures.Open(w.master.data, fixtures.Options{Now: w.now})
	require.NoError(t, err)
	txn := g.Begin("", "never finished", nil)
	txn.Store(1, []byte("data"))
	require.NoError(t, txn.Vote())
	require.NoError(t, g.Close())
	whole := w.master.standbyBytes()
	w.exchange()
	requireSame(t, committed, w.a.standbyBytes())
	tail, err := os.ReadFile(w.a.data + ".tr0")
	require.NoError(t, err)
	requireSame(t, whole[len(committed):], tail)
	w.write(1)
	w.sync()
}

// A promotion by hand while it is not known whether the handover was taken: what the former master recorded fits all the
// same, so that it can follow.
func TestAPromotionByHandInTheMiddleOfAHandoverFitsTheFormerMaster(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	w.killHandover("published")
	s := w.standby()
	child{Do: "accept", Data: s.data, Source: string(s.shipped), Kill: "taken", Nth: 1}.killed(t)
	_, err := HandOver(context.Background(), func() HandoverOptions { o := w.options(); o.Wait = time.Second; return o }())
	require.NoError(t, err)
	res, err := s.promote(func(o *PromoteOptions) { o.Source = nil })
	require.NoError(t, err)
	require.Equal(t, 3, res.Epoch)
	w.master = s
	w.write(1)
	w.sync()
	requireSame(t, w.b.standbyBytes(), w.a.standbyBytes())
}

func TestTheMasterTakesBackWhatNobodyTook(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	o := w.options()
	o.Wait = time.Millisecond
	_, err := HandOver(context.Background(), o)
	require.ErrorContains(t, err, "has not taken over within 1ms")
	require.Contains(t, fault.Kept(err), "the master as before")
	require.Equal(t, 1, fault.ExitCode(err))
	w.follow()
	require.Equal(t, Standby, w.standby().state().Role)
	require.Equal(t, 1, w.masters())

	ctx, cancel := context.WithCancel(context.Background())
	o = w.options()
	o.crash = func(point string) {
		if point == "published" {
			cancel()
		}
	}
	_, err = HandOver(ctx, o)
	require.ErrorContains(t, err, "stopped before")
	require.Equal(t, 1, w.masters())
	w.write(1)
	w.sync()
	w.exchange()
}

// Both throw the switch at once, many times: always exactly one of them succeeds.
func TestATakeOverAndATakingBackAtTheSameMoment(t *testing.T) {
	w := newTwin(t, t.TempDir())
	took := 0
	for i := range 12 {
		w.write(1)
		run := w.accepting()
		o := w.options()
		o.Wait = time.Duration(i) * 2 * time.Millisecond
		o.Wait = max(o.Wait, time.Nanosecond)
		_, err := HandOver(context.Background(), o)
		if err == nil {
			require.ErrorIs(t, run.end(t), fault.Refused)
			w.exchanged()
			took++
			require.Equal(t, 1, w.masters())
		} else {
			require.Contains(t, fault.Kept(err), "the master as before")
			require.NoError(t, run.stop(t))
			require.False(t, run.res.TookOver)
			require.Equal(t, 1, w.masters())
		}
		w.sync()
	}
	t.Logf("taken %d of 12 times", took)
}

// The standby takes over between the master's last look and its taking back.
func TestATakeOverAtTheLastMoment(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	o := w.options()
	o.Wait = time.Millisecond
	o.crash = func(point string) {
		if point == "taking back" {
			w.follow()
			require.Equal(t, Promoted, w.standby().state().Role)
		}
	}
	res, err := HandOver(context.Background(), o)
	require.NoError(t, err)
	require.Equal(t, "handed-over", res.State)
	w.exchanged()
}

func TestThePlaceIsOutOfReachWhenTheMasterWouldTakeBack(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	down := false
	o := w.options()
	o.Place = &cut{Dir: w.standby().shipped, down: func(string) (error, error) {
		if down {
			return errLine, nil
		}
		return nil, nil
	}}
	o.Wait = 20 * time.Millisecond
	o.crash = func(point string) { down = down || point == "taking back" }
	_, err := HandOver(context.Background(), o)
	require.ErrorIs(t, err, errLine)
	require.ErrorContains(t, err, "is under way")
	require.Contains(t, fault.Next(err), "do NOT start ZEO here")
	require.Zero(t, w.masters())
	// The standby takes it meanwhile.
	w.follow()
	require.Equal(t, Promoted, w.standby().state().Role)
	_, err = CancelHandover(context.Background(), w.options())
	require.ErrorIs(t, err, fault.Refused)
	_, err = HandOver(context.Background(), w.options())
	require.NoError(t, err)
	w.exchanged()
}

func TestAnEmptyMountPointIsNotTakenForAPlaceWhereNothingWasOffered(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	w.killHandover("published")
	real := string(w.standby().shipped)
	require.NoError(t, os.Rename(real, real+".away"))
	require.NoError(t, os.Mkdir(real, 0o755))
	_, err := CancelHandover(context.Background(), w.options())
	require.ErrorContains(t, err, "is under way")
	_, err = HandOver(context.Background(), func() HandoverOptions { o := w.options(); o.Wait = time.Millisecond; return o }())
	require.ErrorContains(t, err, "is under way")
	require.Zero(t, w.masters())
	require.NoError(t, os.Remove(real))
	require.NoError(t, os.Rename(real+".away", real))
	w.follow()
	_, err = HandOver(context.Background(), w.options())
	require.NoError(t, err)
	w.exchanged()
}

func TestAServerThatWasStartedInTheMiddleOfAHandover(t *testing.T) {
	t.Run("before it was taken: it is offered anew", func(t *testing.T) {
		w := newTwin(t, t.TempDir())
		w.write(1)
		w.killHandover("published")
		w.write(2)
		o := w.options()
		var run *running
		o.crash = func(point string) {
			if point == "published" { // the new offer: the old one could be taken any time
				run = w.accepting()
			}
		}
		_, err := HandOver(context.Background(), o)
		require.NoError(t, err)
		require.ErrorIs(t, run.end(t), fault.Refused)
		w.exchanged()
	})
	t.Run("after it was taken: a divergence, and nothing is cut", func(t *testing.T) {
		w := newTwin(t, t.TempDir())
		w.write(1)
		w.killHandover("published")
		w.follow()
		w.write(2)
		before := w.master.standbyBytes()
		_, err := HandOver(context.Background(), w.options())
		require.ErrorIs(t, err, fault.Diverged)
		require.ErrorContains(t, err, "a ZEO server was started on it")
		requireSame(t, before, w.master.standbyBytes())
		require.Equal(t, 1, w.masters(), "it stays no master")
	})
}
