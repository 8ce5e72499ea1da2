package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// TestAnyHistoryOfASiteKeepsThePromises walks through random histories of three hosts: commits, packs, backups, shipments that
// are cut, replays, promotions, handovers and rejoins that die at any point, lines that are cut, clocks apart, servers that are
// started where they must not be. After each step every host is held to the promises of the design; at the end of a history
// the site is put in order as the runbooks say, and all hosts must have the same Data.fs.
//
// The histories are the same ones each time, unless -rapid.seed says otherwise; make walk makes thousands of new ones. With -v
// the number of histories and of different states that they passed through is told.
func TestAnyHistoryOfASiteKeepsThePromises(t *testing.T) {
	base := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		base = "/dev/shm"
	}
	fewer(t, "12")
	unlessGiven(t, "rapid.seed", "12")
	histories, steps, states := 0, 0, map[string]bool{}
	outcomes := map[string]int{}
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "site")
		require.NoError(t, err)
		defer os.RemoveAll(dir)
		s := newSite(t, dir, 1, "a", "b", "c")
		defer s.close()
		s.begin()
		histories++
		s.outcomes = outcomes
		actions := s.actions()
		for name, do := range actions {
			actions[name] = func(t *rapid.T) {
				do(t)
				steps++
				s.requirePromises()
				states[s.signature()] = true
			}
		}
		t.Repeat(actions)
		s.settle()
		s.requirePromises()
	})
	t.Logf("%d histories, %d steps, %d different states", histories, steps, len(states))
	for what, n := range outcomes {
		t.Logf("%6d %s", n, what)
	}
}

// begin makes a master and two standbys that follow it.
func (s *site) begin() {
	a := s.hosts[0]
	s.startZEO(a)
	for range 3 {
		s.commit(a)
	}
	_, err := s.backup(a)
	require.NoError(s.t, err)
	for _, h := range s.hosts[1:] {
		_, err = s.ship(a, h, 0)
		require.NoError(s.t, err)
		_, err = s.watch(h)
		require.NoError(s.t, err)
	}
}

// some draws a host.
func (s *site) some(t *rapid.T, what string) *siteHost {
	return s.hosts[rapid.IntRange(0, len(s.hosts)-1).Draw(t, what)]
}

// two draws a host and another.
func (s *site) two(t *rapid.T) (from, to *siteHost) {
	i := rapid.IntRange(0, len(s.hosts)-1).Draw(t, "from")
	j := rapid.IntRange(1, len(s.hosts)-1).Draw(t, "to")
	return s.hosts[i], s.hosts[(i+j)%len(s.hosts)]
}

var (
	watchPoints   = []string{"verified", "intended", "writing", "appended", "reached", "staged", "unindexed", "swapped"}
	promotePoints = []string{"indexed", "promoted", "verified", "appended"}
	rejoinPoints  = []string{"planned", "saved", "listed", "intended", "unindexed", "cut", "rejoined"}
)

