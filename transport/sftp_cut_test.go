package transport

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/sshtest"
)

// changing are the requests that change something on the other host.
var changing = []string{"open", "write", "setstat", "fsetstat", "fsync", "rename", "posix-rename", "remove", "close"}

// cutAt cuts the connection once, at the nth request of those kinds, from 1.
func cutAtRequest(n int, v sshtest.Verdict, ops ...string) (rule sshtest.Rule, happened *atomic.Bool) {
	happened = new(atomic.Bool)
	once := sshtest.Once(n, sshtest.When(v, ops...))
	return func(r sshtest.Request) sshtest.Verdict {
		v := once(r)
		if v != sshtest.Pass {
			happened.Store(true)
		}
		return v
	}, happened
}

// The line is cut once at every request that changes something: before it is done, and when it is done and nobody
// learns of it. The same run gets everything there, or the next one when the run died with the line.
func TestALineThatIsCutAtAnyRequestLosesNothing(t *testing.T) {
	m := newMaster(t)
	m.backup()
	m.backup()
	total := stored(m.manifests())
	all := sshtest.Options{}
	none := sshtest.Options{Without: []string{"posix-rename@openssh.com", "fsync@openssh.com"}}
	for _, c := range []struct {
		name     string
		o        sshtest.Options
		verdict  sshtest.Verdict
		patience time.Duration
	}{
		{"after it was done, and the run goes on", all, sshtest.CutAfter, 0},
		{"before it is done, and the run dies", all, sshtest.CutBefore, impatient},
		{"after it was done, by a server without extensions, and the run goes on", none, sshtest.CutAfter, 0},
		{"before it is done, by a server without extensions, and the run dies", none, sshtest.CutBefore, impatient},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			h := newOtherHost(t, c.o)
			twice := int64(0)
			n := 1
			for ; ; n++ {
				emptied(t, h.Dir)
				h.Reset()
				rule, happened := cutAtRequest(n, c.verdict, changing...)
				h.SetRule(rule)
				first, err := m.shipTo(h, c.patience)
				if !happened.Load() {
					require.NoError(t, err)
					break
				}
				sent := first.Sent
				if err != nil {
					require.Equal(t, impatient, c.patience, "cut %d: the run must go on: %v", n, err)
					usable(t, h.Dir)
					second, err := m.shipTo(h, 0)
					require.NoError(t, err, "cut %d", n)
					sent += second.Sent
				}
				m.arrived(h)
				require.GreaterOrEqual(t, sent, total)
				twice += sent - total
			}
			require.Greater(t, n, 2*3*4, "two increments of three files, each opened, written, closed and renamed")
			t.Logf("%d cuts; %d bytes travelled twice, of %d each time", n-1, twice, total)
			require.LessOrEqual(t, twice, total, "at most each data file once, when its only write was under way")
		})
	}
}

