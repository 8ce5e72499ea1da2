package restore

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/fixtures/fixturetest"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// compared is all that a Diff tells.
type compared struct {
	DiffResult
	txns    []OnlyTransaction
	changed []ChangedObject
}

func (c compared) tids(side string) (tids []filestorage.TID) {
	for _, t := range c.txns {
		if t.Side == side {
			tids = append(tids, t.TID)
		}
	}
	return tids
}

// compare opens a file or a directory on each side.
func compare(t require.TestingT, a, b string) (c compared, err error) {
	var sides [2]*Side
	for i, path := range []string{a, b} {
		if fi, serr := os.Stat(path); serr == nil && fi.IsDir() {
			sides[i], err = OpenRepositorySide(context.Background(), incremental.Dir(path))
		} else {
			sides[i], err = OpenFileSide(context.Background(), path)
		}
		if err != nil {
			return c, err
		}
		defer sides[i].Close()
	}
	c.DiffResult, err = Diff(context.Background(), DiffOptions{A: sides[0], B: sides[1],
		Transaction: func(t OnlyTransaction) error { c.txns = append(c.txns, t); return nil },
		Object:      func(o ChangedObject) error { c.changed = append(c.changed, o); return nil }})
	return c, err
}

// twins are two files that were the same once.
type twins struct {
	t     require.TestingT
	rng   *rand.Rand
	clock time.Time
	a, b  *fixtures.Grower
	// common is the position and the last transaction until which they were the same.
	common Mark
}

func newTwins(t require.TestingT, dir string, transactions int) *twins {
	w := &twins{t: t, rng: rand.New(rand.NewPCG(5, 6)), clock: time.Date(2024, 3, 1, 10, 0, 0, 0, time.UTC)}
	var err error
	w.a, err = fixtures.Create(filepath.Join(dir, "a.fs"), fixtures.Options{NoSync: true, Now: w.now})
	require.NoError(t, err)
	w.commit(w.a, transactions)
	w.split()
	return w
}

// split makes b what a is.
func (w *twins) split() {
	path := filepath.Join(filepath.Dir(w.a.Path()), "b.fs")
	b, err := os.ReadFile(w.a.Path())
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(path, b, 0o644))
	if w.b != nil {
		require.NoError(w.t, w.b.Close())
	}
	w.b, err = fixtures.Open(path, fixtures.Options{NoSync: true, Now: w.now})
	require.NoError(w.t, err)
	w.common = markAt(w.a.Size(), w.a.LastTID())
}

func (w *twins) close() {
	w.a.Close()
	w.b.Close()
}

func (w *twins) now() time.Time {
	w.clock = w.clock.Add(time.Second)
	return w.clock
}

func (w *twins) commit(g *fixtures.Grower, n int) {
	for range n {
		_, err := g.CommitRandom(w.rng, 4, 200)
		require.NoError(w.t, err)
	}
}

// facts is what an oracle reads of a Data.fs.
type facts struct {
	tids    map[filestorage.TID]bool
	current map[filestorage.OID]filestorage.TID // without those that were deleted
}

func factsOf(t require.TestingT, path string) facts {
	f, c, err := filestorage.Open(path)
	require.NoError(t, err)
	defer c.Close()
	x := facts{map[filestorage.TID]bool{}, map[filestorage.OID]filestorage.TID{}}
	for txn, err := range f.Transactions(filestorage.MagicSize) {
		require.NoError(t, err)
		x.tids[txn.TID] = true
		for r, err := range txn.Records() {
			require.NoError(t, err)
			if x.current[r.OID] = txn.TID; r.DataLen == 0 && r.Back == 0 {
				delete(x.current, r.OID)
			}
		}
	}
	return x
}

func without(x, y map[filestorage.TID]bool) (only []filestorage.TID) {
	for tid := range x {
		if !y[tid] {
			only = append(only, tid)
		}
	}
	slices.Sort(only)
	return only
}