// actions are the steps of a history.
func (s *site) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"commit": func(t *rapid.T) {
			if h := s.some(t, "host"); s.mayWrite(h) && s.startZEO(h) {
				s.commit(h)
			}
		},
		"server killed while it commits": func(t *rapid.T) {
			if h := s.some(t, "host"); h.g != nil {
				s.vote(h)
			}
		},
		"server stopped": func(t *rapid.T) { s.stopZEO(s.some(t, "host")) },
		"pack": func(t *rapid.T) {
			if h := s.some(t, "host"); h.g != nil {
				s.pack(h)
			}
		},
		"backup and ship everywhere": func(t *rapid.T) { s.cycle(s.some(t, "host"), false) },
		"a cycle":                    func(t *rapid.T) { s.cycle(s.some(t, "host"), true) },
		"another cycle":              func(t *rapid.T) { s.cycle(s.some(t, "host"), true) },
		"backup":                     func(t *rapid.T) { s.tryBackup(s.some(t, "host")) },
		"ship":                       func(t *rapid.T) { from, to := s.two(t); s.tryShip(from, to, 0) },
		"ship, and be cut": func(t *rapid.T) {
			from, to := s.two(t)
			s.tryShip(from, to, rapid.Int64Range(1, 4000).Draw(t, "after"))
		},
		"watch": func(t *rapid.T) { s.tryWatch(s.some(t, "host")) },
		"watch dies": func(t *rapid.T) {
			s.watchDies(s.some(t, "host"), rapid.SampledFrom(watchPoints).Draw(t, "point"))
		},
		"promote": func(t *rapid.T) {
			if h := s.some(t, "host"); rapid.IntRange(0, 2).Draw(t, "seldom") == 0 {
				s.tryPromote(h, "")
			}
		},
		"promote dies": func(t *rapid.T) {
			if h := s.some(t, "host"); rapid.IntRange(0, 2).Draw(t, "seldom") == 0 {
				s.tryPromote(h, rapid.SampledFrom(promotePoints).Draw(t, "point"))
			}
		},
		"rejoin":      func(t *rapid.T) { s.tryRejoin(s.some(t, "host"), "") },
		"rejoin dies": func(t *rapid.T) { s.tryRejoin(s.some(t, "host"), rapid.SampledFrom(rejoinPoints).Draw(t, "point")) },
		"hand over": func(t *rapid.T) {
			from, to := s.two(t)
			s.cycle(from, true)
			s.tryHandOver(from, to, handing{accept: true})
		},
		"hand over, and anything happens": func(t *rapid.T) {
			from, to := s.two(t)
			if rapid.Bool().Draw(t, "on a good day") {
				s.cycle(from, true)
			}
			s.tryHandOver(from, to, handing{
				accept: rapid.Bool().Draw(t, "accept"),
				point:  rapid.SampledFrom(append([]string{""}, handingPoints...)).Draw(t, "point"),
				cut:    rapid.SampledFrom([]string{"", "", "published", "answer"}).Draw(t, "cut"),
			})
		},
		"a handover is taken back": func(t *rapid.T) {
			from, to := s.two(t)
			s.tryCancel(from, to)
		},
		"a server is started on a standby": func(t *rapid.T) {
			h := s.some(t, "host")
			st := s.state(h)
			if st.Role == Standby && st.Applied.Position > 0 && h.g == nil && rapid.IntRange(0, 3).Draw(t, "seldom") == 0 {
				s.mistake(h)
			}
		},
		"a line is cut":    func(t *rapid.T) { s.cut(s.two(t)) },
		"a line is mended": func(t *rapid.T) { s.heal(s.two(t)) },
		"a clock goes wrong": func(t *rapid.T) {
			s.some(t, "host").skew = time.Duration(rapid.IntRange(-5, 5).Draw(t, "hours")) * time.Hour
		},
		"": func(*rapid.T) {},
	}
}

// cycle is what cron and the daemons do on a good day.
func (s *site) cycle(h *siteHost, watch bool) {
	if !s.mayWrite(h) || !s.startZEO(h) {
		return
	}
	s.commit(h)
	if s.tryBackup(h) != nil {
		return
	}
	for _, other := range s.hosts {
		if other == h {
			continue
		}
		s.tryShip(h, other, 0)
		if watch && s.state(other).Role == Standby {
			s.tryWatch(other)
		}
	}
}

// told counts how an action ended.
func (s *site) told(what string, err error) error {
	kind := "done"
	if err != nil {
		kind = fmt.Sprintf("code %d", fault.ExitCode(err))
	}
	s.outcomes[what+": "+kind]++
	return err
}

func (s *site) tryBackup(h *siteHost) error {
	st := s.state(h)
	if _, err := os.Stat(h.data); err != nil {
		return err
	}
	own := max(st.Epoch, 1)
	_, offered, err := incremental.OpenHandover(context.Background(), h.repo, own)
	require.NoError(s.t, err)
	if st.Role == Standby || s.known(h) > own || offered {
		s.requireRefused(h, fault.Refused, func() error { _, err := s.backup(h); return err })
		return s.told("backup", fault.Refused)
	}
	_, err = s.backup(h)
	alone := true // no other host was promoted to this epoch
	for _, other := range s.hosts {
		alone = alone && (other == h || s.state(other).Epoch < own || s.state(other).Promotions.Has(st.Promotions.Last()))
	}
	if alone && st.Role == Promoted {
		require.NoError(s.t, err, "the only master of epoch %d cannot be backed up", own)
	}
	return s.told("backup", err)
}

