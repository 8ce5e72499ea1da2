package restore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
)

// duo is two hosts that take turns as the master, with one directory between them.
type duo struct {
	t       *rapid.T
	rng     *rand.Rand
	clock   time.Time
	shared  incremental.Dir
	master  string // Data.fs of either
	standby string
}

func (d *duo) now() time.Time {
	d.clock = d.clock.Add(time.Second)
	return d.clock
}

// write does to a Data.fs what a ZEO server and its death may do.
func (d *duo) write(data string, transactions int) {
	g, err := fixtures.Open(data, fixtures.Options{NoSync: true, Now: d.now})
	require.NoError(d.t, err)
	defer g.Close()
	for range transactions {
		_, err := g.CommitRandom(d.rng, 3, rapid.SampledFrom([]int{50, 400, 30000}).Draw(d.t, "size"))
		require.NoError(d.t, err)
	}
	switch rapid.IntRange(0, 5).Draw(d.t, "end") {
	case 0:
		require.NoError(d.t, g.BeginRandom(d.rng, 2, 300).Vote())
	case 1:
		require.NoError(d.t, g.Pack(g.LastTID()))
	}
}

func (d *duo) backup() {
	d.clock = d.clock.Add(time.Minute)
	o := incremental.BackupOptions{Data: d.master, Repository: d.shared, Now: d.now}
	o.Full = rapid.IntRange(0, 9).Draw(d.t, "full") == 0
	o.Codec = rapid.SampledFrom([]string{"gzip", "none"}).Draw(d.t, "codec")
	_, err := Backup(context.Background(), o)
	require.NoError(d.t, err)
}

func (d *duo) watch(data string) {
	_, err := Watch(context.Background(), WatchOptions{Source: d.shared, Data: data, Once: true, Now: d.now})
	require.NoError(d.t, err)
}

// rejoin may die, as often as not, and is repeated.
func (d *duo) rejoin(data string) RejoinResult {
	o := RejoinOptions{Data: data, Source: d.shared, Now: d.now}
	point := rapid.SampledFrom([]string{"", "saved", "listed", "intended", "unindexed", "cut", "rejoined"}).Draw(d.t, "crash")
	func() {
		defer func() {
			if r := recover(); r != nil && r != any(errCrash) {
				panic(r)
			}
		}()
		died := o
		died.crash = func(at string) {
			if at == point {
				panic(errCrash)
			}
		}
		_, err := Rejoin(context.Background(), died)
		require.NoError(d.t, err)
	}()
	res, err := Rejoin(context.Background(), o)
	require.NoError(d.t, err)
	return res
}

// committed is a Data.fs without what is in flight.
func (d *duo) committed(data string) []byte {
	f, c, err := filestorage.Open(data)
	require.NoError(d.t, err)
	defer c.Close()
	e, err := f.LastCommit(context.Background())
	require.NoError(d.t, err)
	b, err := os.ReadFile(data)
	require.NoError(d.t, err)
	return b[:e.End]
}

// requireKept requires that every byte of the former master is common or kept.
func (d *duo) requireKept(before []byte, former string) {
	st, ok, err := ReadState(former)
	require.NoError(d.t, err)
	require.True(d.t, ok)
	require.NotNil(d.t, st.Rejoin)
	at := st.Rejoin.Common.Position
	if st.Rejoin.Saved == "" {
		if st.Applied.Position > 0 { // cut, and all of it common
			require.EqualValues(d.t, len(before), at)
		}
	} else if whole, err := os.ReadFile(st.Rejoin.Saved); err == nil && bytes.HasPrefix(whole, []byte("FS")) {
		requireSame(d.t, before, whole)
		return
	} else {
		requireKept(d.t, st.Rejoin.Saved, before, at)
	}
	now := d.committed(d.master)
	require.GreaterOrEqual(d.t, int64(len(now)), at)
	requireSame(d.t, before[:at], now[:at])
}

func TestAnyNumberOfFailoversAndRejoinsLosesNothing(t *testing.T) {
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	fewer(t, "40")
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "rejoin")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		d := &duo{t: t, rng: rand.New(rand.NewPCG(7, 8)), clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
			shared: incremental.Dir(filepath.Join(dir, "shared")), master: filepath.Join(dir, "bms1", "Data.fs"), standby: filepath.Join(dir, "bms2", "Data.fs")}
		for _, n := range []string{"shared", "bms1", "bms2"} {
			require.NoError(t, os.Mkdir(filepath.Join(dir, n), 0o755))
		}
		g, err := fixtures.Create(d.master, fixtures.Options{NoSync: true, Now: d.now})
		require.NoError(t, err)
		_, err = g.CommitRandom(d.rng, 3, 400)
		require.NoError(t, err)
		require.NoError(t, g.Close())
		d.backup()
		d.watch(d.standby)
		for range rapid.IntRange(1, 3).Draw(t, "rounds") {
			for range rapid.IntRange(0, 2).Draw(t, "backups") {
				d.write(d.master, rapid.IntRange(0, 3).Draw(t, "commits"))
				d.backup()
			}
			if rapid.Bool().Draw(t, "watched") {
				d.watch(d.standby)
			}
			d.write(d.master, rapid.IntRange(0, 3).Draw(t, "unsaved"))
			o := PromoteOptions{Data: d.standby, Now: d.now}
			if rapid.IntRange(0, 3).Draw(t, "drain") > 0 {
				o.Source = d.shared
			}
			_, err := Promote(context.Background(), o)
			require.NoError(t, err)
			d.master, d.standby = d.standby, d.master
			for range rapid.IntRange(1, 3).Draw(t, "increments") {
				d.write(d.master, rapid.IntRange(1, 3).Draw(t, "commits"))
				d.backup()
			}
			before, err := os.ReadFile(d.standby)
			require.NoError(t, err)
			d.rejoin(d.standby)
			d.requireKept(before, d.standby)
			d.watch(d.standby)
			requireSame(t, d.committed(d.master), d.committed(d.standby))
			requireFresh(t, d.standby)
		}
	})
}
