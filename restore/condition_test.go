package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// dataFileOf returns the path of the shipped increment of a stamp.
func (p *pair) dataFileOf(s incremental.Stamp) string {
	for _, m := range p.manifests() {
		if m.Stamp == s {
			return p.shipped.Path(m.File)
		}
	}
	require.Fail(p.t, "no manifest of "+string(s))
	return ""
}

func TestWhatCannotBeAppliedIsNamedAndGoesAwayWithItsCause(t *testing.T) {
	for _, c := range []struct {
		name      string
		do        func(*pair, incremental.Stamp) // breaks the increment of that stamp
		condition string
		code      int
		says      string
	}{
		{"an increment that is missing", func(p *pair, s incremental.Stamp) {
			require.NoError(p.t, os.Remove(p.dataFileOf(s)))
		}, "gap", 6, "is missing"},
		{"an increment and its manifest that are missing", func(p *pair, s incremental.Stamp) {
			p.removeThen(s, func() { p.step(1) })
		}, "gap", 6, "which is not here"},
		{"an increment that is cut", func(p *pair, s incremental.Stamp) {
			change(p.t, p.dataFileOf(s), func(b []byte) []byte { return b[:len(b)-1] })
		}, "bad-increment", 4, string("increment")},
		{"an increment that is empty", func(p *pair, s incremental.Stamp) {
			change(p.t, p.dataFileOf(s), func([]byte) []byte { return nil })
		}, "bad-increment", 4, "is empty"},
		{"an increment that is too long", func(p *pair, s incremental.Stamp) {
			change(p.t, p.dataFileOf(s), func(b []byte) []byte { return append(b, b...) })
		}, "bad-increment", 4, "holds more than"},
		{"a symbolic link in the place of an increment", func(p *pair, s incremental.Stamp) {
			name := p.dataFileOf(s)
			require.NoError(p.t, os.Rename(name, name+".real"))
			require.NoError(p.t, os.Symlink(name+".real", name))
		}, "bad-increment", 4, "symbolic link"},
		{"a manifest that is no JSON", func(p *pair, s incremental.Stamp) {
			change(p.t, p.shipped.Path(incremental.ManifestName(s)), func(b []byte) []byte { return b[1:] })
		}, "bad-increment", 4, "not a manifest"},
		{"a manifest of a later format", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"format": 2})
		}, "bad-increment", 4, "format 2"},
		{"a manifest that lies about the tail", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"tail": map[string]any{"size": p.manifestOf(s).Tail.Size, "sha256": fmt.Sprintf("%064x", 7)}})
		}, "bad-increment", 4, "tail proof does not hold"},
		{"a manifest that lies about the last tid", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"last_tid": "03ffffffffffffff"})
		}, "bad-increment", 4, "the manifest tells of"},
		{"a manifest that lies about the number of transactions", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"transactions": 77})
		}, "bad-increment", 4, "77 transactions"},
		{"a manifest that lies about the md5", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"md5": fmt.Sprintf("%032x", 1)})
		}, "bad-increment", 4, "md5"},
		{"a manifest that lies about the stored hash", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"stored_sha256": fmt.Sprintf("%064x", 1)})
		}, "bad-increment", 4, "SHA-256"},
		{"a manifest that lies about the end", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"end": p.manifestOf(s).End + 1})
		}, "bad-increment", 4, "tail proof of"},
		{"a manifest that lies about the start", func(p *pair, s incremental.Stamp) {
			p.changeManifest(s, map[string]any{"start": p.manifestOf(s).Start - 1})
		}, "gap", 6, "continues position"},
		{"a source that is gone", func(p *pair, s incremental.Stamp) {
			require.NoError(p.t, os.Rename(string(p.shipped), string(p.shipped)+".away"))
		}, "source-unreadable", 1, "does not exist"},
		{"a source that is an empty directory", func(p *pair, s incremental.Stamp) {
			require.NoError(p.t, os.Rename(string(p.shipped), string(p.shipped)+".away"))
			require.NoError(p.t, os.Mkdir(string(p.shipped), 0o755))
		}, "gap", 6, "neither the increment"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			old := p.standbyBytes()
			good := p.step(2)
			c.do(p, resultStamp(good))

			_, err := p.watch()
			require.Error(t, err)
			require.Equal(t, c.code, fault.ExitCode(err))
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err), "no remedy: %v", err)
			requireSame(t, old, p.standbyBytes())
			st := p.state()
			require.Nil(t, st.Next)
			require.Equal(t, c.condition, st.Condition.Name)
			require.NotEmpty(t, st.Condition.Next)
			require.False(t, st.Condition.Since.IsZero())
			status, err := ReadStatus(context.Background(), StatusOptions{Data: p.data})
			require.NoError(t, err)
			require.Equal(t, st.Condition, status.Condition)

			w := p.start()
			require.Eventually(t, func() bool { return w.log.count("not following") == 1 }, waitLimit, waitTick)
			// What comes behind it does not help, and it is not said again at every look.
			p.grow(1)
			p.backup()
			for range 10 {
				require.Eventually(t, func() bool { return p.state().Condition.Name == c.condition }, waitLimit, waitTick)
			}
			requireSame(t, old, p.standbyBytes())

			require.NoError(t, os.RemoveAll(string(p.shipped)+".away"))
			if c.condition == "source-unreadable" {
				require.NoError(t, os.Mkdir(string(p.shipped), 0o755))
			}
			require.NoError(t, errors.Join(removeIfLink(p.dataFileOf(resultStamp(good)))))
			p.ship()
			p.untilApplied(p.newest())
			require.LessOrEqual(t, w.log.count("not following"), 3, w.log.lines)
			require.NoError(t, w.stop(t))
			p.requireCurrent()
			p.requireFreshIndex()
		})
	}
}