// requireFacts holds a comparison to what an oracle finds in the two files.
func requireFacts(t require.TestingT, c compared, a, b string) {
	x, y := factsOf(t, a), factsOf(t, b)
	require.Equal(t, without(x.tids, y.tids), c.tids("a"))
	require.Equal(t, without(y.tids, x.tids), c.tids("b"))
	require.EqualValues(t, len(c.tids("a")), c.A.Transactions)
	require.EqualValues(t, len(c.tids("b")), c.B.Transactions)
	want := map[filestorage.OID]bool{}
	for _, m := range []facts{x, y} {
		for oid := range m.current {
			if x.current[oid] != y.current[oid] {
				want[oid] = true
			}
		}
	}
	got := map[filestorage.OID]bool{}
	for _, o := range c.changed {
		if o.DeletedA && o.B == 0 && y.current[o.OID] == 0 || o.DeletedB && o.A == 0 && x.current[o.OID] == 0 || o.DeletedA && o.DeletedB {
			continue // made and deleted on one side alone
		}
		got[o.OID] = true
	}
	require.Equal(t, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
}

func TestDiffAgreesWithAnOracle(t *testing.T) {
	fewer(t, "60")
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "diff")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		w := newTwins(t, dir, rapid.IntRange(0, 12).Draw(t, "common"))
		defer w.close()
		packed := false
		for range rapid.IntRange(0, 6).Draw(t, "steps") {
			g := w.a
			if rapid.Bool().Draw(t, "b") {
				g = w.b
			}
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				inode := inodeOf(t, g.Path())
				require.NoError(t, g.Pack(g.LastTID()-filestorage.TID(rapid.IntRange(0, 3).Draw(t, "before")<<30)))
				packed = packed || inode != inodeOf(t, g.Path())
			case 1:
				txn := g.BeginRandom(w.rng, 2, 100)
				require.NoError(t, txn.Vote())
				require.NoError(t, txn.Abort())
			default:
				w.commit(g, rapid.IntRange(1, 3).Draw(t, "commits"))
			}
		}
		c, err := compare(t, w.a.Path(), w.b.Path())
		require.NoError(t, err)
		requireFacts(t, c, w.a.Path(), w.b.Path())
		if !packed {
			require.Equal(t, w.common.LastTID, c.LastCommon)
			require.Equal(t, c.Same, w.a.Size() == w.common.Position && w.b.Size() == w.common.Position)
			if w.common.LastTID != 0 {
				require.Equal(t, w.common, c.Common)
			}
			require.Zero(t, c.A.Unsure+c.B.Unsure)
		}
		for _, o := range c.changed {
			if o.Unsure {
				continue
			}
			// What is called sure was never on the other side: it came after the parting.
			if o.Side != "b" {
				require.Greater(t, o.A, w.common.LastTID)
			}
			if o.Side != "a" {
				require.Greater(t, o.B, w.common.LastTID)
			}
		}
		for _, o := range c.txns {
			if !o.Unsure {
				require.Greater(t, o.TID, w.common.LastTID)
			}
		}
		require.Zero(t, c.Altered)
		// The other way round it is the same.
		r, err := compare(t, w.b.Path(), w.a.Path())
		require.NoError(t, err)
		require.Equal(t, c.Same, r.Same)
		require.Equal(t, c.tids("a"), r.tids("b"))
		require.Equal(t, c.Common, r.Common)
		require.Len(t, r.changed, len(c.changed))
		require.Equal(t, c.A.Unsure, r.B.Unsure)
	})
}

func inodeOf(t require.TestingT, path string) os.FileInfo {
	fi, err := os.Stat(path)
	require.NoError(t, err)
	return fi
}

