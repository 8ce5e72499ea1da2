package restore

import (
	"context"
	"flag"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"zodbrepl/internal/fault"
)

var errCrash = "crashed by the test"

// crashAt looks at the source once and dies at a point, without what a living process would still do: the panic
// passes no code of ours that writes.
func (p *pair) crashAt(point string) (died bool) {
	var s *standby
	defer func() {
		if r := recover(); r != nil {
			if r != any(errCrash) {
				panic(r)
			}
			died = true
		}
		s.close()
	}()
	s = &standby{data: p.data, log: discard, now: p.now, crash: func(at string) {
		if at == point {
			panic(errCrash)
		}
	}}
	require.NoError(p.t, openStandby(context.Background(), s, p.shipped))
	_, err := s.catchUp(context.Background(), p.shipped)
	if err != nil {
		require.ErrorIs(p.t, err, fault.Gap)
	}
	return false
}

func TestAnyWalkEndsInAStandbyThatIsTheMasters(t *testing.T) {
	points := []string{"verified", "intended", "writing", "appended", "reached", "staged", "unindexed", "swapped"}
	lefts := slices.Sorted(maps.Keys(afterPowerFailure))
	base := "" // a walk is some dozens of steps, each with several fsyncs: in memory they cost nothing
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	fewer(t, "25")
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "walk")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		p := newPairIn(t, dir)
		defer p.g.Close()
		p.codec = rapid.SampledFrom([]string{"gzip", "zstd", "none"}).Draw(t, "codec")
		p.step(1)
		reached := int64(0)
		follow := func() {
			_, err := p.watch()
			require.NoError(t, err)
			p.requireCurrent()
			p.requireMonotonic(&reached)
		}
		t.Repeat(map[string]func(*rapid.T){
			"grow": func(*rapid.T) { p.grow(2) },
			"abort": func(t *rapid.T) {
				txn := p.g.BeginRandom(p.rng, 2, 300)
				require.NoError(t, txn.Vote())
				if rapid.Bool().Draw(t, "backup in flight") {
					p.backup()
				}
				require.NoError(t, txn.Abort())
			},
			"pack":   func(t *rapid.T) { require.NoError(t, p.g.Pack(p.g.LastTID())) },
			"backup": func(t *rapid.T) { p.backup() },
			"full":   func(t *rapid.T) { p.backup(full) },
			"ship":   func(t *rapid.T) { p.ship() },
			"watch": func(t *rapid.T) {
				p.ship()
				follow()
			},
			"crash": func(t *rapid.T) {
				p.backup()
				p.ship()
				if p.crashAt(rapid.SampledFrom(points).Draw(t, "point")) {
					p.requireAllowed()
				}
			},
			"power failure": func(t *rapid.T) {
				p.grow(1)
				p.backup()
				p.ship()
				if !p.crashAt(rapid.SampledFrom([]string{"intended", "writing", "appended"}).Draw(t, "point")) {
					return
				}
				st := p.state()
				if st.Next == nil || st.Next.Whole {
					return
				}
				left := afterPowerFailure[rapid.SampledFrom(lefts).Draw(t, "left")]
				require.NoError(t, os.WriteFile(p.data, left(p.at[st.Applied.Stamp], p.at[st.Next.Stamp]), 0o644))
			},
		})
		p.step(1)
		follow()
		p.requireFreshIndex()
	})
}

// fewer sets how many walks are made when the command line does not say (-rapid.checks).
func fewer(t *testing.T, checks string) { unlessGiven(t, "rapid.checks", checks) }

// unlessGiven sets a flag for a test when the command line does not.
func unlessGiven(t *testing.T, name, value string) {
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == name })
	if !given {
		old := flag.Lookup(name).Value.String()
		require.NoError(t, flag.Lookup(name).Value.Set(value))
		t.Cleanup(func() { flag.Lookup(name).Value.Set(old) })
	}
}

// requireMonotonic holds the last transaction to what was reached before.
func (p *pair) requireMonotonic(reached *int64) {
	last := int64(p.state().Applied.LastTID)
	require.GreaterOrEqual(p.t, last, *reached, "a transaction was lost")
	*reached = last
}
