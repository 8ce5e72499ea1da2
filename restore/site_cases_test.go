package restore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// What random histories of a site have found.

func TestAStandbyThatHasAppliedALaterStampOfAStaleMasterIsToldOfTheNewOne(t *testing.T) {
	for _, c := range []struct {
		name  string
		ahead time.Duration // the stale master's clock
		more  bool          // the new one has gone on
	}{
		{"the clock of the stale master was ahead", 2 * time.Hour, false},
		{"both used the same stamp", 0, false},
		{"both used the same stamp, and the new one has gone on", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, t.TempDir(), 1, "a", "b", "c")
			defer s.close()
			s.begin()
			a, b, next := s.hosts[0], s.hosts[1], s.hosts[2]
			_, err := s.promote(next)
			require.NoError(t, err)
			at := func(when time.Time) func(*incremental.BackupOptions) {
				return func(o *incremental.BackupOptions) { o.Now = func() time.Time { return when } }
			}
			now := s.clock.Add(time.Minute)
			s.commit(a)
			_, err = s.backup(a, at(now.Add(c.ahead)))
			require.NoError(t, err)
			_, err = s.ship(a, b, 0)
			require.NoError(t, err)
			_, err = s.watch(b)
			require.NoError(t, err, "it cannot know better yet")

			s.startZEO(next)
			s.commit(next)
			res, err := s.backup(next, at(now))
			require.NoError(t, err)
			require.Equal(t, c.ahead == 0, stampOfFile(res.File) == s.state(b).Applied.Stamp)
			require.LessOrEqual(t, stampOfFile(res.File), s.state(b).Applied.Stamp)
			if c.more {
				s.commit(next)
				_, err = s.backup(next, at(now.Add(time.Minute)))
				require.NoError(t, err)
			}
			_, err = s.ship(next, b, 0)
			require.NoError(t, err)
			_, err = s.watch(b)
			require.ErrorIs(t, err, fault.Diverged)
			require.Contains(t, fault.Next(err), "zodbrepl rejoin")

			_, err = s.rejoin(b)
			require.NoError(t, err)
			_, err = s.watch(b)
			require.NoError(t, err)
			s.requireSameFile(next, b)
			s.requirePromises()
		})
	}
}

func TestAStandbyOfOneOfTwoMastersIsNotToldThatTheOtherLacksWhatItHasApplied(t *testing.T) {
	s := newSite(t, t.TempDir(), 1, "a", "b", "c")
	defer s.close()
	s.begin()
	a, b, c := s.hosts[0], s.hosts[1], s.hosts[2]
	s.stopZEO(a)
	for _, h := range []*siteHost{a, b} { // neither knows of the other
		_, err := s.promote(h)
		require.NoError(t, err)
	}
	b.skew = 2 * time.Hour
	s.startZEO(b)
	s.commit(b)
	_, err := s.backup(b)
	require.NoError(t, err)
	_, err = s.ship(b, c, 0)
	require.NoError(t, err)
	_, err = s.watch(c)
	require.NoError(t, err)

	s.startZEO(a)
	s.commit(a)
	_, err = s.backup(a)
	require.NoError(t, err)
	from := func(o *WatchOptions) { o.Source = a.repo }
	_, err = s.watch(c, from)
	require.ErrorIs(t, err, fault.Diverged)
	require.ErrorContains(t, err, "two hosts were promoted")
	_, err = s.rejoin(c, func(o *RejoinOptions) { o.Source = a.repo })
	require.NoError(t, err)
	_, err = s.watch(c, from)
	require.NoError(t, err)
	s.requireSameFile(a, c)
	s.requirePromises()
}
