package restore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestAHandoverIsRefusedAndChangesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*testing.T, *twin, *HandoverOptions)
		code int
		says string
		next string
	}{
		{"while a server holds the lock", func(t *testing.T, w *twin, _ *HandoverOptions) { w.master.holdLock(t) }, 3, "is in use by process", "stop the ZEO server"},
		{"on a standby", func(_ *testing.T, w *twin, o *HandoverOptions) { o.Data = w.standby().data }, 3, "is a standby", "on the master"},
		{"when no standby has answered", func(t *testing.T, w *twin, _ *HandoverOptions) {
			for _, n := range fileNames(t, string(w.standby().shipped)) {
				if strings.HasSuffix(n, ".standby") {
					require.NoError(t, os.Remove(w.standby().shipped.Path(n)))
				}
			}
		}, 6, "0 standbys", "--accept-handover"},
		{"when the standby was not told to accept", func(_ *testing.T, w *twin, _ *HandoverOptions) {
			w.answer(func(a *incremental.Answer) { a.Accepts = false })
		}, 6, "was not started with --accept-handover", "--accept-handover"},
		{"when the standby does not follow", func(_ *testing.T, w *twin, _ *HandoverOptions) {
			w.answer(func(a *incremental.Answer) { a.Condition = "gap" })
		}, 6, "condition gap", "zodbrepl status"},
		{"when the standby is of another database", func(_ *testing.T, w *twin, _ *HandoverOptions) {
			w.answer(func(a *incremental.Answer) { a.Lineage = "another" })
		}, 6, "of another database", ""},
		{"when another host was promoted", func(_ *testing.T, w *twin, _ *HandoverOptions) {
			w.answer(func(a *incremental.Answer) { a.Epoch, a.Role = 2, "promoted" })
		}, 3, "another host was promoted", "stop the ZEO server"},
		{"when two would take over", func(_ *testing.T, w *twin, _ *HandoverOptions) {
			w.answer(func(*incremental.Answer) {})
			w.answer(func(a *incremental.Answer) { a.Host = "bms3" })
		}, 6, "2 standbys", "--standby HOST"},
		{"when the one that was asked for is another", func(_ *testing.T, _ *twin, o *HandoverOptions) { o.Standby = "bms9" }, 6, "not asked for", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwin(t, t.TempDir())
			w.write(1)
			o := w.options()
			c.do(t, w, &o)
			for _, dry := range []bool{true, false} {
				before := tree(t, w.dir)
				o.DryRun = dry
				_, err := HandOver(context.Background(), o)
				require.Error(t, err)
				require.Equal(t, c.code, fault.ExitCode(err), err)
				require.ErrorContains(t, err, c.says)
				require.Contains(t, fault.Next(err), c.next)
				require.NotEmpty(t, fault.Kept(err))
				require.Equal(t, before, tree(t, w.dir))
			}
		})
	}
}

// answer writes an answer of the standby's host, changed.
func (w *twin) answer(change func(*incremental.Answer)) {
	s := w.standby()
	a := answerOf(s.data, s.state())
	a.Accepts = true
	change(&a)
	require.NoError(w.t, tellIn(s.shipped)(context.Background(), a))
}

func TestADryRunOfAHandoverTellsWhoAndChangesNothing(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	before := tree(t, w.dir)
	o := w.options()
	o.DryRun = true
	res, err := HandOver(context.Background(), o)
	require.NoError(t, err)
	require.Equal(t, "possible", res.State)
	require.Equal(t, answerOf(w.standby().data, w.standby().state()).Name(), res.Successor)
	require.Equal(t, w.lastOf(w.master), res.LastTID)
	require.Equal(t, 2, res.Epoch)
	require.Equal(t, before, tree(t, w.dir))
}

// Of two standbys that read one directory, only the one that was chosen takes over; the other follows it.
func TestOnlyTheChosenStandbyTakesOver(t *testing.T) {
	w := newTwin(t, t.TempDir())
	third := w.node("third", w.b.shipped)
	accept := func(o *WatchOptions) { o.AcceptHandover = true }
	_, err := third.watch(accept)
	require.NoError(t, err)
	w.write(1)
	w.killHandover("published")
	res, err := third.watch(accept)
	require.NoError(t, err)
	require.False(t, res.TookOver)
	w.follow()
	require.Equal(t, Promoted, w.b.state().Role)
	_, err = HandOver(context.Background(), w.options())
	require.NoError(t, err)
	w.exchanged()
	w.write(1)
	w.sync()
	_, err = third.watch()
	require.NoError(t, err)
	requireSame(t, w.b.standbyBytes(), third.standbyBytes())
	require.Equal(t, 2, third.state().Epoch)
}

func TestAStandbyDoesNotTakeWhatDoesNotFit(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *twin, s *pair)
	}{
		{"when it was not told to accept", nil},
		{"when something newer has come", func(w *twin, s *pair) {
			o, _, err := incremental.OpenHandover(context.Background(), w.master.shipped, 1)
			require.NoError(w.t, err)
			require.NoError(w.t, os.Remove(w.master.shipped.Path(o.FileName(incremental.Offered))))
			w.write(1)
			w.tick()
			w.master.mustSave(w.master.shipped)
			require.NoError(w.t, carry(w.master.shipped, s.shipped))
		}},
		{"when another host was promoted meanwhile", func(w *twin, s *pair) {
			w.answer(func(a *incremental.Answer) { a.Host, a.Epoch, a.Role = "bms3", 2, "promoted" })
		}},
		{"when the offer is of another history", func(w *twin, s *pair) {
			o, _, err := incremental.OpenHandover(context.Background(), w.master.shipped, 1)
			require.NoError(w.t, err)
			o.Tail.SHA256 = fmt.Sprintf("%064x", 7)
			b, err := o.Encode()
			require.NoError(w.t, err)
			require.NoError(w.t, os.WriteFile(s.shipped.Path(o.FileName(incremental.Offered)), b, 0o644))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwin(t, t.TempDir())
			w.write(1)
			w.killHandover("published")
			s := w.standby()
			if c.do != nil {
				c.do(w, s)
			}
			res, err := s.watch(func(o *WatchOptions) { o.AcceptHandover = c.do != nil })
			require.NoError(t, err)
			require.False(t, res.TookOver)
			require.Equal(t, Standby, s.state().Role)
		})
	}
}

func TestATakeOverRunsTheCommand(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	w.killHandover("published")
	out := filepath.Join(w.dir, "out")
	s := w.standby()
	o := s.options() // not through watch, which keeps others from starting a process
	o.AcceptHandover, o.Exec = true, `cp "$ZODBREPL_DATA.zodbrepl" `+out
	res, err := Watch(context.Background(), o)
	require.NoError(t, err)
	require.True(t, res.TookOver)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Contains(t, string(b), `"role": "promoted"`, "after the role is durable")
	require.True(t, s.state().Promotion.Handover)
	s.requireFreshIndex()
}