func TestDiffOfEveryKindOfSides(t *testing.T) {
	p := following(t)
	f := p.failOver(3)
	before := filepath.Join(p.dir, "before.fs")
	require.NoError(t, os.WriteFile(before, raw(t, f.former), 0o644))
	former := p.dir + "/former-repo"
	require.NoError(t, os.CopyFS(former, os.DirFS(string(p.repo))))
	p.backup(func(o *incremental.BackupOptions) { o.Repository = incremental.Dir(former) })
	f.goOn(2)
	f.goOn(2)
	res, err := f.rejoin()
	require.NoError(t, err)
	common := res.Common
	for _, c := range []struct {
		name, a, b  string
		onlyA       int
		onlyB       int
		startsLater bool
	}{
		{"two files", before, f.data, 3, 4, false},
		{"a file and a repository", before, string(f.shipped), 3, 4, false},
		{"a repository and a file", former, f.data, 3, 4, false},
		{"two repositories", former, string(f.shipped), 3, 4, false},
		{"diverged bytes and a file", res.Saved, f.data, 3, 4, true},
		{"diverged bytes and a repository", res.Saved, string(f.shipped), 3, 4, true},
		{"diverged bytes and the file that they were cut from", res.Saved, before, 0, 0, true},
		{"diverged bytes and what is left", res.Saved, f.former, 3, 0, true},
		{"a file and the repository that it was backed up into", f.data, string(f.shipped), 0, 0, false},
		{"a file that is behind", f.former, f.data, 0, 4, false},
	} {
		for _, turned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, turned %v", c.name, turned), func(t *testing.T) {
				a, b, onlyA, onlyB := c.a, c.b, c.onlyA, c.onlyB
				if turned {
					a, b, onlyA, onlyB = b, a, onlyB, onlyA
				}
				got, err := compare(t, a, b)
				require.NoError(t, err)
				require.Len(t, got.tids("a"), onlyA)
				require.Len(t, got.tids("b"), onlyB)
				require.Equal(t, onlyA+onlyB == 0, got.Same)
				if onlyA+onlyB > 0 {
					require.Equal(t, common, got.Common)
					require.Equal(t, common.LastTID, got.LastCommon)
				}
				if c.startsLater {
					return
				}
				if !isDir(a) && !isDir(b) {
					requireFacts(t, got, a, b)
				}
			})
		}
	}
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

func TestDiffTellsWhatATransactionWas(t *testing.T) {
	w := newTwins(t, t.TempDir(), 3)
	defer w.close()
	pos := w.a.Size()
	tid, err := w.a.Commit("admin", "a change", fixtures.Record{OID: 7, Data: []byte("x")}, fixtures.Record{OID: 9, Data: []byte("y")})
	require.NoError(t, err)
	c, err := compare(t, w.a.Path(), w.b.Path())
	require.NoError(t, err)
	require.Len(t, c.txns, 1)
	require.Equal(t, OnlyTransaction{Side: "a", Change: Change{Position: pos, TID: tid, Time: tid.Time(), Length: w.a.Size() - pos, User: "admin",
		Description: "a change", Records: 2, OIDs: []filestorage.OID{7, 9}}}, c.txns[0])
	require.EqualValues(t, 2, c.A.Objects)
}

func TestDiffAfterAPack(t *testing.T) {
	t.Run("of the real ZODB", func(t *testing.T) {
		a, b := fixturetest.Path(t, "packed-before.fs"), fixturetest.Path(t, "packed.fs")
		c, err := compare(t, a, b)
		require.NoError(t, err)
		require.False(t, c.Same)
		require.NotZero(t, c.B.PackedTo)
		require.EqualValues(t, 3, c.B.Transactions, "that were committed after the pack")
		require.Zero(t, c.B.Unsure)
		require.Equal(t, c.A.Transactions, c.A.Unsure, "all of it may be the pack's doing")
		require.Zero(t, c.Altered)
		for _, o := range c.changed {
			require.Equal(t, o.Side == "a", o.Unsure, "garbage that the pack has removed, or one of the three")
		}
		require.NotZero(t, c.LastCommon)
	})
	t.Run("of the new master, and a former one that diverged", func(t *testing.T) {
		p := following(t)
		_, err := p.g.Commit("u", "common", fixtures.Record{OID: 3000, Data: []byte("c")})
		require.NoError(t, err)
		p.step(0)
		f := p.failOver(0)
		g := f.reopen()
		oid := filestorage.OID(4000)
		store := func(g *fixtures.Grower, text string) filestorage.TID {
			tid, err := g.Commit("u", text, fixtures.Record{OID: oid, Data: []byte(text)})
			require.NoError(t, err)
			return tid
		}
		lost := store(g, "only the former master has a new object") // nothing shows whether a pack has removed it
		oid = 3000
		sure := store(g, "a change of an object that the new master has as it was")
		require.NoError(t, g.Close())
		_, err = f.next.Commit("u", "later", fixtures.Record{OID: 5000, Data: []byte("z")})
		require.NoError(t, err)
		require.NoError(t, f.next.Pack(f.next.LastTID()))
		f.goOn(1)
		c, err := compare(t, f.former, f.data)
		require.NoError(t, err)
		require.Subset(t, c.tids("a"), []filestorage.TID{lost, sure})
		byOID := map[filestorage.OID]ChangedObject{}
		for _, o := range c.changed {
			byOID[o.OID] = o
		}
		require.True(t, byOID[4000].Unsure)
		require.Equal(t, "a", byOID[4000].Side)
		require.False(t, byOID[3000].Unsure, "a pack would have kept it")
		require.Equal(t, sure, byOID[3000].A)
		require.Equal(t, c.A.Transactions-1, c.A.Unsure)
	})
}

