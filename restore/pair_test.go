package restore

import (
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
)

// pair is a master, its repository, a directory that its increments are shipped to, and a standby.
type pair struct {
	t       require.TestingT
	dir     string
	g       *fixtures.Grower
	rng     *rand.Rand
	ticking *sync.Mutex // protects clock
	clock   time.Time
	repo    incremental.Dir
	shipped incremental.Dir
	data    string // the standby's
	codec   string // of backups
	// at has, by increment, what a standby that has applied it must have.
	at map[incremental.Stamp][]byte
}

func newPair(t testing.TB) *pair {
	t.Helper()
	return newPairIn(t, t.TempDir())
}

func newPairIn(t require.TestingT, dir string) *pair {
	p := &pair{t: t, dir: dir, ticking: &sync.Mutex{}, rng: rand.New(rand.NewPCG(1, 2)), clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		repo: incremental.Dir(filepath.Join(dir, "repo")), shipped: incremental.Dir(filepath.Join(dir, "shipped")),
		data: filepath.Join(dir, "standby", "Data.fs"), at: map[incremental.Stamp][]byte{}}
	for _, d := range []string{"master", "repo", "shipped", "standby"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	var err error
	p.g, err = fixtures.Create(filepath.Join(dir, "master", "Data.fs"), fixtures.Options{NoSync: true, Now: p.now})
	require.NoError(t, err)
	if c, ok := t.(interface{ Cleanup(func()) }); ok {
		c.Cleanup(func() { p.g.Close() })
	}
	return p
}

// following is a pair whose standby has applied a full and a delta.
func following(t testing.TB) *pair {
	t.Helper()
	return followingWith(t, "")
}

// followingWith is the same with a codec.
func followingWith(t testing.TB, codec string) *pair {
	t.Helper()
	p := newPair(t)
	p.codec = codec
	p.step(5)
	p.step(3)
	_, err := p.watch()
	require.NoError(t, err)
	p.requireCurrent()
	return p
}

// now is also asked by a watch that runs, beside a test that goes on.
func (p *pair) now() time.Time { return p.forward(time.Second) }

// forward turns the clock on, and returns what it shows.
func (p *pair) forward(by time.Duration) time.Time {
	p.ticking.Lock()
	defer p.ticking.Unlock()
	p.clock = p.clock.Add(by)
	return p.clock
}

func (p *pair) setClock(now time.Time) {
	p.ticking.Lock()
	defer p.ticking.Unlock()
	p.clock = now
}

func (p *pair) grow(transactions int) {
	for range transactions {
		_, err := p.g.CommitRandom(p.rng, 3, 400)
		require.NoError(p.t, err)
	}
}

func (p *pair) backup(change ...func(*incremental.BackupOptions)) incremental.BackupResult {
	p.forward(time.Minute)
	o := incremental.BackupOptions{Data: p.g.Path(), Repository: p.repo, Codec: p.codec, Now: p.now}
	for _, c := range change {
		c(&o)
	}
	// A process that is being forked by another test has our locks for a moment.
	syscall.ForkLock.RLock()
	res, err := incremental.Backup(context.Background(), o)
	syscall.ForkLock.RUnlock()
	require.NoError(p.t, err)
	p.remember(o.Data, res)
	return res
}

func (p *pair) remember(data string, res incremental.BackupResult) {
	if res.Action != "none" {
		b, err := os.ReadFile(data)
		require.NoError(p.t, err)
		p.at[stampOfFile(res.File)] = b[:res.End]
	}
}

func stampOfFile(name string) incremental.Stamp {
	stem, _, _ := strings.Cut(name, ".")
	return incremental.Stamp(stem)
}

// ship brings the directory up to date, as transport does: manifests last.
func (p *pair) ship() {
	names := fileNames(p.t, string(p.repo))
	for _, manifests := range []bool{false, true} {
		for _, n := range names {
			if strings.HasSuffix(n, ".manifest") != manifests || strings.HasSuffix(n, ".lock") {
				continue
			}
			b, err := os.ReadFile(p.repo.Path(n))
			require.NoError(p.t, err)
			require.NoError(p.t, os.WriteFile(p.shipped.Path(n+".tmp"), b, 0o644))
			require.NoError(p.t, os.Rename(p.shipped.Path(n+".tmp"), p.shipped.Path(n)))
		}
	}
}

// step commits, backs up and ships.
func (p *pair) step(transactions int, change ...func(*incremental.BackupOptions)) incremental.BackupResult {
	p.grow(transactions)
	res := p.backup(change...)
	p.ship()
	return res
}

func full(o *incremental.BackupOptions)  { o.Full = true }
func plain(o *incremental.BackupOptions) { o.Codec = "none" }

func (p *pair) options() WatchOptions {
	return WatchOptions{Source: p.shipped, Data: p.data, Once: true, Now: p.now}
}

// watch looks at the directory once.
func (p *pair) watch(change ...func(*WatchOptions)) (WatchResult, error) {
	o := p.options()
	for _, c := range change {
		c(&o)
	}
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return Watch(context.Background(), o)
}

func (p *pair) promote(change ...func(*PromoteOptions)) (PromoteResult, error) {
	o := PromoteOptions{Data: p.data, Source: p.shipped, Now: p.now}
	for _, c := range change {
		c(&o)
	}
	return Promote(context.Background(), o)
}

func (p *pair) state() State {
	st, ok, err := ReadState(p.data)
	require.NoError(p.t, err)
	require.True(p.t, ok, "no state file")
	return st
}

func (p *pair) standbyBytes() []byte {
	b, err := os.ReadFile(p.data)
	require.NoError(p.t, err)
	return b
}

// requireTrue holds Data.fs to what its state says.
func (p *pair) requireTrue() {
	st := p.state()
	require.Nil(p.t, st.Next)
	want, ok := p.at[st.Applied.Stamp]
	require.True(p.t, ok, "increment %q was never made", st.Applied.Stamp)
	requireSame(p.t, want, p.standbyBytes())
	require.EqualValues(p.t, len(want), st.Applied.Position)
}

// requireCurrent is requireTrue, and that the newest increment was applied.
func (p *pair) requireCurrent() {
	p.requireTrue()
	require.Equal(p.t, p.newest(), p.state().Applied.Stamp)
	require.Equal(p.t, "current", p.state().Condition.Name)
}

func (p *pair) newest() (s incremental.Stamp) {
	for stamp := range p.at {
		s = max(s, stamp)
	}
	return s
}

func requireSame(t require.TestingT, want, got []byte) {
	if bytes.Equal(want, got) {
		return
	}
	i := 0
	for i < min(len(want), len(got)) && want[i] == got[i] {
		i++
	}
	require.Failf(t, "the files differ", "%d and %d bytes, from position %d on", len(want), len(got), i)
}

// requireFreshIndex holds Data.fs.index to one that is built from Data.fs.
func (p *pair) requireFreshIndex() {
	f, c, err := filestorage.Open(p.data)
	require.NoError(p.t, err)
	defer c.Close()
	size, err := f.Size()
	require.NoError(p.t, err)
	x := &filestorage.Index{}
	_, err = f.ExtendIndex(context.Background(), x, filestorage.MagicSize, size, nil)
	require.NoError(p.t, err)
	var want bytes.Buffer
	require.NoError(p.t, filestorage.WriteIndex(&want, x, size))
	got, err := os.ReadFile(p.data + ".index")
	require.NoError(p.t, err)
	requireSame(p.t, want.Bytes(), got)
}

func fileNames(t require.TestingT, dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// tree is every file below a directory with its mode and content, lock files apart.
func tree(t require.TestingT, dir string) map[string]string {
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, ".lock") {
			return err
		}
		b, err := os.ReadFile(path)
		info, ierr := d.Info()
		if err != nil || ierr != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		files[rel] = info.Mode().String() + " " + string(b)
		return nil
	}))
	return files
}