func (s *site) tryShip(from, to *siteHost, after int64) {
	_, err := s.ship(from, to, after)
	s.told("ship", err)
}

func (s *site) tryWatch(h *siteHost) error {
	st := s.state(h)
	if st.Role == Promoted || h.g != nil {
		s.requireRefused(h, fault.Refused, func() error { _, err := s.watch(h); return err })
		return s.told("watch", fault.Refused)
	}
	if h.own != nil && s.known(h) <= 1 { // a master that never was a standby, and knows of no other
		before := tree(s.t, filepath.Dir(h.data))
		_, err := s.watch(h)
		require.Error(s.t, err)
		require.Equal(s.t, before, tree(s.t, filepath.Dir(h.data)))
		return s.told("watch on the master", err)
	}
	_, err := s.watch(h)
	if h.touched {
		require.Error(s.t, err, "what a server wrote on the standby %s was not noticed", h.name)
		require.Contains(s.t, []int{3, 5}, fault.ExitCode(err), "%v", err)
	}
	return s.told("watch", err)
}

// watchDies is a watch that dies at a point.
func (s *site) watchDies(h *siteHost, point string) {
	if h.own != nil {
		return
	}
	died := dies(point, 1, func(crash func(string)) {
		sb := &standby{data: h.data, log: discard, now: s.now(h), crash: crash}
		defer sb.close()
		var err error
		calmly(func() { err = openStandby(context.Background(), sb, h.repo) })
		if err == nil {
			_, err = sb.catchUp(context.Background(), h.repo)
		}
		s.told("watch", err)
	})
	if died {
		s.outcomes["watch: died "+point]++
	}
	s.follows(h)
}

func (s *site) tryPromote(h *siteHost, point string) {
	st := s.state(h)
	if _, err := os.Stat(h.data); err != nil {
		return
	}
	var res PromoteResult
	var err error
	died := dies(point, 1, func(crash func(string)) {
		res, err = s.promote(h, func(o *PromoteOptions) {
			o.Wait = time.Millisecond
			if point != "" {
				o.crash = crash
			}
		})
	})
	s.follows(h)
	if h.own != nil && h.g == nil { // what was in flight when its server died may be cut off
		s.wrote(h)
	}
	if died {
		s.outcomes["promote: died "+point]++
		return
	}
	s.told("promote", err)
	if err == nil && !res.Already {
		require.Greater(s.t, res.Epoch, st.Epoch)
		require.Equal(s.t, Promoted, s.state(h).Role)
	}
	if h.touched {
		require.Error(s.t, err, "a standby that a server wrote to was promoted")
	}
}

func (s *site) tryRejoin(h *siteHost, point string) error {
	st := s.state(h)
	if _, err := os.Stat(h.data); err != nil && st.Role != Standby {
		return err
	}
	if h.g != nil {
		before, _ := os.ReadFile(statePath(h.data))
		_, err := s.rejoin(h)
		if err == nil {
			after, _ := os.ReadFile(statePath(h.data))
			require.Equal(s.t, string(before), string(after), "the state of %s was changed while its server runs", h.name)
		}
		return s.told("rejoin", err)
	}
	var err error
	died := dies(point, 1, func(crash func(string)) {
		_, err = s.rejoin(h, func(o *RejoinOptions) {
			if point != "" {
				o.crash = crash
			}
		})
	})
	s.follows(h)
	if died {
		h.touched = h.touched && point != "rejoined" // when it had been done
		s.outcomes["rejoin: died "+point]++
		return errCrashed
	}
	if err == nil && !s.state(h).Rejoin.pending() {
		h.touched = false
	}
	return s.told("rejoin", err)
}

var errCrashed = errors.New("crashed")
