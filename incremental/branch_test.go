package incremental

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func promotions(ids ...string) (b Branch) {
	for i, id := range ids {
		b = b.With(Promotion{Epoch: i + 2, ID: id, Stamp: Stamp(fmt.Sprintf("2024-05-06-07-%02d-00", i)), Position: int64(i)})
	}
	return b
}

func TestABranchIsContinuedByWhatItsLastPromotionLedTo(t *testing.T) {
	for _, c := range []struct {
		name        string
		one, later  Branch
		continued   bool
		first, then string // what each has alone
	}{
		{"nothing known", nil, nil, true, "", ""},
		{"nothing known of the first", nil, promotions("a"), true, "", "a"},
		{"nothing known of the later", promotions("a"), nil, false, "a", ""},
		{"the same", promotions("a", "b"), promotions("a", "b"), true, "", ""},
		{"one more", promotions("a"), promotions("a", "b"), true, "", "b"},
		{"one less", promotions("a", "b"), promotions("a"), false, "b", ""},
		{"another of the same epoch", promotions("a", "b"), promotions("a", "c"), false, "b", "c"},
		{"another of the same epoch, and more", promotions("a"), promotions("b", "c"), false, "a", "b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.continued, c.one.ContinuedBy(c.later))
			first, then := Fork(c.one, c.later)
			require.Equal(t, c.first, first.ID)
			require.Equal(t, c.then, then.ID)
		})
	}
}

func TestABranchTellsWhereAnEpochEnded(t *testing.T) {
	b := promotions("a", "b")
	p, ok := b.End(1)
	require.True(t, ok)
	require.Equal(t, "a", p.ID)
	p, ok = b.End(2)
	require.True(t, ok)
	require.Equal(t, "b", p.ID)
	_, ok = b.End(3)
	require.False(t, ok)
}

func TestABranchIsBounded(t *testing.T) {
	var b Branch
	for i := range 100 {
		b = b.With(Promotion{Epoch: i + 2, ID: fmt.Sprint(i), Stamp: "2024-05-06-07-08-09"})
		require.NoError(t, b.Validate(i+2))
	}
	require.Len(t, b, maxBranch)
	require.Equal(t, "99", b.Last().ID)
	require.Error(t, append(b, Promotion{Epoch: 200, ID: "x", Stamp: "2024-05-06-07-08-09"}).Validate(200))
}
