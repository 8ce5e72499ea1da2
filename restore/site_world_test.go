package restore

import (
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/incremental"
	"zodbrepl/transport"
)

// site is some hosts for one database, as its operator has them: each has a Data.fs and a repository, its own increments
// or those that are shipped to it. A line leads from every host to the repository of every other.
type site struct {
	t     require.TestingT
	dir   string
	rng   *rand.Rand
	clock time.Time
	hosts []*siteHost
	// histories has the hash of the bytes before the end of each increment that was ever made, by stamp: hosts that
	// do not know of each other may use one stamp twice.
	histories map[incremental.Stamp]map[[32]byte]bool
	outcomes  map[string]int       // how often what ended how
	offered   map[string]*siteHost // who has offered to hand over, by the promotion's id
}

// siteHost is a host. Its ZEO server is the Grower, which holds ZODB's lock.
type siteHost struct {
	name string
	data string
	repo incremental.Dir
	skew time.Duration // of its clock

	g    *fixtures.Grower
	lock *filestorage.Lock

	acked map[filestorage.TID]bool // committed by its ZEO server, and not packed away
	own   []byte                   // what Data.fs is as long as only the ZEO server here may write to it; nil on a standby
	kept  map[string][32]byte      // the stored increments that were published here
	epoch int                      // the highest that its state ever had
	// touched: a server was started on the standby's Data.fs, by mistake, and committed to it.
	touched bool
}

func newSite(t require.TestingT, dir string, seed uint64, names ...string) *site {
	s := &site{t: t, dir: dir, rng: rand.New(rand.NewPCG(seed, 7)), clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		histories: map[incremental.Stamp]map[[32]byte]bool{}, offered: map[string]*siteHost{}}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "lines"), 0o755))
	for _, name := range names {
		home := filepath.Join(dir, name)
		h := &siteHost{name: name, data: filepath.Join(home, "Data.fs"), repo: incremental.Dir(filepath.Join(home, "repo")),
			acked: map[filestorage.TID]bool{}, kept: map[string][32]byte{}}
		require.NoError(t, os.MkdirAll(string(h.repo), 0o755))
		s.hosts = append(s.hosts, h)
	}
	for _, from := range s.hosts {
		for _, to := range s.hosts {
			if from != to {
				s.heal(from, to)
			}
		}
	}
	return s
}

func (s *site) close() {
	for _, h := range s.hosts {
		s.stopZEO(h)
	}
}

// line is the path by which a host sees the other's repository.
func (s *site) line(from, to *siteHost) string {
	return filepath.Join(s.dir, "lines", from.name+"-"+to.name)
}

func (s *site) heal(from, to *siteHost) {
	if err := os.Symlink(string(to.repo), s.line(from, to)); !errors.Is(err, os.ErrExist) {
		require.NoError(s.t, err)
	}
}

func (s *site) cut(from, to *siteHost) {
	if err := os.Remove(s.line(from, to)); !errors.Is(err, os.ErrNotExist) {
		require.NoError(s.t, err)
	}
}

// now returns the time on a host.
func (s *site) now(h *siteHost) func() time.Time {
	return func() time.Time {
		s.clock = s.clock.Add(time.Second)
		return s.clock.Add(h.skew)
	}
}

// calmly runs f while no process is forked by another test: a child would have our locks for a moment.
func calmly(f func()) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f()
}

// state returns what a host's state file says; the zero State when there is none.
func (s *site) state(h *siteHost) State {
	st, _, err := ReadState(h.data)
	require.NoError(s.t, err)
	return st
}

// mayWrite says whether a ZEO server belongs on a host: it is the master, as far as its operator knows.
func (s *site) mayWrite(h *siteHost) bool { return s.state(h).Role != Standby && h.own != nil }

// startZEO starts the server; false when the lock is held.
func (s *site) startZEO(h *siteHost) bool {
	if h.g != nil {
		return true
	}
	var err error
	calmly(func() { h.lock, err = filestorage.AcquireLock(h.data) })
	require.NoError(s.t, err)
	open := fixtures.Open
	if _, err := os.Stat(h.data); err != nil {
		open = fixtures.Create
	}
	h.g, err = open(h.data, fixtures.Options{NoSync: true, Now: s.now(h)})
	require.NoError(s.t, err)
	s.wrote(h)
	return true
}

// stopZEO ends the server, as SIGKILL does.
func (s *site) stopZEO(h *siteHost) {
	if h.g == nil {
		return
	}
	h.g.Close()
	h.g = nil
	calmly(func() { require.NoError(s.t, h.lock.Release()) })
}

func (s *site) wrote(h *siteHost) {
	b, err := os.ReadFile(h.data)
	require.NoError(s.t, err)
	h.own = b
}

func (s *site) commit(h *siteHost) {
	tid, err := h.g.CommitRandom(s.rng, 2, 200)
	require.NoError(s.t, err)
	h.acked[tid] = true
	s.wrote(h)
}

// vote leaves a transaction in flight, which a server that is killed then leaves behind.
func (s *site) vote(h *siteHost) {
	require.NoError(s.t, h.g.BeginRandom(s.rng, 2, 200).Vote())
	s.wrote(h)
	s.stopZEO(h)
}

// pack removes transactions, which then may be missing everywhere.
func (s *site) pack(h *siteHost) {
	before := s.tids(h.data)
	require.NoError(s.t, h.g.Pack(h.g.LastTID()))
	s.wrote(h)
	after := s.tids(h.data)
	for tid := range before {
		for _, other := range s.hosts {
			if !after[tid] {
				delete(other.acked, tid)
			}
		}
	}
}