func TestDiffOfWhatCannotBeCompared(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, b, 0o644))
		return path
	}
	plain := fixturetest.Path(t, "plain.fs")
	empty := t.TempDir()
	v := newVault(t)
	v.commit(3)
	v.backup()
	v.commit(2)
	res := v.backup()
	v.commit(2)
	v.backup()
	broken := filepath.Join(dir, "broken")
	require.NoError(t, os.CopyFS(broken, os.DirFS(string(v.repo))))
	require.NoError(t, os.Remove(filepath.Join(broken, res.File)))
	damaged := filepath.Join(dir, "damaged")
	require.NoError(t, os.CopyFS(damaged, os.DirFS(string(v.repo))))
	change(t, filepath.Join(damaged, res.File), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	for _, c := range []struct {
		name, a, b string
		kind       error
		says       string
	}{
		{"a file that is not there", plain, filepath.Join(dir, "none"), os.ErrNotExist, "none"},
		{"a file that is none", plain, write("text", []byte("text")), filestorage.ErrNotFileStorage, "text"},
		{"a file that is damaged in its middle", plain, fixturetest.Path(t, "bad-middle-length.fs"), fault.Unverified, "corrupt"},
		{"a file whose tids do not grow", fixturetest.Path(t, "packed.fs"), fixturetest.Path(t, "tid-reduction.fs"), fault.Unverified, "is not greater"},
		{"an empty directory", plain, empty, fault.Gap, "no chain"},
		{"a repository with a gap", v.g.Path(), broken, fault.Gap, "broken"},
		{"a repository that is damaged", plain, damaged, fault.Unverified, res.File},
		{"diverged bytes of a newer format", plain, write("newer", []byte("zodbrepl diverged 2\n{}\n")), fault.Unverified, "newer zodbrepl"},
		{"diverged bytes that were cut", plain, write("cut", []byte("zodbrepl diverged 1\n{\"position\":99,\"bytes\":5}\nabc")), fault.Unverified, "it was cut"},
		{"diverged bytes without a head", plain, write("headless", []byte("zodbrepl diverged 1\nabc")), fault.Unverified, "head"},
	} {
		for _, turned := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, turned %v", c.name, turned), func(t *testing.T) {
				a, b := c.a, c.b
				if turned {
					a, b = b, a
				}
				_, err := compare(t, a, b)
				require.ErrorIs(t, err, c.kind)
				require.ErrorContains(t, err, c.says)
			})
		}
	}
}

