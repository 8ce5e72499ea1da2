package restore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// memory is a directory one of whose files is another: b in place of what is there, from the from-th time that it
// is opened, failing after n bytes unless n is negative.
type memory struct {
	incremental.Dir
	name   string
	b      []byte
	n      int
	from   int
	opened int
	read   func() // called at each read
}

var errBroken = errors.New("the line is broken")

func (m *memory) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if name != m.name {
		return m.Dir.Open(ctx, name)
	}
	if m.opened++; m.opened < m.from {
		return m.Dir.Open(ctx, name)
	}
	b := m.b
	if b == nil {
		var err error
		if b, err = os.ReadFile(m.Path(name)); err != nil {
			return nil, err
		}
	}
	if m.n < 0 || m.n > len(b) {
		return io.NopCloser(&telling{bytes.NewReader(b), m.read}), nil
	}
	return io.NopCloser(&telling{io.MultiReader(bytes.NewReader(b[:m.n]), broken{}), m.read}), nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errBroken }

type telling struct {
	r    io.Reader
	tell func()
}

func (r *telling) Read(p []byte) (int, error) {
	if r.tell != nil {
		r.tell()
	}
	return r.r.Read(p[:min(len(p), 512)])
}

func TestASourceThatFailsIsNeitherBadNorAppliedInPart(t *testing.T) {
	for _, c := range []struct {
		name  string
		spool int // so that there is a second pass, when it is small
		from  int
		full  bool
	}{
		{"while a delta is verified", 0, 1, false},
		{"while a large delta is written", 1, 2, false},
		{"while a full is built", 0, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			old := p.standbyBytes()
			res := p.step(3, func(o *incremental.BackupOptions) { o.Full = c.full })
			size := int(res.StoredSize)
			for n := 0; n < size; n += size/12 + 1 {
				src := &memory{Dir: p.shipped, name: res.File, n: n, from: c.from}
				_, err := p.watch(func(o *WatchOptions) { o.Source, o.spool = src, c.spool })
				require.ErrorIs(t, err, errBroken)
				require.Equal(t, "source-unreadable", p.state().Condition.Name)
				require.NotEmpty(t, fault.Next(err))
				requireSame(t, old, p.standbyBytes())
				require.Nil(t, p.state().Next)
				require.NoFileExists(t, p.data+stageExt)
			}
			_, err := p.watch(func(o *WatchOptions) { o.spool = c.spool })
			require.NoError(t, err)
			p.requireCurrent()
			p.requireFreshIndex()
		})
	}
}

func TestBytesThatChangeBetweenTheTwoPassesAreNotKept(t *testing.T) {
	p := following(t)
	old := p.standbyBytes()
	res := p.step(3, plain)
	good, err := os.ReadFile(p.shipped.Path(res.File))
	require.NoError(t, err)
	for i := 0; i < len(good); i += len(good)/40 + 1 {
		bad := clone(good)
		bad[i] ^= 4
		src := &memory{Dir: p.shipped, name: res.File, b: bad, n: -1, from: 2}
		_, err := p.watch(func(o *WatchOptions) { o.Source, o.spool = src, 1 })
		require.ErrorIs(t, err, fault.Unverified)
		require.Equal(t, 2, src.opened, "it was read twice")
		requireSame(t, old, p.standbyBytes())
		require.Nil(t, p.state().Next)
		require.Equal(t, "bad-increment", p.state().Condition.Name)
	}
	_, err = p.watch(func(o *WatchOptions) { o.spool = 1 })
	require.NoError(t, err)
	p.requireCurrent()
}

func TestADiskThatIsFull(t *testing.T) {
	for _, full := range []bool{false, true} {
		p := following(t)
		old := p.standbyBytes()
		p.step(40, func(o *incremental.BackupOptions) { o.Full = full })
		out, err := child{Do: "watch", Data: p.data, Source: string(p.shipped), MaxFile: uint64(len(old) + 5000)}.command(t).CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "file too large")
		requireSame(t, old, p.standbyBytes())
		require.Nil(t, p.state().Next)
		require.Equal(t, "failed", p.state().Condition.Name)
		require.Contains(t, p.state().Condition.Next, "see to the disk")
		require.NoFileExists(t, p.data+stageExt)
		_, err = p.watch()
		require.NoError(t, err)
		p.requireCurrent()
		p.requireFreshIndex()
	}
}

// A directory in the place of the temporary file keeps the state from being written.
func (p *pair) blockState() { _ = os.Mkdir(statePath(p.data)+".tmp", 0o755) }
func (p *pair) freeState()  { _ = os.Remove(statePath(p.data) + ".tmp") }