// requireUntouched holds all files of the standby to what they were, by name first.
func (p *pair) requireUntouched(before map[string]string) {
	after := tree(p.t, filepath.Dir(p.data))
	require.ElementsMatch(p.t, slices.Collect(keys(before)), slices.Collect(keys(after)))
	for name := range before {
		require.True(p.t, before[name] == after[name], "%s was changed", name)
	}
}

func keys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// change rewrites a file.
func change(t require.TestingT, path string, f func([]byte) []byte) {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, f(b), 0o644))
}

// changeManifest rewrites fields of the shipped manifest of a stamp.
func (p *pair) changeManifest(s incremental.Stamp, fields map[string]any) {
	change(p.t, p.shipped.Path(incremental.ManifestName(s)), func(b []byte) []byte {
		doc := map[string]any{}
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		require.NoError(p.t, d.Decode(&doc))
		for k, v := range fields {
			doc[k] = v
		}
		out, err := json.Marshal(doc)
		require.NoError(p.t, err)
		return out
	})
}

// running is a watch that goes on until it is stopped.
type running struct {
	cancel context.CancelFunc
	done   chan error
	res    WatchResult
	log    *records
}

func (p *pair) start(change ...func(*WatchOptions)) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, done: make(chan error, 1), log: &records{}}
	o := WatchOptions{Source: p.shipped, Data: p.data, Interval: 5 * time.Millisecond, Log: slog.New(r.log)}
	for _, c := range change {
		c(&o)
	}
	go func() {
		var err error
		r.res, err = Watch(ctx, o)
		r.done <- err
	}()
	if c, ok := p.t.(interface{ Cleanup(func()) }); ok {
		c.Cleanup(cancel)
	}
	return r
}

