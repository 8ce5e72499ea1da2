package restore

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// requireAllowed holds what a crash left to the promise: Data.fs is the old or the new one, or the old one with
// something behind it that the state knows of; and the state claims nothing else.
func (p *pair) requireAllowed() {
	st, ok, err := ReadState(p.data)
	require.NoError(p.t, err)
	got, err := os.ReadFile(p.data)
	if !ok {
		require.ErrorIs(p.t, err, os.ErrNotExist)
		return
	}
	if st.Next != nil && st.Next.Whole && err == nil && bytes.Equal(got, p.at[st.Next.Stamp]) {
		return
	}
	want := p.at[st.Applied.Stamp]
	if len(want) == 0 && os.IsNotExist(err) {
		return
	}
	require.NoError(p.t, err)
	require.GreaterOrEqual(p.t, len(got), len(want))
	requireSame(p.t, want, got[:len(want)])
	if len(got) > len(want) {
		require.NotNil(p.t, st.Next, "the state does not know what is behind the position")
		requireSame(p.t, p.at[st.Next.Stamp][:len(got)], got)
	}
}

func TestAWatchThatIsKilledAnywhereLosesNothing(t *testing.T) {
	delta := func(p *pair) { p.step(3) }
	large := func(p *pair) {
		_, err := p.g.Commit("u", "large", fixtures.Record{OID: 9000, Data: bytes.Repeat([]byte("large "), 600<<10)})
		require.NoError(p.t, err)
		p.step(1)
	}
	packed := func(p *pair) {
		require.NoError(p.t, p.g.Pack(p.g.LastTID()))
		p.step(1)
	}
	for _, c := range []struct {
		name   string
		fresh  bool
		do     func(*pair)
		points []string
		nth    int
		codec  string
	}{
		{"in the first full", true, delta, []string{"staged", "intended", "unindexed", "swapped", "reached"}, 1, ""},
		{"in a delta", false, delta, []string{"verified", "intended", "writing", "appended", "reached"}, 1, ""},
		{"in the middle of a large delta", false, large, []string{"writing"}, 2, ""},
		{"in a delta of zstd", false, delta, []string{"intended", "writing", "reached"}, 1, "zstd"},
		{"in a full of zstd after a pack", false, packed, []string{"staged", "intended", "swapped"}, 1, "zstd"},
		{"in a full after a pack", false, packed, []string{"staged", "intended", "unindexed", "swapped", "reached"}, 1, ""},
	} {
		for _, point := range c.points {
			t.Run(c.name+" at "+point, func(t *testing.T) {
				t.Parallel()
				p := newPair(t)
				if !c.fresh {
					p = followingWith(t, c.codec)
				}
				c.do(p)
				p.kill("watch", point, c.nth)
				p.requireAllowed()
				before := p.newest()
				_, err := p.watch()
				require.NoError(t, err)
				p.requireCurrent()
				require.Equal(t, before, p.state().Applied.Stamp)
				require.FileExists(t, p.data+".index")
				require.NoFileExists(t, p.data+stageExt)
				p.step(2)
				_, err = p.watch()
				require.NoError(t, err)
				p.requireCurrent()
				p.requireFreshIndex()
			})
		}
	}
}

// afterPowerFailure is what may stand in the place of bytes that had not reached the disk.
// What had been fsynced before, old, is in all of them.
var afterPowerFailure = map[string]func(old, want []byte) []byte{
	"nothing": func(old, _ []byte) []byte { return old },
	"zeros":   func(old, want []byte) []byte { return append(clone(old), make([]byte, len(want)-len(old))...) },
	"garbage": func(old, want []byte) []byte {
		return append(clone(old), bytes.Repeat([]byte{0xA5, ' ', 0, 7}, len(want))[:len(want)-len(old)]...)
	},
	"half of it": func(old, want []byte) []byte { return clone(want[:(len(old)+len(want))/2]) },
	"one byte":   func(old, want []byte) []byte { return clone(want[:len(old)+1]) },
	"a hole in the middle": func(old, want []byte) []byte {
		b := clone(want)
		third := (len(want) - len(old)) / 3
		clear(b[len(old)+third : len(want)-third])
		return b
	},
	"a hole at the beginning": func(old, want []byte) []byte {
		b := clone(want)
		clear(b[len(old) : len(old)+(len(want)-len(old))/2])
		return b
	},
	"whole transactions and then zeros": func(old, want []byte) []byte {
		b := clone(want)
		clear(b[max(len(old), len(want)-len(want)/20):])
		return b
	},
	"a hole in the data only": func(old, want []byte) []byte {
		b := clone(want)
		clear(b[max(len(old), len(want)-100):max(len(old), len(want)-60)])
		return b
	},
	"all of it": func(_, want []byte) []byte { return clone(want) },
}

