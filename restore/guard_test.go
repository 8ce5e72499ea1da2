package restore

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// epoch makes a backup as a node that was promoted to that epoch makes it.
func epoch(p *pair, n int) func(*incremental.BackupOptions) {
	ms := p.manifests()
	return func(o *incremental.BackupOptions) { o.Lineage, o.Epoch = ms[len(ms)-1].Lineage, n }
}

func (p *pair) manifests() []*incremental.Manifest {
	r, err := incremental.Open(context.Background(), p.repo)
	require.NoError(p.t, err)
	ms, _, err := r.Manifests(context.Background())
	require.NoError(p.t, err)
	return ms
}

// holdLock lets another process hold ZODB's lock until the test ends.
func (p *pair) holdLock(t *testing.T) (pid int, release func()) {
	t.Helper()
	cmd := child{Do: "lock", Data: p.data}.command(t)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "locked" {
	}
	end := sync.OnceFunc(func() { in.Close(); cmd.Wait() })
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func TestTheGuardRefusesAndChangesNothing(t *testing.T) {
	flip := func(at int64) func(*testing.T, *pair) {
		return func(t *testing.T, p *pair) {
			change(t, p.data, func(b []byte) []byte {
				i := at
				if i < 0 {
					i += int64(len(b))
				}
				b[i] ^= 0x10
				return b
			})
		}
	}
	for _, c := range []struct {
		name    string
		do      func(*testing.T, *pair)
		options func(*WatchOptions)
		kind    error
		code    int
		says    string
		next    string
	}{
		{name: "a node that was promoted", do: func(t *testing.T, p *pair) {
			_, err := Promote(context.Background(), PromoteOptions{Data: p.data})
			require.NoError(t, err)
		}, kind: fault.Refused, code: 3, says: "was promoted (epoch 2", next: "zodbrepl backup and ship"},
		{name: "a promotion that waits", do: func(t *testing.T, p *pair) {
			l, err := announcePromotion(p.data)
			require.NoError(t, err)
			t.Cleanup(func() { l.Close() })
		}, kind: fault.Refused, code: 3, says: "is being promoted", next: "zodbrepl status"},
		{name: "a server that has the file open", do: func(t *testing.T, p *pair) { p.holdLock(t) },
			kind: fault.Refused, code: 3, says: "is in use by process", next: "ps -p"},
		{name: "a file that was cut", do: func(t *testing.T, p *pair) {
			change(t, p.data, func(b []byte) []byte { return b[:len(b)-1] })
		}, kind: fault.Diverged, code: 5, says: "it has only", next: "zodbrepl inspect"},
		{name: "a file of one byte less than the magic", do: func(t *testing.T, p *pair) {
			change(t, p.data, func(b []byte) []byte { return b[:3] })
		}, kind: fault.Diverged, code: 5, says: "only 3 bytes long", next: "zodbrepl inspect"},
		{name: "a file that was emptied", do: func(t *testing.T, p *pair) {
			change(t, p.data, func([]byte) []byte { return nil })
		}, kind: fault.Diverged, code: 5, says: "missing or empty", next: "zodbrepl rejoin"},
		{name: "a file that is something else", do: func(t *testing.T, p *pair) {
			change(t, p.data, func([]byte) []byte { return []byte("something else") })
		}, kind: fault.Diverged, code: 5, says: "begins with", next: "zodbrepl inspect"},
		{name: "a file that is gone", do: func(t *testing.T, p *pair) { require.NoError(t, os.Remove(p.data)) },
			kind: fault.Diverged, code: 5, says: "missing or empty", next: "zodbrepl rejoin"},
		{name: "a transaction of somebody else", do: func(t *testing.T, p *pair) {
			g, err := fixtures.Open(p.data, fixtures.Options{})
			require.NoError(t, err)
			_, err = g.Commit("x", "y", fixtures.Record{OID: 1, Data: []byte("z")})
			require.NoError(t, err)
			require.NoError(t, g.Close())
		}, kind: fault.Diverged, code: 5, says: "which nobody applied", next: "zodbrepl inspect"},
		{name: "a byte behind the position", do: func(t *testing.T, p *pair) {
			change(t, p.data, func(b []byte) []byte { return append(b, 0) })
		}, kind: fault.Diverged, code: 5, says: "it has 1 bytes after", next: "zodbrepl inspect"},
		{name: "a byte changed before the position", do: flip(-20), kind: fault.Diverged, code: 5, says: "are not those that were applied", next: "zodbrepl inspect"},
		{name: "a byte changed further before", do: flip(50), kind: fault.Diverged, code: 5, says: "are not those that were applied", next: "zodbrepl inspect"},
		{name: "another Data.fs in its place", do: func(t *testing.T, p *pair) {
			b := fixtures.Plain()
			require.NoError(t, os.WriteFile(p.data, b, 0o644))
		}, kind: fault.Diverged, code: 5, says: "not what its state says", next: "zodbrepl inspect"},
		{name: "the master's address", do: nil, options: func(o *WatchOptions) { o.RefuseIfAddress = []string{"192.0.2.1", "127.0.0.1"} },
			kind: fault.Refused, code: 3, says: "this host has the address 127.0.0.1", next: "zodbrepl promote"},
		{name: "the master's address, mapped into IPv6", do: nil, options: func(o *WatchOptions) { o.RefuseIfAddress = []string{"::ffff:127.0.0.1"} },
			kind: fault.Refused, code: 3, says: "127.0.0.1", next: "zodbrepl promote"},
		{name: "an address that is none", do: nil, options: func(o *WatchOptions) { o.RefuseIfAddress = []string{"10.0.0.5/24"} },
			kind: fault.Usage, code: 2, says: "is no IP address", next: "such as 10.0.0.5"},
		{name: "a name of the master's address", do: nil, options: func(o *WatchOptions) {
			o.RefuseIfAddress, o.resolve = []string{"zeo.example"}, resolving("192.0.2.1", "127.0.0.1")
		}, kind: fault.Refused, code: 3, says: "this host has the address zeo.example (127.0.0.1)", next: "zodbrepl promote"},
		{name: "the master's address in IPv6", do: nil, options: func(o *WatchOptions) {
			o.RefuseIfAddress, o.resolve = []string{"zeo.example"}, resolving("::ffff:127.0.0.1")
		}, kind: fault.Refused, code: 3, says: "127.0.0.1", next: "zodbrepl promote"},
		{name: "a state file that is damaged", do: func(t *testing.T, p *pair) {
			change(t, statePath(p.data), func(b []byte) []byte { return b[:len(b)/2] })
		}, code: 1, says: "state file", next: "move the state file away"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			p.step(1)
			if c.do != nil {
				c.do(t, p)
			}
			before, source := tree(t, filepath.Dir(p.data)), tree(t, string(p.shipped))
			_, err := p.watch(func(o *WatchOptions) {
				if c.options != nil {
					c.options(o)
				}
			})
			require.Error(t, err)
			require.Equal(t, c.code, fault.ExitCode(err))
			if c.kind != nil {
				require.ErrorIs(t, err, c.kind)
			}
			require.ErrorContains(t, err, c.says)
			require.Contains(t, fault.Next(err), c.next)
			if c.code != 2 {
				require.NotEmpty(t, fault.Kept(err))
			}
			p.requireUntouched(before)
			require.Equal(t, source, tree(t, string(p.shipped)))
			if c.kind == fault.Diverged { // the remedy is one
				_, err := (&failover{pair: p, former: p.data}).rejoin()
				require.NoError(t, err)
				_, err = p.watch()
				require.NoError(t, err)
				p.requireCurrent()
				p.requireFreshIndex()
			}
		})
	}
}