// end waits for a watch that ends by itself.
func (r *running) end(t require.TestingT) error {
	select {
	case err := <-r.done:
		return err
	case <-time.After(20 * time.Second):
		require.Fail(t, "the watch goes on")
		return nil
	}
}

func (r *running) stop(t require.TestingT) error {
	r.cancel()
	return r.end(t)
}

// until waits for the state to be so.
func (p *pair) until(what string, ok func(State) bool) {
	require.Eventually(p.t, func() bool {
		st, there, err := ReadState(p.data)
		return err == nil && there && ok(st)
	}, 20*time.Second, 2*time.Millisecond, what)
}

func (p *pair) untilApplied(s incremental.Stamp) {
	p.until("applied "+string(s), func(st State) bool { return st.Applied.Stamp == s && st.Condition.Name == "current" })
}

// records is a log handler that keeps the messages.
type records struct {
	mu    sync.Mutex
	lines []string
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) WithAttrs([]slog.Attr) slog.Handler       { return r }
func (r *records) WithGroup(string) slog.Handler            { return r }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	line := rec.Message
	rec.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	r.lines = append(r.lines, line)
	return nil
}

func (r *records) count(part string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l, part) {
			n++
		}
	}
	return n
}

// child is what a second process is to do. See TestChild.
type child struct {
	Do     string // "watch", "promote", "rejoin", "lock", "accept", "handover"
	Data   string
	Source string
	// Repository is a master's.
	Repository string
	Kill       string // the point at which it kills itself
	Nth        int    // the how manieth time it comes there
	MaxFile    uint64 // no file may grow beyond so many bytes, when not 0
}

const childEnv = "ZODBREPL_RESTORE_CHILD"

func (c child) command(t require.TestingT) *exec.Cmd {
	doc, err := json.Marshal(c)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	cmd.Env = append(os.Environ(), childEnv+"="+string(doc))
	return cmd
}

// killed runs the child, which must kill itself.
func (c child) killed(t require.TestingT) {
	out, err := c.command(t).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	status, ok := exit.Sys().(syscall.WaitStatus)
	require.True(t, ok && status.Signaled() && status.Signal() == syscall.SIGKILL, "%s: %s", exit, out)
}

func (p *pair) kill(do, point string, nth int) {
	child{Do: do, Data: p.data, Source: string(p.shipped), Kill: point, Nth: nth}.killed(p.t)
}

const (
	waitLimit = 20 * time.Second
	waitTick  = 2 * time.Millisecond
)

var discard = slog.New(slog.DiscardHandler)

func replaceOnce(t require.TestingT, b []byte, old, new string) []byte {
	require.Equal(t, 1, bytes.Count(b, []byte(old)))
	return bytes.Replace(b, []byte(old), []byte(new), 1)
}
