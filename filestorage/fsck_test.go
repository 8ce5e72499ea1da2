package filestorage_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures/fixturetest"
	"zodbrepl/internal/fault"
)

func openFile(t *testing.T, path string) *filestorage.File {
	t.Helper()
	f, closer, err := filestorage.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { closer.Close() })
	return f
}

// collect returns the tids of an iteration and the error that ended it.
func collect(f *filestorage.File, end int64) (tids []filestorage.TID, err error) {
	for t, err := range f.Backwards(end) {
		if err != nil {
			return tids, err
		}
		tids = append(tids, t.TID)
	}
	return tids, nil
}

// endOf is where the committed part ends, also of a file that ZODB itself fails to open.
func endOf(g fixturetest.Golden) int64 {
	if g.End == nil {
		return g.GoodTo
	}
	return *g.End
}

func TestBackwardsIsForwardsTurnedRound(t *testing.T) {
	for _, name := range fixturetest.Names(t) {
		if strings.HasPrefix(name, "bad-") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			want := fixturetest.Facts(t, name)
			f := openFile(t, fixturetest.Path(t, name))
			e, err := f.LastCommit(context.Background())
			require.NoError(t, err)
			require.Equal(t, endOf(want), e.End)
			require.Equal(t, want.Size-e.End, e.InFlight)
			require.Equal(t, e.InFlight > 0, e.Tail != filestorage.TailClean)

			tids, err := collect(f, e.End)
			require.NoError(t, err)
			slices.Reverse(tids)
			var golden []filestorage.TID
			for _, txn := range want.Transactions {
				golden = append(golden, txn.TID)
			}
			require.Equal(t, golden, tids)
		})
	}
}

func TestBackwardsShowsWhatLiesBehindDamage(t *testing.T) {
	for _, name := range []string{"bad-middle-length.fs", "bad-middle-status.fs", "bad-middle-checkpoint.fs"} {
		t.Run(name, func(t *testing.T) {
			f := openFile(t, fixturetest.Path(t, name))
			e, err := f.LastCommit(context.Background())
			require.NoError(t, err) // it does not look so far up
			tids, err := collect(f, e.End)
			require.ErrorAs(t, err, new(*filestorage.CorruptError))
			require.ErrorIs(t, err, fault.Unverified)
			require.Len(t, tids, 4)
		})
	}
}

// With something after the last commit, the end must be searched from the start; damage ends that.
func TestLastCommitAfterDamageIsTheBoundaryBeforeIt(t *testing.T) {
	path := fixturetest.Copy(t, "bad-middle-status.fs")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(b, "half a header"...), 0o644))
	e, err := openFile(t, path).LastCommit(context.Background())
	require.ErrorAs(t, err, new(*filestorage.CorruptError))
	require.Equal(t, fixturetest.Facts(t, "bad-middle-status.fs").GoodTo, e.End)
}

func TestCheckFileFindsWhatFstestFinds(t *testing.T) {
	for _, name := range fixturetest.Names(t) {
		t.Run(name, func(t *testing.T) {
			want := fixturetest.Facts(t, name)
			f := openFile(t, fixturetest.Path(t, name))
			h, err := f.CheckFile(context.Background(), nil)
			require.Equal(t, err == nil, h.OK)
			require.Equal(t, want.Size, h.Size)
			require.Equal(t, want.Magic, h.Magic)
			if h.Tail == "in-flight" { // of which fstest complains
				require.NoError(t, err)
				require.Positive(t, h.InFlight)
			} else {
				require.Equal(t, want.Fstest == "ok", err == nil, "%v; fstest: %s", err, want.Fstest)
			}
			if err != nil {
				require.ErrorIs(t, err, fault.Unverified)
				require.Equal(t, err.Error(), h.Problem)
			}
			if strings.HasPrefix(name, "bad-") {
				require.Equal(t, want.GoodTo, h.End)
				require.Empty(t, h.Tail)
				return
			}
			require.Zero(t, h.PrevMismatches)
			require.Equal(t, endOf(want), h.End)
			require.EqualValues(t, len(want.Transactions), h.Transactions)
			require.Equal(t, want.LastTID, h.LastTID)
			if want.Index != nil {
				require.Len(t, want.Index.Entries, h.Objects)
			}
			var records, back, deleted int64
			for _, txn := range want.Transactions {
				for _, r := range txn.Records {
					records++
					switch {
					case r.Back == nil:
					case *r.Back == 0:
						deleted++
					default:
						back++
					}
				}
			}
			require.Equal(t, []int64{records, back, deleted}, []int64{h.Records, h.BackPointers, h.Deletions})
		})
	}
}

