package restore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
)

// take commits "store OID..." or "delete OID", with that as its description, or does a "pack".
func (w *twins) take(g *fixtures.Grower, step string) {
	words := strings.Fields(step)
	if words[0] == "pack" {
		require.NoError(w.t, g.Pack(g.LastTID()))
		return
	}
	txn := g.Begin("u", step, nil)
	for _, word := range words[1:] {
		var oid filestorage.OID
		_, err := fmt.Sscan(word, &oid)
		require.NoError(w.t, err)
		if words[0] == "delete" {
			txn.Delete(oid)
		} else {
			txn.Store(oid, []byte("data"))
		}
	}
	require.NoError(w.t, txn.Vote())
	_, err := txn.Finish()
	require.NoError(w.t, err)
}

func TestDiffOfWhatPacksHaveLeft(t *testing.T) {
	for _, c := range []struct {
		name    string
		common  []string // before they parted
		after   []string // "a STEP" or "b STEP"
		only    []string // "a STEP", and "a? STEP" for what is unsure
		changed []string // "a OID" or "a? OID"
	}{
		{"one has deleted and packed away an object of a common transaction, and a common position is left before it",
			nil, []string{"a delete 2", "a pack", "b pack"},
			nil, []string{"b? 2"}},
		{"the other one has changed it since",
			nil, []string{"a delete 2", "a pack", "b pack", "b store 2"},
			[]string{"b? store 2"}, []string{"b? 2"}},
		{"both have deleted it, and only one has packed it away",
			[]string{"pack"}, []string{"a delete 2", "a pack", "b delete 2"},
			[]string{"b? delete 2"}, []string{"b? 2"}},
		{"both have packed it away",
			nil, []string{"a delete 2", "a pack", "b delete 2", "b pack"},
			nil, nil},
		{"a pack removed the last transaction before its time, and all that came between is as another pack left it",
			[]string{"pack", "store 9"}, []string{"b delete 9", "b pack"},
			[]string{"a? store 9"}, []string{"a? 9"}},
		{"a pack removed it, and what was committed later is all that its file shows",
			[]string{"pack", "store 9"}, []string{"b delete 9", "b pack", "b store 3"},
			[]string{"a? store 9", "b store 3"}, []string{"b 3", "a? 9"}},
		{"only a new object came behind a pack",
			[]string{"pack"}, []string{"a store 9"},
			[]string{"a? store 9"}, []string{"a? 9"}},
		{"what came behind a pack has changed an object that the other has as it was, so what is later was never there either",
			[]string{"pack"}, []string{"a store 2", "a store 9"},
			[]string{"a store 2", "a store 9"}, []string{"a 2", "a 9"}},
		{"both were packed, and then went on together before they parted",
			[]string{"pack", "store 3"}, []string{"a store 9", "b store 10"},
			[]string{"a store 9", "b store 10"}, []string{"a 9", "b 10"}},
	} {
		for _, turned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, turned %v", c.name, turned), func(t *testing.T) {
				w := newTwins(t, t.TempDir(), 0)
				defer w.close()
				for _, step := range append([]string{"store 1", "store 2 3", "store 4", "store 4"}, c.common...) {
					w.take(w.a, step)
				}
				w.split()
				a, b, names := w.a, w.b, map[string]string{"a": "a", "b": "b"}
				for _, step := range c.after {
					g := map[string]*fixtures.Grower{"a": a, "b": b}[step[:1]]
					w.take(g, step[2:])
				}
				if turned {
					a, b, names = b, a, map[string]string{"a": "b", "b": "a"}
				}
				got, err := compare(t, a.Path(), b.Path())
				require.NoError(t, err)
				requireFacts(t, got, a.Path(), b.Path())
				require.NotZero(t, got.Common.Position)
				mark := func(side string, unsure bool) string { return names[side] + map[bool]string{true: "?"}[unsure] }
				var only, changed []string
				for _, txn := range got.txns {
					only = append(only, mark(txn.Side, txn.Unsure)+" "+txn.Description)
				}
				for _, o := range got.changed {
					changed = append(changed, fmt.Sprint(mark(o.Side, o.Unsure), " ", uint64(o.OID)))
				}
				require.Equal(t, c.only, only)
				require.Equal(t, c.changed, changed)
				require.Equal(t, len(only)+len(changed) == 0, got.Same)
			})
		}
	}
}