func TestAddressesThatAreNotOursDoNotHinder(t *testing.T) {
	p := following(t)
	p.step(1)
	_, err := p.watch(func(o *WatchOptions) { o.RefuseIfAddress = []string{"192.0.2.1", "2001:db8::1"} })
	require.NoError(t, err)
	p.requireCurrent()
}

func TestTheProcessThatHoldsTheLockIsNamed(t *testing.T) {
	p := following(t)
	pid, release := p.holdLock(t)
	_, err := p.watch()
	require.ErrorContains(t, err, "process "+strconv.Itoa(pid))
	release()
	_, err = p.watch()
	require.NoError(t, err)
}

func TestTheSourceIsRefusedAndNothingIsApplied(t *testing.T) {
	for _, c := range []struct {
		name      string
		do        func(*pair)
		kind      error
		condition string
		says      string
	}{
		{"a stale master that writes after a promotion", func(p *pair) {
			p.step(1, epoch(p, 2))
			_, err := p.watch()
			require.NoError(p.t, err)
			p.changeManifest(resultStamp(p.step(1, epoch(p, 2))), map[string]any{"epoch": 1})
		}, fault.Refused, "stale-epoch", "a stale master is still writing"},
		{"another lineage", func(p *pair) {
			p.changeManifest(resultStamp(p.step(1)), map[string]any{"lineage": "ffffffff"})
		}, fault.Diverged, "divergence", "is of lineage ffffffff"},
		{"a full that goes back in time", func(p *pair) {
			old := fixtures.Plain()
			require.NoError(p.t, os.WriteFile(filepath.Join(p.dir, "old.fs"), old, 0o644))
			res, err := incremental.Backup(context.Background(), incremental.BackupOptions{Data: filepath.Join(p.dir, "old.fs"),
				Repository: incremental.Dir(mkdir(p.t, p.dir, "other")), Now: func() time.Time { return p.clock.Add(time.Hour) }})
			require.NoError(p.t, err)
			st := p.state()
			p.shipped = incremental.Dir(filepath.Join(p.dir, "other"))
			p.changeManifest(stampOfFile(res.File), map[string]any{"lineage": st.Lineage})
		}, fault.Diverged, "divergence", "the master has gone back"},
		{"a full of a new master that never had our last transaction", func(p *pair) {
			stale := p.g.Path()
			require.NoError(p.t, os.WriteFile(stale+".promoted", p.at[p.newest()], 0o644))
			p.step(1) // only the standby gets it
			_, err := p.watch()
			require.NoError(p.t, err)
			p.promotedElsewhere(stale+".promoted", full)
		}, fault.Diverged, "divergence", "never had it"},
		{"a delta of a new master that never had our last transaction", func(p *pair) {
			copyDir(p.t, string(p.repo), filepath.Join(p.dir, "repo2"))
			require.NoError(p.t, os.WriteFile(p.g.Path()+".promoted", p.at[p.newest()], 0o644))
			p.step(1)
			_, err := p.watch()
			require.NoError(p.t, err)
			p.repo = incremental.Dir(filepath.Join(p.dir, "repo2"))
			p.clock = p.clock.Add(time.Hour)
			p.promotedElsewhere(p.g.Path()+".promoted", nil)
		}, fault.Diverged, "divergence", "never had"},
		{"an increment of the same stamp and another content", func(p *pair) {
			s := p.newest()
			p.step(1)
			p.changeManifest(s, map[string]any{"last_tid": "03f0000000000000"})
		}, fault.Diverged, "divergence", "has another history"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			c.do(p)
			before := p.standbyBytes()
			st := p.state()
			_, err := p.watch()
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err))
			requireSame(t, before, p.standbyBytes())
			require.Equal(t, st.Applied, p.state().Applied)
			require.Nil(t, p.state().Next)
			require.Equal(t, c.condition, p.state().Condition.Name)
			require.NoFileExists(t, p.data+stageExt)
			status, err := ReadStatus(context.Background(), StatusOptions{Data: p.data, Source: p.shipped})
			require.NoError(t, err)
			require.Equal(t, c.condition, status.Condition.Name)
			require.NotEmpty(t, status.Condition.Next)
		})
	}
}