// emptied removes the files in a directory.
func emptied(t *testing.T, dir string) {
	t.Helper()
	for name := range tree(t, dir) {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
}

// A large file over a line that breaks every two megabytes, anywhere in the middle of a packet.
func TestALargeFileOverALineThatBreaksAgainAndAgain(t *testing.T) {
	m := newMaster(t)
	man := m.backupMuch(12 << 20)
	for _, patience := range []bool{true, false} {
		t.Run(fmt.Sprint("the run goes on: ", patience), func(t *testing.T) {
			m.t = t
			h := newOtherHost(t, sshtest.Options{})
			p := sshtest.NewProxy(t, h.Addr)
			h.home.TrustAt(p.Addr, h.Server)
			const every = 2<<20 + 12345
			cuts, sent := 0, int64(0)
			h.SetRule(func(r sshtest.Request) sshtest.Verdict {
				if r.Op == "open" && strings.HasSuffix(r.Path, man.File+".tmp") && cuts < 5 { // a new beginning
					cuts++
					p.CutAfter(every)
				}
				return sshtest.Pass
			})
			for runs := 0; ; runs++ {
				wait := impatient
				if patience {
					wait = 0
				}
				res, err := m.shipVia(h, p.Addr, wait)
				sent += res.Sent
				if err == nil {
					break
				}
				require.False(t, patience, "%v", err)
				require.Less(t, runs, 20, "no progress: %v", err)
				usable(t, h.Dir)
			}
			require.Equal(t, 5, cuts)
			const small = 10_000 // the manifest and the .dat
			twice := h.Written() - man.StoredSize
			t.Logf("%d bytes in %d pieces: %d bytes arrived twice, and %d more were under way", man.StoredSize, cuts+1, twice, sent-h.Written())
			require.Less(t, twice, int64(cuts)*window*minPacket+small, "more than what was under way")
			m.arrived(h)
		})
	}
}

func TestAServerThatDiesAndComesBackIsGoneOnWith(t *testing.T) {
	m := newMaster(t)
	man := m.backupMuch(6 << 20)
	m.backup()
	for _, at := range []struct {
		name string
		rule sshtest.Rule
	}{
		{"in the middle of a data file", sshtest.AfterBytes(3<<20, sshtest.CutBefore)},
		{"in the middle of a manifest", sshtest.On(".manifest", sshtest.When(sshtest.CutBefore, "write"))},
		{"in the middle of the renaming of a data file", sshtest.On(man.File, sshtest.When(sshtest.CutAfter, "posix-rename"))},
		{"in the middle of the renaming of a manifest", sshtest.On(".manifest", sshtest.When(sshtest.CutAfter, "posix-rename"))},
		{"while it makes a file durable", sshtest.When(sshtest.CutBefore, "fsync")},
	} {
		t.Run(at.name, func(t *testing.T) {
			m.t = t
			h := newOtherHost(t, sshtest.Options{})
			died := make(chan struct{})
			var once atomic.Bool
			h.SetRule(func(r sshtest.Request) sshtest.Verdict {
				if v := at.rule(r); v != sshtest.Pass && once.CompareAndSwap(false, true) {
					go func() { // not from within the server
						h.Stop()
						close(died)
					}()
					return v
				}
				return sshtest.Pass
			})
			go func() {
				<-died
				h.Restart(t)
			}()
			_, err := m.shipTo(h, 0)
			require.NoError(t, err)
			<-died
			h.SetRule(nil)
			m.arrived(h)
			const small = 10_000 // manifests and .dat
			twice := h.Written() - stored(m.manifests())
			t.Logf("%d bytes arrived twice, with the small files", max(0, twice))
			require.Less(t, twice, int64(window*minPacket)+small)
		})
	}
}

// What is under way when the other side has no room, refuses, or breaks off one request is named, and goes on.
func TestAServerThatFailsOnceIsNamedAndGoneOnWith(t *testing.T) {
	m := newMaster(t)
	m.backup()
	for _, c := range []struct {
		name string
		rule sshtest.Rule
		says string
	}{
		{"a write fails", sshtest.Refuse(sshtest.Failure, "write"), "Failure"},
		{"a write is not permitted", sshtest.Refuse(sshtest.PermissionDenied, "write"), "cannot be written"},
		{"a file cannot be opened", sshtest.On(".fsz", sshtest.Refuse(sshtest.PermissionDenied, "open")), "cannot be written"},
		{"a rename fails", sshtest.Refuse(sshtest.Failure, "posix-rename"), "Failure"},
		{"a rename is not permitted", sshtest.Refuse(sshtest.PermissionDenied, "posix-rename"), "cannot be written"},
		{"fsync fails", sshtest.Refuse(sshtest.Failure, "fsync"), "Failure"},
		{"the disk is full", sshtest.Full(500), "is full"},
		{"the last write is short, and the server does not tell", sshtest.On(".fsz", sshtest.When(sshtest.Lie(100), "write")), "100 bytes arrived"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			h := newOtherHost(t, sshtest.Options{Rule: c.rule})
			_, err := m.shipTo(h, 0)
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, h.Addr)
			usable(t, h.Dir)
			for name := range tree(t, h.Dir) {
				require.True(t, strings.HasSuffix(name, ".tmp") || !strings.HasSuffix(name, ".manifest"), name)
			}
			opened := slices.DeleteFunc(h.Requests(), func(r sshtest.Request) bool { return r.Op != "init" })
			require.Len(t, opened, 1, "what is permanent is not tried again")
			h.SetRule(nil)
			m.mustShipTo(h)
		})
	}
}

func TestLeftOversThatNobodyGoesOnWithAreRemoved(t *testing.T) {
	m := newMaster(t)
	m.backup()
	ours := string(m.manifests()[0].Stamp)
	dir := incremental.Dir(t.TempDir())
	now, old := time.Now(), time.Now().Add(-8*24*time.Hour)
	for _, c := range []struct {
		name    string
		written time.Time
		stays   bool
	}{
		{ours + ".fsz.tmp", now, false}, // gone on with
		{ours + ".deltafsz.tmp", now, false},
		{ours + ".dat.replaced.tmp", now, false},
		{ours + ".handover.tmp", now, true}, // not ship's
		{"2024-01-01-00-00-00.fsz.tmp", old, false},
		{"2024-01-01-00-00-01.fsz.tmp", now, true}, // another host's, which is at work
		{"2024-01-01-00-00-02.fsz", old, true},
		{"notes.tmp", old, true},
		{"tmp.tmp", old, true},
	} {
		require.NoError(t, os.WriteFile(dir.Path(c.name), []byte("x"), 0o644))
		require.NoError(t, os.Chtimes(dir.Path(c.name), c.written, c.written))
		defer func() {
			_, err := os.Stat(dir.Path(c.name))
			require.Equal(t, c.stays, err == nil, c.name)
		}()
	}
	m.ship(string(dir))
}