// exchange writes a big-endian number at a place in a file.
func exchange(t *testing.T, path string, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte{0, 0, byte(n >> 40), byte(n >> 32), byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, off)
	require.NoError(t, err)
}

func TestCheckFileFollowsPointers(t *testing.T) {
	// A record with a back pointer, a record of another object before it, and one with a previous record.
	var back, other, after fixturetest.Record
	for _, txn := range fixturetest.Facts(t, "undo.fs").Transactions {
		for _, r := range txn.Records {
			switch {
			case back.Pos == 0 && r.Back != nil && *r.Back != 0:
				back = r
			case back.Pos == 0 && r.OID != 2:
				other = r
			case after.Pos == 0 && back.Pos != 0 && r.Prev != 0:
				after = r
			}
		}
	}
	require.EqualValues(t, 2, back.OID)
	const dataHeader, prevAt = filestorage.DataHeaderSize, 16
	for _, c := range []struct {
		name    string
		off, to int64
		says    string
		warns   int64
	}{
		{"a back pointer to another object's record is a fault", back.Pos + dataHeader, other.Pos, "a record of oid " + other.OID.String(), 0},
		{"a back pointer into the middle of a record is a fault", back.Pos + dataHeader, other.Pos + 3, "where no data record is", 0},
		{"a previous record that is not the last one is a warning", after.Pos + prevAt, other.Pos, "", 1},
		{"no previous record where there is one is a warning", after.Pos + prevAt, 0, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := fixturetest.Copy(t, "undo.fs")
			exchange(t, path, c.off, c.to)
			h, err := openFile(t, path).CheckFile(context.Background(), nil)
			require.Equal(t, c.warns, h.PrevMismatches)
			require.EqualValues(t, 15, h.Transactions, "it goes on behind the fault")
			x, ext, rerr := filestorage.Reindex(context.Background(), path, nil)
			require.NoError(t, rerr, "FileStorage does not look there when it makes its index")
			require.Equal(t, h.Objects, x.Len())
			require.Equal(t, filestorage.Extent{Start: filestorage.MagicSize, End: h.End, First: h.FirstTID, Last: h.LastTID, Transactions: 15, Reason: "clean"}, ext)
			if c.says == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, fault.Unverified)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestReindexWritesTheIndexOfFileStorage(t *testing.T) {
	// With faults too that do not keep FileStorage from opening it: tids that do not grow, a tail that is no transaction.
	for _, name := range []string{"plain.fs", "undo.fs", "packed.fs", "tail-voted.fs", "undone.fs", "fs21.fs", "nothing.fs", "tid-reduction.fs", "tail-garbage.fs"} {
		t.Run(name, func(t *testing.T) {
			want := fixturetest.Facts(t, name)
			require.NotNil(t, want.Index)
			path := fixturetest.Copy(t, name)
			require.NoError(t, os.WriteFile(path+".index", []byte("what a crash left"), 0o644))
			x, ext, err := filestorage.Reindex(context.Background(), path, nil)
			require.NoError(t, err)
			require.Equal(t, want.Index.Pos, ext.End)
			require.Equal(t, len(want.Index.Entries), x.Len())
			if x.Len() == 0 {
				return // which LoadIndex refuses, as FileStorage does
			}
			got, pos, err := openFile(t, path).LoadIndex(path + ".index")
			require.NoError(t, err)
			require.Equal(t, want.Index.Pos, pos)
			for _, e := range want.Index.Entries {
				at, ok := got.Get(e.OID)
				require.True(t, ok)
				require.Equal(t, e.Pos, at)
			}
			_, held, err := filestorage.LockHolder(path)
			require.NoError(t, err)
			require.False(t, held)
		})
	}
}

func TestReindexLeavesTheOldIndexWhenItFails(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name, fixture string
		ctx           context.Context
		locked        bool
		is            error
	}{
		{"at damage", "bad-tloc.fs", context.Background(), false, fault.Unverified},
		{"when a server has the lock", "plain.fs", context.Background(), true, fault.Busy},
		{"when it is stopped", "plain.fs", ended, false, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := fixturetest.Copy(t, c.fixture)
			require.NoError(t, os.WriteFile(path+".index", []byte("old"), 0o644))
			if c.locked {
				l, err := filestorage.AcquireLock(path)
				require.NoError(t, err)
				defer l.Release()
			}
			_, _, err := filestorage.Reindex(c.ctx, path, nil)
			require.ErrorIs(t, err, c.is)
			b, err := os.ReadFile(path + ".index")
			require.NoError(t, err)
			require.Equal(t, "old", string(b))
			require.NoFileExists(t, path+".index.index_tmp")
		})
	}
}