func TestDiffOfOddFiles(t *testing.T) {
	dir := t.TempDir()
	plain := fixturetest.Path(t, "plain.fs")
	b := raw(t, plain)
	magic := filepath.Join(dir, "magic.fs")
	require.NoError(t, os.WriteFile(magic, b[:4], 0o644))
	w := newTwins(t, dir, 4)
	defer w.close()
	require.NoError(t, w.b.BeginRandom(w.rng, 2, 100).Vote())
	other := filepath.Join(dir, "altered.fs")
	altered := raw(t, w.a.Path())
	altered[len(altered)-8-42-1] ^= 1 // a byte of data: headers do not show it, but the proof
	require.NoError(t, os.WriteFile(other, altered, 0o644))
	for _, c := range []struct {
		name, a, b string
		same       bool
		last       filestorage.TID
	}{
		{"a file and itself", plain, plain, true, 0},
		{"two empty files", magic, magic, true, 0},
		{"an empty file and another", magic, plain, false, 0},
		{"a file with a transaction in flight", w.a.Path(), w.b.Path(), true, w.common.LastTID},
		{"two databases", plain, w.a.Path(), false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := compare(t, c.a, c.b)
			require.NoError(t, err)
			require.Equal(t, c.same, got.Same)
			if c.last != 0 {
				require.Equal(t, c.last, got.LastCommon)
			}
			requireFacts(t, got, c.a, c.b)
		})
	}
	got, err := compare(t, w.a.Path(), w.b.Path())
	require.NoError(t, err)
	require.Positive(t, got.B.InFlight)

	got, err = compare(t, w.a.Path(), other)
	require.NoError(t, err)
	require.False(t, got.Same)
	require.EqualValues(t, 1, got.Altered)
	require.Less(t, got.Common.Position, w.common.Position)
	require.Equal(t, w.common.LastTID, got.LastCommon)
}

func TestWhatWasKeptBeforeAPackIsSureAfterIt(t *testing.T) {
	p := following(t)
	_, err := p.g.Commit("u", "common", fixtures.Record{OID: 3000, Data: []byte("c")})
	require.NoError(t, err)
	p.step(0)
	f := p.failOver(0)
	g := f.reopen()
	lost, err := g.Commit("u", "lost", fixtures.Record{OID: 3000, Data: []byte("l")})
	require.NoError(t, err)
	require.NoError(t, g.Close())
	f.goOn(1)
	res, err := f.rejoin()
	require.NoError(t, err)
	f.goOn(2)
	require.NoError(t, f.next.Pack(f.next.LastTID()))
	for _, b := range []string{f.data, string(f.shipped)} {
		f.goOn(1)
		c, err := compare(t, res.Saved, b)
		require.NoError(t, err)
		require.Equal(t, []filestorage.TID{lost}, c.tids("a"))
		require.Zero(t, c.A.Unsure)
		for _, o := range c.changed {
			if o.OID == 3000 {
				require.Equal(t, "a", o.Side)
				require.False(t, o.Unsure)
				require.Equal(t, lost, o.A)
				require.NotZero(t, o.B)
			}
		}
	}
}

func TestDiffReadsRepositoriesThatRepozoMade(t *testing.T) {
	dir := filepath.Join(filepath.Dir(fixturetest.Path(t, "plain.fs")), "repozo")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		repo := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			continue
		}
		side, err := OpenRepositorySide(t.Context(), incremental.Dir(repo))
		if err != nil {
			continue
		}
		require.NoError(t, side.Close())
		out := filepath.Join(t.TempDir(), "Data.fs")
		if _, err := Recover(t.Context(), RecoverOptions{Source: incremental.Dir(repo), Output: out}); err != nil {
			continue
		}
		n++
		c, err := compare(t, repo, out)
		require.NoError(t, err)
		require.True(t, c.Same, e.Name())
		g, err := fixtures.Open(out, fixtures.Options{})
		require.NoError(t, err)
		_, err = g.Commit("u", "one more", fixtures.Record{OID: 1, Data: []byte("x")})
		require.NoError(t, err)
		require.NoError(t, g.Close())
		c, err = compare(t, repo, out)
		require.NoError(t, err)
		require.Len(t, c.tids("b"), 1)
		require.Equal(t, c.txns[0].Position, c.Common.Position)
	}
	require.Positive(t, n)
}

func TestDiffEndsWhenItIsStopped(t *testing.T) {
	a, err := OpenFileSide(t.Context(), fixturetest.Path(t, "plain.fs"))
	require.NoError(t, err)
	defer a.Close()
	b, err := OpenFileSide(t.Context(), fixturetest.Path(t, "packed.fs"))
	require.NoError(t, err)
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Diff(ctx, DiffOptions{A: a, B: b})
	require.ErrorIs(t, err, context.Canceled)
}
