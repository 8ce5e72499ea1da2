package restore

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

func TestOneOfTwoPromotedNodesGivesUpWhenTold(t *testing.T) {
	one, two, _ := split(t)
	two.write(2)
	two.mustSave(two.shipped)
	one.write(1)
	one.mustSave(one.shipped)
	f := &failover{pair: two, former: two.data}
	fromOne := func(o *RejoinOptions) { o.Source = one.shipped }
	giveUp := func(o *RejoinOptions) { o.GiveUp = true }

	before := tree(t, filepath.Dir(two.data))
	_, err := f.rejoin(fromOne)
	require.ErrorIs(t, err, fault.Diverged, "not as when nobody else was promoted: a script tells the two apart")
	require.ErrorContains(t, err, "two masters")
	require.Contains(t, fault.Next(err), "--give-up")
	require.Equal(t, before, tree(t, filepath.Dir(two.data)))
	_, err = f.rejoin(giveUp)
	require.ErrorIs(t, err, fault.Refused, "its own directory has no other master")
	require.Equal(t, before, tree(t, filepath.Dir(two.data)))

	all := raw(t, two.data)
	res, err := f.rejoin(fromOne, giveUp)
	require.NoError(t, err)
	require.EqualValues(t, 2, res.Only.Transactions)
	require.Equal(t, res.Common.Position, one.state().Promotions.Last().Position)
	requireKept(t, res.Saved, all, res.Common.Position)
	require.Equal(t, one.state().Promotions, two.state().Promotions)
	two.shipped = one.shipped
	_, err = two.watch()
	require.NoError(t, err)
	requireSame(t, one.standbyBytes(), two.standbyBytes())
	one.write(1)
	one.mustSave(one.shipped)
	_, err = two.watch()
	require.NoError(t, err)
	requireSame(t, one.standbyBytes(), two.standbyBytes())
}

// The other has backed up nothing and has not told of itself, but has made its promotion known to whoever writes there.
func TestTheFenceOfTheOtherMasterIsNoRefusal(t *testing.T) {
	one, two, _ := split(t)
	f := &failover{pair: two, former: two.data}
	mine, other := two.state().Promotions.Last(), one.state().Promotions.Last()
	fence := incremental.Fence{Lineage: two.state().Lineage, Epoch: 2, Own: true, Promotion: &mine}
	require.NoError(t, fence.Raise(two.shipped))
	_, err := f.rejoin(dry)
	require.ErrorIs(t, err, fault.Refused)
	fence.Promotion = &other
	require.NoError(t, fence.Raise(two.shipped))
	_, err = f.rejoin(dry)
	require.ErrorIs(t, err, fault.Diverged)
	require.ErrorContains(t, err, "two masters")
	require.Contains(t, fault.Next(err), "back up into")
}

// Both had told of their promotion in one directory: there the master can go on at once when the other has given up.
func TestWhoGivesUpTellsTheOther(t *testing.T) {
	one, two, _ := split(t)
	tell := tellIn(one.shipped)
	require.NoError(t, tell(t.Context(), answerOf(two.data, two.state())))
	one.write(1)
	_, err := one.save(one.shipped)
	require.ErrorIs(t, err, fault.Diverged)
	f := &failover{pair: two, former: two.data}
	_, err = f.rejoin(func(o *RejoinOptions) { o.Source, o.GiveUp, o.Tell, o.DryRun = one.shipped, true, tell, true })
	require.NoError(t, err)
	_, err = one.save(one.shipped)
	require.ErrorIs(t, err, fault.Diverged, "a dry run tells nothing")
	_, err = f.rejoin(func(o *RejoinOptions) { o.Source, o.GiveUp, o.Tell = one.shipped, true, tell })
	require.NoError(t, err)
	one.mustSave(one.shipped)
}

// A standby of the one that gives up goes over to the other in the same way, without being told twice: it is no master.
func TestAStandbyOfTheOneThatGaveUpGoesOver(t *testing.T) {
	one, two, third := split(t)
	two.write(2)
	two.mustSave(two.shipped)
	third.shipped = two.shipped
	_, err := third.watch()
	require.ErrorIs(t, err, fault.Diverged)
	require.Contains(t, fault.Next(err), "zodbrepl rejoin")
	all := third.standbyBytes()
	res, err := (&failover{pair: third, former: third.data}).rejoin()
	require.NoError(t, err)
	require.Equal(t, RejoinDeltas, res.Way)
	require.EqualValues(t, 2, res.Only.Transactions, "that the first of the two had written")
	requireKept(t, res.Saved, all, res.Common.Position)
	_, err = third.watch()
	require.NoError(t, err)
	requireSame(t, two.standbyBytes(), third.standbyBytes())
	require.Equal(t, Promoted, one.state().Role)
}
