package incremental

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/internal/fault"
)

// object commits a new version of one object.
func (w *world) object(oid uint64) {
	w.t.Helper()
	w.now = w.now.Add(time.Second)
	_, err := w.g.Commit("admin", "", fixtures.Record{OID: filestorage.OID(oid), Data: []byte("c.\n(dp1\n.")})
	require.NoError(w.t, err)
}

// A run that died, or repozo, leaves increments of which nobody knows the file; then Data.fs is packed, which takes the
// first and the last transaction of the increment away. It is the same database all the same.
func TestAPackAfterACrashIsNoOtherDatabase(t *testing.T) {
	w := newWorld(t)
	w.object(1)
	w.object(2) // only this one outlives the pack
	w.object(1)
	require.True(t, w.dieAt("renamed", 1))
	w.object(1)
	w.pack()
	res := w.backup()
	require.Equal(t, "full", res.Action)
	require.True(t, res.Unasked, "%+v", res)
}

func TestAnotherDatabaseIsRefusedWhereTheFileOfTheFirstIsNotKnown(t *testing.T) {
	w := newWorld(t)
	w.object(1)
	w.object(2)
	require.True(t, w.dieAt("renamed", 1))
	other := newWorld(t)
	other.now = w.now.Add(time.Second)
	other.object(1)
	other.object(2)
	other.object(3)
	other.repo = w.repo
	_, err := other.try()
	require.ErrorIs(t, err, fault.Diverged)
}
