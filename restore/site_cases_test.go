package restore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

// What random histories of a site have found.

func TestAStandbyThatHasAppliedALaterStampOfAStaleMasterIsToldOfTheNewOne(t *testing.T) {
	for _, c := range []struct {
		name  string
		ahead time.Duration // the stale master's clock
	}{
		{"the clock of the stale master was ahead", 2 * time.Hour},
		{"both used the same stamp", -3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, t.TempDir(), 1, "a", "b", "c")
			defer s.close()
			s.begin()
			a, b, next := s.hosts[0], s.hosts[1], s.hosts[2]
			at := s.clock
			_, err := s.promote(next)
			require.NoError(t, err)
			a.skew = c.ahead
			s.commit(a)
			_, err = s.backup(a)
			require.NoError(t, err)
			_, err = s.ship(a, b, 0)
			require.NoError(t, err)
			_, err = s.watch(b)
			require.NoError(t, err, "it cannot know better yet")

			s.clock = at
			s.startZEO(next)
			s.commit(next)
			res, err := s.backup(next)
			require.NoError(t, err)
			require.LessOrEqual(t, stampOfFile(res.File), s.state(b).Applied.Stamp)
			require.Equal(t, c.ahead < 0, stampOfFile(res.File) == s.state(b).Applied.Stamp)
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
