package restore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures/fixturetest"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// Files of the real ZODB are backed up two transactions at a time; every transaction is then recovered, by tid and
// by time, and held to where ZODB says that it ends.
func TestEveryTransactionOfRealFilesIsRecovered(t *testing.T) {
	for _, name := range []string{"plain.fs", "fs21.fs", "undo.fs", "packed-before.fs", "packed.fs", "empty-txn.fs", "large.fs", "undone.fs", "blobs.fs", "tail-voted.fs", "tail-garbage.fs"} {
		t.Run(name, func(t *testing.T) {
			facts := fixturetest.Facts(t, name)
			raw, err := os.ReadFile(fixturetest.Path(t, name))
			require.NoError(t, err)
			v := newVault(t)
			v.clock = v.clock.AddDate(1, 0, 0)
			path := filepath.Join(t.TempDir(), "Data.fs")
			txns := facts.Transactions
			end := func(i int) int64 { return txns[i].Pos + int64(txns[i].Length) + 8 }
			for i := 1; i < len(txns); i += 2 {
				require.NoError(t, os.WriteFile(path, raw[:end(i)], 0o644))
				v.backupOf(path)
			}
			require.NoError(t, os.WriteFile(path, raw, 0o644))
			v.backupOf(path)
			require.GreaterOrEqual(t, len(v.manifests()), len(txns)/2)
			for i, txn := range txns {
				want := raw[:end(i)]
				if i+1 < len(txns) && txns[i+1].Status == "p" {
					v.requireGap(txn.TID)
					continue
				}
				v.requireAt(txn.TID, want)
				v.requireAt(txn.TID+1, want)
				if i > 0 && txn.Status != "p" {
					v.requireAt(txn.TID-1, raw[:end(i-1)])
				}
				out := filepath.Join(t.TempDir(), "Data.fs")
				at, err := ParseMoment(txn.TID.Time().Format(time.RFC3339Nano))
				require.NoError(t, err)
				res, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Output: out, At: at})
				require.NoError(t, err)
				require.Equal(t, txn.TID, res.LastTID)
				require.Equal(t, txn.TID.Time(), res.LastTime)
				require.EqualValues(t, i+1, res.Transactions)
				require.EqualValues(t, len(want), res.Size)
				requireSame(t, want, read(t, out))
				requireIndexed(t, out)
				requireClean(t, out)
			}
			v.requireGap(txns[0].TID - 1)
			v.requireAt(0, raw[:end(len(txns)-1)])
			v.requireAt(txns[len(txns)-1].TID+1<<40, raw[:end(len(txns)-1)])
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

func TestADataFsOfOnlyTheMagicIsRecovered(t *testing.T) {
	v := newVault(t)
	v.backup()
	v.requireAt(0, []byte("FS30"))
	out := filepath.Join(t.TempDir(), "Data.fs")
	res, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Output: out})
	require.NoError(t, err)
	require.Zero(t, res.LastTID)
	require.Equal(t, "FS30", string(read(t, out)))
	// With transactions in a delta behind it, a moment before them is before everything.
	v.commit(2)
	v.backup()
	ms := moments(t, v.bytes())
	err = v.requireGap(ms[0].tid-1, ms[0].tid)
	require.ErrorContains(t, err, "before the first transaction")
	v.requireAt(ms[0].tid, ms[0].raw)
}