func resultStamp(res incremental.BackupResult) incremental.Stamp { return stampOfFile(res.File) }

func mkdir(t require.TestingT, parts ...string) string {
	dir := filepath.Join(parts...)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return dir
}

func copyDir(t require.TestingT, from, to string) {
	require.NoError(t, os.CopyFS(to, os.DirFS(from)))
}

// promotedElsewhere commits to a Data.fs and backs it up in epoch 2, on another host.
func (p *pair) promotedElsewhere(data string, how func(*incremental.BackupOptions)) {
	g, err := fixtures.Open(data, fixtures.Options{Now: p.now})
	require.NoError(p.t, err)
	for range 3 {
		_, err := g.CommitRandom(p.rng, 2, 200)
		require.NoError(p.t, err)
	}
	require.NoError(p.t, g.Close())
	p.backup(epoch(p, 2), func(o *incremental.BackupOptions) {
		o.Data = data
		if how != nil {
			how(o)
		}
	})
	p.ship()
}

func TestTwoLineagesInOneDirectoryAreRefused(t *testing.T) {
	p := newPair(t)
	p.step(1)
	p.changeManifest(resultStamp(p.step(1)), map[string]any{"lineage": "ffffffff"})
	_, err := p.watch()
	require.ErrorIs(t, err, fault.Diverged)
	require.ErrorContains(t, err, "two lineages")
	require.NoFileExists(t, p.data)
}