func TestAStateThatCannotBeWrittenIsNoDivergenceAndTheWatchGoesOn(t *testing.T) {
	for _, c := range []struct {
		point string
		full  bool
	}{{"verified", false}, {"intended", false}, {"appended", false}, {"staged", true}, {"intended", true}, {"unindexed", true}, {"swapped", true}} {
		for _, fresh := range []bool{false, true} {
			name := "delta at " + c.point
			if c.full {
				name = "full at " + c.point
			}
			if fresh {
				name += ", the first"
				if !c.full {
					continue
				}
			}
			t.Run(name, func(t *testing.T) {
				p := newPair(t)
				if !fresh {
					p = following(t)
				}
				p.step(2, func(o *incremental.BackupOptions) { o.Full = c.full })
				old, _ := os.ReadFile(p.data)
				n := 0
				w := p.start(func(o *WatchOptions) {
					o.crash = func(point string) {
						if point == c.point && n < 3 {
							n++
							p.blockState()
						}
					}
				})
				require.Eventually(t, func() bool { return w.log.count("not following") > 0 && w.log.count("not be recorded") > 0 }, waitLimit, waitTick)
				if c.point != "swapped" {
					got, _ := os.ReadFile(p.data)
					if !bytes.Equal(got, p.at[p.newest()]) || !c.full {
						requireSame(t, old, got)
					}
				}
				require.Eventually(t, func() bool { p.freeState(); st, _, _ := ReadState(p.data); return st.Applied.Stamp == p.newest() }, waitLimit, waitTick)
				p.freeState()
				p.untilApplied(p.newest())
				require.NoError(t, w.stop(t))
				require.Zero(t, w.log.count("divergence"))
				p.requireCurrent()
				p.requireFreshIndex()
			})
		}
	}
}

func TestAWatchThatIsStoppedEndsWithoutAnError(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(o *WatchOptions, cancel func(), p *pair, res incremental.BackupResult)
	}{
		{"while it verifies", func(o *WatchOptions, cancel func(), p *pair, res incremental.BackupResult) {
			n := 0
			o.Source = &memory{Dir: p.shipped, name: res.File, n: -1, read: func() {
				if n++; n == 3 {
					cancel()
				}
			}}
		}},
		{"between the intent and the first byte", func(o *WatchOptions, cancel func(), p *pair, res incremental.BackupResult) {
			o.spool = 1
			o.crash = func(point string) {
				if point == "intended" {
					cancel()
				}
			}
		}},
		{"while it writes", func(o *WatchOptions, cancel func(), p *pair, res incremental.BackupResult) {
			o.spool = 1
			o.crash = func(point string) {
				if point == "writing" {
					cancel()
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			old := p.standbyBytes()
			_, err := p.g.Commit("u", "large", fixtures.Record{OID: 9000, Data: bytes.Repeat([]byte("large "), 300<<10)})
			require.NoError(t, err)
			res := p.step(1, plain)
			for _, cause := range []error{nil, errors.New("a signal")} {
				ctx, cancel := context.WithCancelCause(context.Background())
				o := p.options()
				o.Once = false
				c.set(&o, func() { cancel(cause) }, p, res)
				_, err = Watch(ctx, o)
				require.NoError(t, err)
				requireSame(t, old, p.standbyBytes())
				require.Nil(t, p.state().Next)
				p.requireFreshIndex()
			}
			_, err = p.watch()
			require.NoError(t, err)
			p.requireCurrent()
		})
	}
}

func TestAWatchThatIsStoppedWhileTheIndexIsBuiltDoesNotBuildItThen(t *testing.T) {
	p := following(t)
	require.NoError(t, os.Remove(p.data+".index"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	o := p.options()
	o.Once = false
	_, err := Watch(ctx, o)
	require.NoError(t, err)
	require.NoFileExists(t, p.data+".index")
}

func TestAnIndexThatCannotBeWrittenIsToldAtTheEnd(t *testing.T) {
	p := following(t)
	require.NoError(t, os.Remove(p.data+".index"))
	w := p.start()
	require.Eventually(t, func() bool { return w.log.count("current") > 0 }, waitLimit, waitTick)
	require.NoError(t, os.MkdirAll(filepath.Join(p.data+".index", "x"), 0o755))
	require.ErrorContains(t, w.stop(t), "index of")
	_, err := os.Stat(p.data)
	require.NoError(t, err)
}