// The history of one database over deltas, a forced full and packs. Each moment is had from the chain that was
// current then.
func TestEveryMomentOverChainsAndPacks(t *testing.T) {
	v := newVault(t)
	v.commit(4)
	v.backup()
	v.commit(3)
	v.backup()
	forced := len(moments(t, v.bytes()))
	v.commit(2) // backed up by the forced full only
	v.backup(full)
	v.commit(2)
	v.backup()
	first := moments(t, v.bytes())
	require.Greater(t, len(first), forced+3)
	v.commit(3) // never backed up before the pack
	lost := moments(t, v.bytes())[len(first):]
	require.NoError(t, v.g.Pack(lost[1].tid))
	v.commit(2)
	require.Equal(t, "full", v.backup().Action)
	v.commit(2)
	v.backup()
	second := moments(t, v.bytes())
	require.NoError(t, v.g.Pack(second[len(second)-1].tid))
	v.commit(1)
	require.Equal(t, "full", v.backup().Action)
	v.commit(2)
	v.backup()
	third := moments(t, v.bytes())
	ms := v.manifests()
	require.Equal(t, lost[1].tid, ms[4].PackedTo)

	last := first[len(first)-1].tid
	for _, m := range first {
		v.requireAt(m.tid, m.raw)
		if m.tid != last {
			v.requireAt(m.tid+1, m.raw)
		}
	}
	v.requireGap(first[0].tid-1, first[0].tid)
	// Between the last backup and what the pack left, nothing can be had, and both sides are named.
	err := v.requireGap(last+1, last, lost[1].tid)
	require.ErrorContains(t, err, "removed by a pack")
	v.requireGap(lost[0].tid, last, lost[1].tid)
	v.requireGap(lost[1].tid-1, last, lost[1].tid)
	for _, m := range second {
		if m.tid >= lost[1].tid {
			v.requireAt(m.tid, m.raw)
		}
	}
	for _, m := range third {
		if m.tid > second[len(second)-1].tid {
			v.requireAt(m.tid, m.raw)
		}
	}
	v.requireAt(0, third[len(third)-1].raw)
	v.requireAt(third[len(third)-1].tid+1, third[len(third)-1].raw)
}

func TestTheCurrentChainGivesTheMomentAndTheNextOnlyWhatItLacks(t *testing.T) {
	v := newVault(t)
	v.commit(2)
	v.backup()
	v.commit(2)
	v.backup(full) // no pack: it holds the same and more
	all := moments(t, v.bytes())
	ms := v.manifests()
	for i, m := range all {
		res, err := Recover(t.Context(), RecoverOptions{Source: v.repo, DryRun: true, At: momentAt(m.tid)})
		require.NoError(t, err)
		require.Equal(t, ms[i/2].Chain, res.Chain, "transaction %d", i)
	}
	// When the chain of that time is gone or broken, the full gives it too.
	require.NoError(t, os.WriteFile(v.repo.Path(incremental.ManifestName(ms[0].Stamp)), []byte("{"), 0o644))
	for _, m := range all {
		v.requireAt(m.tid, m.raw)
	}
}

// Tids and stamps are of different clocks: a database whose clock is ahead of that of the backups.
func TestAMomentIsFoundWhenTheClocksDisagree(t *testing.T) {
	for _, skew := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			v := newVault(t)
			wrong := func(o *incremental.BackupOptions) { o.Now = func() time.Time { return v.clock.Add(skew) } }
			v.commit(3)
			v.backup(wrong)
			first := moments(t, v.bytes())
			require.NoError(t, v.g.Pack(first[2].tid))
			v.commit(2)
			require.Equal(t, "full", v.backup(wrong).Action)
			second := moments(t, v.bytes())
			for _, m := range first[:2] {
				v.requireAt(m.tid, m.raw)
			}
			for _, m := range second[len(second)-2:] {
				v.requireAt(m.tid, m.raw)
			}
		})
	}
}

// golden is what the real repozo recovers from the repositories that it made.
type golden struct {
	Repository string `json:"repository"`
	Files      []any  `json:"files"`
	Recover    []struct {
		Date        *string `json:"date"`
		Error       *string `json:"error"`
		Size        *int64  `json:"size"`
		SHA256      *string `json:"sha256"`
		IndexSHA256 *string `json:"index_sha256"`
	} `json:"recover"`
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestRepositoriesOfRepozoAreRecoveredAtEveryDate(t *testing.T) {
	for _, name := range []string{"gzip", "plain", "mixed"} {
		var want golden
		fixturetest.JSON(t, "repozo/"+name+".json", &want)
		repo := incremental.Dir(fixturetest.Path(t, "repozo/"+name))
		for _, w := range want.Recover {
			date := ""
			if w.Date != nil {
				date = *w.Date
			}
			t.Run(fmt.Sprintf("%s at %q", name, date), func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "Data.fs")
				before := tree(t, string(repo))
				res, err := Recover(t.Context(), RecoverOptions{Source: repo, Output: out, Until: incremental.Stamp(date)})
				require.Equal(t, before, tree(t, string(repo)))
				if w.Error != nil {
					require.ErrorIs(t, err, fault.Gap)
					require.Contains(t, strings.ToLower(err.Error()), strings.ToLower(*w.Error))
					require.NoFileExists(t, out)
					return
				}
				require.NoError(t, err)
				require.Equal(t, *w.Size, res.Size)
				require.Equal(t, *w.SHA256, hexSum(read(t, out)))
				require.Equal(t, *w.IndexSHA256, hexSum(read(t, out+".index")), "FileStorage's own index of that moment")
				requireIndexed(t, out)
			})
		}
	}
}

