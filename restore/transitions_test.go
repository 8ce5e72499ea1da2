package restore

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// Every command on a node of every role: it does its work (0), or refuses with its code and changes nothing.
func TestEachCommandInEachRole(t *testing.T) {
	type node struct {
		*twin
		p *pair
	}
	lastly := func(t *testing.T, do func(w *twin)) *twin {
		w := newTwin(t, t.TempDir())
		w.write(1)
		do(w)
		return w
	}
	roles := map[string]func(t *testing.T) node{
		"a master": func(t *testing.T) node {
			w := lastly(t, func(*twin) {})
			return node{w, w.a}
		},
		"a standby": func(t *testing.T) node {
			w := lastly(t, func(*twin) {})
			return node{w, w.b}
		},
		"a master that has offered": func(t *testing.T) node {
			w := lastly(t, func(w *twin) { w.killHandover("published") })
			return node{w, w.a}
		},
		"a node that has taken over": func(t *testing.T) node {
			w := lastly(t, func(w *twin) { w.exchange() })
			return node{w, w.b}
		},
		"a node that has handed over": func(t *testing.T) node {
			w := lastly(t, func(w *twin) { w.exchange() })
			return node{w, w.a}
		},
		"a promoted node": func(t *testing.T) node {
			w := lastly(t, func(w *twin) {
				_, err := w.b.promote(func(o *PromoteOptions) { o.Tell = tellIn(w.b.shipped) })
				require.NoError(t, err)
			})
			return node{w, w.b}
		},
		"a former master that knows": func(t *testing.T) node {
			w := lastly(t, func(w *twin) {
				_, err := w.b.promote()
				require.NoError(t, err)
				w.b.write(1)
				w.b.mustSave(w.b.shipped)
				require.NoError(t, carry(w.b.shipped, w.a.shipped))
			})
			return node{w, w.a}
		},
	}
	commands := map[string]func(n node) error{
		"backup": func(n node) error { _, err := n.p.save(n.p.shipped); return err },
		"watch":  func(n node) error { _, err := n.p.watch(); return err },
		"promote": func(n node) error {
			_, err := n.p.promote(func(o *PromoteOptions) { o.Source = nil })
			return err
		},
		"handover": func(n node) error {
			o := handingOver(n.p.data, n.p.shipped, n.other(n.p).shipped)
			o.Wait = time.Millisecond
			_, err := HandOver(context.Background(), o)
			return err
		},
		"handover --cancel": func(n node) error {
			_, err := CancelHandover(context.Background(), handingOver(n.p.data, n.p.shipped, n.other(n.p).shipped))
			return err
		},
		"rejoin": func(n node) error {
			_, err := Rejoin(context.Background(), RejoinOptions{Data: n.p.data, Source: n.other(n.p).shipped, Now: n.p.now})
			return err
		},
	}
	for _, c := range []struct {
		role                                             string
		backup, watch, promote, handover, cancel, rejoin int
	}{
		{"a master", 0, 3, 1, 1, 0, 3},
		{"a standby", 3, 0, 0, 3, 3, 0},
		{"a master that has offered", 3, 3, 1, 1, 0, 3},
		{"a node that has taken over", 0, 3, 0, 6, 0, 3},
		{"a node that has handed over", 3, 0, 0, 0, 3, 0},
		{"a promoted node", 0, 3, 0, 6, 0, 3},
		{"a former master that knows", 3, 5, 1, 3, 0, 0},
	} {
		for name, code := range map[string]int{"backup": c.backup, "watch": c.watch, "promote": c.promote, "handover": c.handover,
			"handover --cancel": c.cancel, "rejoin": c.rejoin} {
			t.Run(name+" on "+c.role, func(t *testing.T) {
				t.Parallel()
				n := roles[c.role](t)
				n.p.clock = n.p.clock.Add(time.Hour)
				before := tree(t, filepath.Dir(n.p.data))
				err := commands[name](n)
				require.Equal(t, code, fault.ExitCode(err), "%v", err)
				if code != 0 {
					require.NotEmpty(t, fault.Next(err), "%v", err)
				}
				if code == 3 {
					require.Equal(t, before, tree(t, filepath.Dir(n.p.data)))
				}
			})
		}
	}
}

// A standby that has not heard of the last promotion, because nothing was written since, may take over all the same.
func TestAHandoverToAStandbyOfAnOlderEpoch(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.b.shipped = w.a.shipped
	third := w.node("third", w.a.shipped)
	_, err := third.watch()
	require.NoError(t, err)
	w.follow()
	w.exchange() // b is the master in epoch 2, and nothing was committed
	third.clock = w.clock
	_, err = third.watch(func(o *WatchOptions) { o.AcceptHandover, o.Tell = true, tellIn(third.shipped) })
	require.NoError(t, err)
	require.Equal(t, 1, third.state().Epoch)

	a := w.a
	w.a = third // the other one of the two that exchange
	w.exchange()
	require.Equal(t, 3, third.state().Epoch)
	w.write(1)
	w.sync()
	a.clock = w.clock
	_, err = a.watch()
	require.NoError(t, err)
	requireSame(t, third.standbyBytes(), a.standbyBytes())
	require.Len(t, a.state().Promotions, 2)
}

// The new master is lost before anything was shipped back: the former master, which is its standby, is promoted. When the
// lost one comes back it is the stale one.
func TestAFormerMasterIsPromotedAgain(t *testing.T) {
	w := newTwin(t, t.TempDir())
	w.write(1)
	w.exchange()
	w.write(2) // on b, never shipped
	res, err := w.a.promote(func(o *PromoteOptions) { o.Tell = tellIn(w.b.shipped) })
	require.NoError(t, err)
	require.Equal(t, 3, res.Epoch)
	_, err = w.b.save(w.b.shipped)
	require.ErrorIs(t, err, fault.Refused)
	require.ErrorContains(t, err, "epoch 3 was seen")
	g, err := fixtures.Open(w.a.data, fixtures.Options{Now: w.now})
	require.NoError(t, err)
	_, err = g.CommitRandom(w.rng, 2, 100)
	require.NoError(t, err)
	require.NoError(t, g.Close())
	w.a.clock = w.clock.Add(time.Hour)
	w.a.mustSave(w.a.shipped)
	_, err = os.Stat(w.a.shipped.Path("zodbrepl.fence"))
	require.NoError(t, err)
	fence, err := incremental.ReadFence(context.Background(), w.a.shipped)
	require.NoError(t, err)
	require.Equal(t, 3, fence.Epoch)
}
