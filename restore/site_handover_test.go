package restore

import (
	"context"
	"errors"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
	"zodbrepl/transport"
)

var handingPoints = []string{"backed up", "offered", "shipped", "published", "taking back", "taken back", "seen", "cut", "gave up", "fenced",
	"standby: taking", "standby: taken"}

// handing is how a handover goes.
type handing struct {
	accept bool   // the standby takes over
	point  string // at which the master dies, or the standby
	cut    string // the line is cut when the offer is published, or when the standby has looked
}

// place is a host's repository as it is seen from another.
type place struct{ transport.Target }

func (p place) WriteFile(ctx context.Context, name string, content []byte) error {
	return transport.WriteFile(ctx, p.Target, name, content)
}

// farPlace opens the place for each call: the line may be cut in between.
type farPlace struct {
	incremental.Dir
}

func (f farPlace) WriteFile(ctx context.Context, name string, content []byte) error {
	t, err := transport.OpenTarget(ctx, string(f.Dir), transport.TargetOptions{})
	if err != nil {
		return err
	}
	defer t.Close()
	return place{t}.WriteFile(ctx, name, content)
}

func (s *site) handoverOptions(from, to *siteHost) HandoverOptions {
	return HandoverOptions{Data: from.data, Repository: from.repo, Place: farPlace{incremental.Dir(s.line(from, to))},
		Ship: func(ctx context.Context) error {
			_, err := transport.Ship(ctx, transport.ShipOptions{Repository: from.repo, Targets: []string{s.line(from, to)}})
			return err
		},
		Wait: time.Millisecond, Now: s.now(from), poll: time.Millisecond, hear: time.Millisecond}
}

// tryHandOver hands over. The standby looks at the moment at which the offer is published.
func (s *site) tryHandOver(from, to *siteHost, how handing) {
	if s.state(from).Role == Standby || from.own == nil || to.g != nil || s.state(to).Role != Standby {
		return
	}
	s.stopZEO(from)
	// So that the master knows that the standby would.
	_, _ = s.watch(to, func(o *WatchOptions) { o.AcceptHandover = true })
	o := s.handoverOptions(from, to)
	var err error
	died := dies(how.point, 1, func(crash func(string)) {
		o.crash = func(at string) {
			if at == "backed up" {
				s.rememberNewest(from)
			}
			if at == "published" {
				if how.cut == "published" {
					s.cut(from, to)
				}
				s.accepts(to, how, crash)
				if how.cut == "answer" {
					s.cut(from, to)
				}
			}
			crash(at)
		}
		calmly(func() { _, err = HandOver(context.Background(), o) })
	})
	s.noteHandover(from)
	s.follows(from)
	s.follows(to)
	if died {
		s.outcomes["handover: died "+how.point]++
		return
	}
	s.told("handover", err)
	if err == nil {
		require.Equal(s.t, Standby, s.state(from).Role)
	}
}

// rememberNewest is remember for a backup that a handover has made.
func (s *site) rememberNewest(h *siteHost) {
	repo, err := incremental.Open(context.Background(), h.repo)
	require.NoError(s.t, err)
	stamps := repo.ManifestStamps()
	m, err := incremental.ReadManifest(context.Background(), h.repo, stamps[len(stamps)-1])
	require.NoError(s.t, err)
	s.remember(h, incremental.BackupResult{File: m.File, End: m.End})
}

// accepts is the watch of a standby that takes over.
func (s *site) accepts(h *siteHost, how handing, crash func(string)) {
	if !how.accept {
		return
	}
	if dies(how.point, 1, func(crash func(string)) {
		o := s.watchOptions(h)
		o.AcceptHandover, o.Log, o.Interval = true, discard, time.Second
		o.crash = func(at string) { crash("standby: " + at) }
		w := &watcher{WatchOptions: o, reading: h.repo, addresses: &addresses{}}
		w.standby = &standby{data: h.data, log: discard, now: o.Now, crash: o.crash}
		defer w.standby.close()
		err := openStandby(context.Background(), w.standby, h.repo)
		if err == nil {
			err = w.run(context.Background())
		}
		s.told("take over", err)
	}) {
		s.outcomes["take over: died "+how.point]++
	}
	s.follows(h)
}

// noteHandover remembers the offers that a master has made: see requireOneMaster.
func (s *site) noteHandover(h *siteHost) {
	offers, err := incremental.ReadOffers(context.Background(), h.repo)
	require.NoError(s.t, err)
	for _, o := range offers {
		if o.Data == h.data {
			s.offered[o.Promotions.Last().ID] = h
		}
	}
}

// requireOneMaster: who has handed over cannot be backed up as the master any more.
func (s *site) requireOneMaster() {
	for _, h := range s.hosts {
		st := s.state(h)
		if st.Role != Promoted {
			continue
		}
		from := s.offered[st.Promotions.Last().ID]
		if from == nil || from == h || from.own == nil {
			continue
		}
		was := s.state(from)
		if was.Role == Promoted && was.Promotions.Has(st.Promotions.Last()) || was.Epoch >= st.Epoch {
			continue // it has been promoted since
		}
		_, err := s.backup(from)
		require.ErrorIs(s.t, err, fault.Refused, "%s has handed over to %s, and is backed up all the same", from.name, h.name)
	}
}

func (s *site) tryCancel(from, to *siteHost) {
	if s.state(from).Role == Standby || from.own == nil {
		return
	}
	o := s.handoverOptions(from, to)
	var err error
	calmly(func() { _, err = CancelHandover(context.Background(), o) })
	s.told("handover --cancel", err)
}

// finishHandovers brings to an end what was left half-way, as the messages say: what was taken is finished, what was not
// is taken back. It returns why some hosts could do neither: where another host was promoted meanwhile, the place may have
// set the final increment aside.
func (s *site) finishHandovers() (stuck map[*siteHost]error) {
	stuck = map[*siteHost]error{}
	for _, h := range s.hosts {
		if h.own == nil {
			_, _ = s.watch(h) // one that has taken the role goes on
		}
	}
	for _, from := range s.hosts {
		for _, to := range s.hosts {
			if to == from || from.own == nil || s.state(from).Role == Standby {
				continue
			}
			o := s.handoverOptions(from, to)
			_, err := CancelHandover(context.Background(), o)
			switch {
			case errors.Is(err, fault.Usage): // offered to the other
			case errors.Is(err, fault.Refused):
				_, err = HandOver(context.Background(), o)
				s.follows(from)
				if errors.Is(err, fault.Diverged) {
					continue // its server was started all the same: it rejoins
				}
				require.NoError(s.t, err, "%s finishes its handover to %s", from.name, to.name)
			case err != nil:
				stuck[from] = err
			}
		}
	}
	return stuck
}