func clone(b []byte) []byte { return append([]byte{}, b...) }

func TestWhatAPowerFailureLeavesIsCutOffAndAppliedAgain(t *testing.T) {
	for name, left := range afterPowerFailure {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := following(t)
			old := p.standbyBytes()
			p.step(8)
			p.stopAt(t, "intended")
			torn := left(old, p.at[p.newest()])
			require.NoError(t, os.WriteFile(p.data, torn, 0o644))
			status, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
			require.NoError(t, err)
			require.NotEqual(t, "divergence", status.Condition.Name)

			// Also when the source is gone, it is cut back.
			away := p.shipped.Path("..") + "/away"
			require.NoError(t, os.Rename(string(p.shipped), away))
			_, err = p.watch()
			require.Error(t, err)
			require.NotErrorIs(t, err, fault.Diverged)
			requireSame(t, old, p.standbyBytes())
			require.Nil(t, p.state().Next)

			require.NoError(t, os.Rename(away, string(p.shipped)))
			_, err = p.watch()
			require.NoError(t, err)
			p.requireCurrent()
			p.requireFreshIndex()
		})
		t.Run(name+", with the source there", func(t *testing.T) {
			t.Parallel()
			p := following(t)
			old := p.standbyBytes()
			p.step(8)
			p.stopAt(t, "appended")
			require.NoError(t, os.WriteFile(p.data, left(old, p.at[p.newest()]), 0o644))
			_, err := p.watch()
			require.NoError(t, err)
			p.requireCurrent()
			p.requireFreshIndex()
		})
	}
}

// stopAt ends a look at the source at a point, as a crash does, but in this process: what is on disk is the same, as
// nothing is deferred there that writes to Data.fs or the state.
func (p *pair) stopAt(t *testing.T, point string) {
	t.Helper()
	p.kill("watch", point, 1)
}

func TestWhatAServerCommittedToATornFileIsNotCutOff(t *testing.T) {
	for _, c := range []struct {
		name  string
		clock func(p *pair) func() time.Time
		// sourceless: the divergence is found without the source.
		sourceless bool
	}{
		{"with a clock like the master's", func(p *pair) func() time.Time { return p.now }, true},
		{"with a clock far behind", func(p *pair) func() time.Time {
			return func() time.Time { return time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC) }
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, source := range []bool{true, false} {
				p := following(t)
				old := p.standbyBytes()
				p.step(6)
				p.kill("watch", "intended", 1)
				want := p.at[p.newest()]
				require.NoError(t, os.WriteFile(p.data, want[:(len(old)+len(want))/2], 0o644))
				g, err := fixtures.Open(p.data, fixtures.Options{Now: c.clock(p)})
				require.NoError(t, err)
				_, err = g.Commit("x", "by a server", fixtures.Record{OID: 1, Data: []byte("x")})
				require.NoError(t, err)
				require.NoError(t, g.Close())
				before := tree(t, filepath.Dir(p.data))
				if !source {
					if !c.sourceless {
						continue
					}
					require.NoError(t, os.RemoveAll(string(p.shipped)))
				}
				_, err = p.watch()
				require.ErrorIs(t, err, fault.Diverged)
				require.ErrorContains(t, err, "nobody applied")
				p.requireUntouched(before)
			}
		})
	}
}

func TestTheEpochOfASwapThatAKillInterruptedIsKept(t *testing.T) {
	p := following(t)
	st := p.state()
	p.step(1, full, func(o *incremental.BackupOptions) { o.Lineage, o.Epoch = st.Lineage, 2 })
	p.kill("watch", "swapped", 1)
	_, err := p.watch()
	require.NoError(t, err)
	p.requireCurrent()
	require.Equal(t, 2, p.state().Epoch)
}

func TestAPromotionThatIsKilledAnywhereLeavesAStandbyOrAPromotedNode(t *testing.T) {
	for _, point := range []string{"verified", "intended", "writing", "appended", "reached", "indexed", "promoted"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			p := following(t)
			p.step(3)
			p.kill("promote", point, 1)
			p.requireAllowed()
			want := Standby
			if point == "promoted" {
				want = Promoted
			}
			require.Equal(t, want, p.state().Role)
			syscall.ForkLock.RLock()
			res, err := p.promote()
			syscall.ForkLock.RUnlock()
			require.NoError(t, err)
			require.Equal(t, want == Promoted, res.Already)
			require.Equal(t, 2, res.Epoch, "once, not twice")
			require.Equal(t, Promoted, p.state().Role)
			p.requireTrue()
			p.requireFreshIndex()
		})
	}
}