// mistake starts a server on a standby, commits, and stops it. False when the server does not start.
func (s *site) mistake(h *siteHost) bool {
	var err error
	calmly(func() { h.lock, err = filestorage.AcquireLock(h.data) })
	require.NoError(s.t, err)
	if h.g, err = fixtures.Open(h.data, fixtures.Options{NoSync: true, Now: s.now(h)}); err != nil {
		h.g = nil
		calmly(func() { require.NoError(s.t, h.lock.Release()) })
		return false
	}
	h.touched = true
	s.commit(h)
	s.stopZEO(h)
	h.own = nil
	return true
}

// saved returns the files that keep what only a host had.
func (s *site) saved(h *siteHost) (paths []string) {
	for _, name := range fileNames(s.t, filepath.Dir(h.data)) {
		if strings.Contains(name, divergedExt) && !strings.HasSuffix(name, listingExt) && !strings.HasSuffix(name, ".tmp") && !strings.HasSuffix(name, ".index") {
			paths = append(paths, filepath.Join(filepath.Dir(h.data), name))
		}
	}
	return paths
}

// tids returns the transactions of a Data.fs, or of a part of one.
func (s *site) tids(path string) map[filestorage.TID]bool {
	tids := map[filestorage.TID]bool{}
	f, d, c, err := OpenData(path)
	if errors.Is(err, os.ErrNotExist) {
		return tids
	}
	require.NoError(s.t, err)
	defer c.Close()
	from := int64(filestorage.MagicSize)
	if d != nil {
		from = d.Position
	}
	for txn, err := range f.Transactions(from) {
		if errors.As(err, new(*filestorage.CorruptError)) {
			break // a part of an increment that was being applied
		}
		require.NoError(s.t, err)
		tids[txn.TID] = true
	}
	return tids
}

func (s *site) backup(h *siteHost, change ...func(*incremental.BackupOptions)) (res incremental.BackupResult, err error) {
	o := incremental.BackupOptions{Data: h.data, Repository: h.repo, Now: s.now(h)}
	for _, c := range change {
		c(&o)
	}
	calmly(func() { res, err = Backup(context.Background(), o) })
	s.remember(h, res)
	return res, err
}

// remember notes what a standby must have that has applied the increment.
func (s *site) remember(h *siteHost, res incremental.BackupResult) {
	if res.File == "" {
		return
	}
	b, err := os.ReadFile(h.data)
	require.NoError(s.t, err)
	stamp := stampOfFile(res.File)
	if s.histories[stamp] == nil {
		s.histories[stamp] = map[[32]byte]bool{}
	}
	s.histories[stamp][sha256.Sum256(b[:res.End])] = true
}

// ship carries the increments of one host to the other. The line is cut after so many bytes of a file, if not 0.
func (s *site) ship(from, to *siteHost, after int64) (res []transport.TargetResult, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	calmly(func() {
		res, err = transport.Ship(ctx, transport.ShipOptions{Repository: from.repo, Targets: []string{s.line(from, to)},
			Progress: func(p transport.ShipProgress) {
				if after > 0 && p.Done >= after {
					cancel()
				}
			}})
	})
	return res, err
}

func (s *site) watchOptions(h *siteHost) WatchOptions {
	return WatchOptions{Source: h.repo, Data: h.data, Once: true, Now: s.now(h), Tell: h.tell}
}

// tell puts the answer where the increments arrive.
func (h *siteHost) tell(ctx context.Context, a incremental.Answer) error {
	target, err := transport.OpenTarget(ctx, string(h.repo), transport.TargetOptions{})
	if err != nil {
		return err
	}
	defer target.Close()
	return transport.SendAnswer(ctx, target, a)
}

func (s *site) watch(h *siteHost, change ...func(*WatchOptions)) (res WatchResult, err error) {
	o := s.watchOptions(h)
	for _, c := range change {
		c(&o)
	}
	calmly(func() { res, err = Watch(context.Background(), o) })
	s.follows(h)
	return res, err
}

// follows notes that a host has become a standby, or a master.
func (s *site) follows(h *siteHost) {
	switch s.state(h).Role {
	case Standby:
		h.own = nil
	case Promoted:
		if h.own == nil {
			s.wrote(h)
		}
	}
}

func (s *site) promote(h *siteHost, change ...func(*PromoteOptions)) (res PromoteResult, err error) {
	o := PromoteOptions{Data: h.data, Source: h.repo, Now: s.now(h), Tell: h.tell}
	for _, c := range change {
		c(&o)
	}
	calmly(func() { res, err = Promote(context.Background(), o) })
	s.follows(h)
	return res, err
}

func (s *site) rejoin(h *siteHost, change ...func(*RejoinOptions)) (res RejoinResult, err error) {
	o := RejoinOptions{Data: h.data, Source: h.repo, Now: s.now(h)}
	for _, c := range change {
		c(&o)
	}
	calmly(func() { res, err = Rejoin(context.Background(), o) })
	s.follows(h)
	return res, err
}

// dies runs f, in which a crash hook panics at the nth time that it comes to the point; "" is none. f gives back its locks with
// the panic, as the system does for a process that died; nothing else of it runs.
func dies(point string, nth int, f func(crash func(string))) (died bool) {
	defer func() {
		if r := recover(); r != nil {
			if r != any(errCrash) {
				panic(r)
			}
			died = true
		}
	}()
	f(func(at string) {
		if at == point {
			if nth--; nth == 0 {
				panic(errCrash)
			}
		}
	})
	return false
}