// removeThen does something and takes the increment of a stamp away again, if that has shipped it.
func (p *pair) removeThen(s incremental.Stamp, do func()) {
	do()
	require.NoError(p.t, os.Remove(p.dataFileOf(s)))
	require.NoError(p.t, os.Remove(p.shipped.Path(incremental.ManifestName(s))))
}

func removeIfLink(path string) error {
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSymlink != 0 {
		return os.Remove(path)
	}
	return nil
}

func (p *pair) manifestOf(s incremental.Stamp) *incremental.Manifest {
	for _, m := range p.manifests() {
		if m.Stamp == s {
			return m
		}
	}
	return nil
}

func TestAnEmptySourceIsNamedBeforeThereIsAnything(t *testing.T) {
	p := newPair(t)
	_, err := p.watch()
	require.ErrorIs(t, err, fault.Gap)
	status, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
	require.NoError(t, err)
	require.Equal(t, "gap", status.Condition.Name)
	require.Contains(t, status.Condition.Next, "zodbrepl backup")
	require.Equal(t, "standby", status.Role)
	_, err = Backup(context.Background(), incremental.BackupOptions{Data: p.data, Repository: p.repo})
	require.ErrorIs(t, err, fault.Refused)

	p.step(1)
	_, err = p.watch()
	require.NoError(t, err)
	p.requireCurrent()
}

func TestNoDamagedBitIsEverApplied(t *testing.T) {
	for _, codec := range []string{"gzip", "none", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			p := followingWith(t, codec)
			old := p.standbyBytes()
			res := p.step(1)
			path := p.dataFileOf(resultStamp(res))
			good, err := os.ReadFile(path)
			require.NoError(t, err)
			src := &memory{Dir: p.shipped, name: res.File, n: -1}
			s := &standby{data: p.data, log: discard, now: p.now}
			require.NoError(t, openStandby(context.Background(), s, src))
			for i := 0; i < len(good); i += max(1, len(good)/150) {
				src.b = clone(good)
				src.b[i] ^= 1 << (i % 8)
				n, err := s.catchUp(context.Background(), src)
				require.Zero(t, n)
				require.ErrorIs(t, err, fault.Unverified, "byte %d", i)
				require.Equal(t, conditionBad, conditionOf(err).Name)
				requireSame(t, old, p.standbyBytes())
			}
			require.NoError(t, s.close())
			_, err = p.watch()
			require.NoError(t, err)
			p.requireCurrent()
		})
	}
}

func TestWhatIsBeforeABadIncrementIsApplied(t *testing.T) {
	p := following(t)
	good := p.step(1)
	bad := p.step(1)
	p.step(1)
	change(t, p.dataFileOf(resultStamp(bad)), func(b []byte) []byte { return b[:10] })
	res, err := p.watch()
	require.ErrorIs(t, err, fault.Unverified)
	require.Equal(t, 1, res.Increments)
	require.Equal(t, resultStamp(good), p.state().Applied.Stamp)
	p.requireTrue()
}

func TestAStatusTellsWhatIsToBeApplied(t *testing.T) {
	p := following(t)
	p.step(2)
	p.step(1)
	s, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
	require.NoError(t, err)
	require.Equal(t, "behind", s.Condition.Name)
	require.Equal(t, 2, s.Pending)
	require.EqualValues(t, len(p.at[p.newest()])-len(p.standbyBytes()), s.PendingBytes)
	require.Equal(t, p.g.LastTID(), s.NewestTID)
}

func TestAStatusChangesNothingAndTellsDivergence(t *testing.T) {
	p := following(t)
	change(t, p.data, func(b []byte) []byte { return append(b, 1) })
	before := tree(t, p.dir)
	s, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
	require.NoError(t, err)
	require.Equal(t, "divergence", s.Condition.Name)
	require.Equal(t, before, tree(t, p.dir))
}

func TestAStatusDuringAWatchNeverTellsDivergence(t *testing.T) {
	p := following(t)
	for _, point := range []string{"verified", "intended", "writing", "appended", "reached", "staged", "unindexed", "swapped"} {
		p.step(2)
		if point == "staged" || point == "unindexed" || point == "swapped" {
			p.step(1, full)
		}
		_, err := p.watch(func(o *WatchOptions) {
			o.crash = func(at string) {
				if at == point {
					s, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
					require.NoError(t, err)
					require.NotEqual(t, "divergence", s.Condition.Name, point)
				}
			}
		})
		require.NoError(t, err)
	}
}

func TestAStatusThatReadTheStateBeforeAWatchWentOnIsNoDivergence(t *testing.T) {
	p := following(t)
	before := p.state()
	p.step(2)
	_, err := p.watch(func(o *WatchOptions) {
		o.crash = func(at string) {
			if at == "appended" {
				s := Status{Data: p.data, Size: int64(len(p.standbyBytes()))}
				require.NoError(t, s.compare(nil, nil, before))
				require.Empty(t, s.Condition.Name)
			}
		}
	})
	require.NoError(t, err)
}