func TestARunningWatchStopsAtOnce(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*testing.T, *pair)
		kind error
		says string
	}{
		{"for a promotion", func(t *testing.T, p *pair) {
			_, err := Promote(context.Background(), PromoteOptions{Data: p.data})
			require.NoError(t, err)
		}, fault.Refused, "is being promoted"},
		{"for a file that somebody wrote to", func(t *testing.T, p *pair) {
			f, err := os.OpenFile(p.data, os.O_WRONLY|os.O_APPEND, 0)
			require.NoError(t, err)
			_, err = f.Write([]byte("x"))
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, fault.Diverged, "somebody else wrote to it"},
		{"for a file that was replaced by a copy", func(t *testing.T, p *pair) {
			require.NoError(t, os.WriteFile(p.data+".copy", p.standbyBytes(), 0o644))
			require.NoError(t, os.Rename(p.data+".copy", p.data))
		}, fault.Diverged, "replaced by another file"},
		{"for a file that is gone", func(t *testing.T, p *pair) { require.NoError(t, os.Remove(p.data)) }, fault.Diverged, "it is gone"},
		{"for a stale master", func(t *testing.T, p *pair) {
			p.step(1, epoch(p, 2))
			p.untilApplied(p.newest())
			p.grow(1)
			res := p.backup(epoch(p, 2))
			change(t, p.repo.Path(incremental.ManifestName(resultStamp(res))), func(b []byte) []byte {
				return replaceOnce(t, b, `"epoch": 2`, `"epoch": 1`)
			})
			p.ship()
		}, fault.Refused, "stale master"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := following(t)
			w := p.start()
			require.Eventually(t, func() bool { return w.log.count("current") > 0 }, waitLimit, waitTick)
			c.do(t, p)
			err := w.end(t)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.says)
			require.NotEmpty(t, fault.Next(err))
		})
	}
}

func TestADataFsThatAppearsWhileTheFirstFullIsAwaitedIsNotOverwritten(t *testing.T) {
	p := newPair(t)
	w := p.start()
	p.until("a gap", func(st State) bool { return st.Condition.Name == "gap" })
	require.NoError(t, os.WriteFile(p.data+".copy", []byte("FS30 somebody's"), 0o644))
	require.NoError(t, os.Rename(p.data+".copy", p.data))
	require.ErrorIs(t, w.end(t), fault.Diverged)
	require.Equal(t, "FS30 somebody's", string(p.standbyBytes()))
}