// What repozo made has no manifests: which transactions are in it must be read.
func TestEveryMomentOfARepositoryOfRepozo(t *testing.T) {
	v := newVault(t)
	v.repo = incremental.Dir(fixturetest.Copy(t, "repozo/gzip"))
	recovered := func(until incremental.Stamp) []byte {
		var b bytes.Buffer
		_, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Stdout: &b, Until: until})
		require.NoError(t, err)
		return b.Bytes()
	}
	check := func() {
		t.Helper()
		first, second := moments(t, recovered("2024-03-03-01-00-00")), moments(t, recovered("2030"))
		for _, m := range first {
			v.requireAt(m.tid, m.raw)
		}
		last := first[len(first)-1].tid
		v.requireGap(first[0].tid-1, first[0].tid)
		for _, m := range second {
			switch {
			case m.tid > last && m.gone:
				v.requireGap(m.tid, last)
			case m.tid > last:
				v.requireAt(m.tid, m.raw)
			}
		}
		v.requireAt(0, second[len(second)-1].raw)
	}
	check()
	// Then zodbrepl goes on with it: the newest chain gets manifests, the old one has none.
	path := filepath.Join(t.TempDir(), "Data.fs")
	require.NoError(t, os.WriteFile(path, recovered("2030"), 0o644))
	require.NoError(t, v.g.Close())
	var err error
	v.clock = time.Date(2024, 4, 1, 0, 0, 0, 0, time.UTC)
	v.g, err = fixturesOpen(path, v.now)
	require.NoError(t, err)
	v.commit(2)
	require.Equal(t, "delta", v.backup().Action)
	v.commit(2)
	require.Equal(t, "delta", v.backup().Action)
	check()
	all := moments(t, v.bytes())
	for _, m := range all[len(all)-5:] {
		v.requireAt(m.tid, m.raw)
	}
}

func TestADryRunChangesNothing(t *testing.T) {
	v := newVault(t)
	v.commit(3)
	v.backup()
	v.commit(3)
	v.backup()
	all := moments(t, v.bytes())
	dir := t.TempDir()
	out := filepath.Join(dir, "Data.fs")
	require.NoError(t, os.WriteFile(out, []byte("old"), 0o644))
	repo, there := tree(t, string(v.repo)), tree(t, dir)
	for _, c := range []struct {
		at           filestorage.TID
		increments   int
		transactions int64 // at most
		last         filestorage.TID
	}{
		{0, 2, 6, all[5].tid},
		{all[5].tid, 2, 6, all[5].tid},
		{all[4].tid, 2, 6, 0}, // only reading would tell
		{all[2].tid, 1, 3, all[2].tid},
		{all[1].tid, 1, 3, 0},
	} {
		res, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Output: out, At: momentAt(c.at), DryRun: true})
		require.NoError(t, err)
		require.Len(t, res.Increments, c.increments)
		require.Equal(t, c.transactions, res.Transactions)
		require.Equal(t, c.last, res.LastTID)
		require.True(t, res.DryRun)
		require.Equal(t, repo, tree(t, string(v.repo)))
		require.Equal(t, there, tree(t, dir))
	}
	_, err := Recover(t.Context(), RecoverOptions{Source: v.repo, At: momentAt(all[0].tid - 1), DryRun: true})
	require.ErrorIs(t, err, fault.Gap)
}

func TestStandardOutputIsTheFile(t *testing.T) {
	v := newVault(t)
	v.commit(5)
	v.backup()
	ms := moments(t, v.bytes())
	var b bytes.Buffer
	res, err := Recover(t.Context(), RecoverOptions{Source: v.repo, Stdout: &b, At: momentAt(ms[2].tid)})
	require.NoError(t, err)
	requireSame(t, ms[2].raw, b.Bytes())
	require.Equal(t, ms[2].tid, res.LastTID, "the result tells what was written")
	require.EqualValues(t, 3, res.Transactions)
	_, err = Recover(t.Context(), RecoverOptions{Source: v.repo, Stdout: failingWriter{}})
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorContains(t, err, "not whole")
	_, err = Recover(t.Context(), RecoverOptions{Source: v.repo})
	require.ErrorIs(t, err, fault.Usage)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }
