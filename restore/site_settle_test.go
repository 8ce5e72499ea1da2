package restore

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// settle puts the site in order as the runbooks say: one master, all others its standbys.
func (s *site) settle() {
	for _, h := range s.hosts {
		s.stopZEO(h)
		h.skew = 0
		for _, other := range s.hosts {
			if other != h {
				s.heal(h, other)
			}
		}
	}
	stuck := s.finishHandovers()
	m := s.master()
	require.NoError(s.t, stuck[m], "the master %s", m.name)
	for range 2 {
		s.startZEO(m)
		s.commit(m)
		s.stopZEO(m)
		_, err := s.backup(m)
		if errors.Is(err, fault.Diverged) { // the other of two masters has written there, too
			m.repo = incremental.Dir(filepath.Join(filepath.Dir(m.data), "anew"))
			m.kept = map[string][32]byte{}
			require.NoError(s.t, os.Mkdir(string(m.repo), 0o755))
			_, err = s.backup(m)
		}
		require.NoError(s.t, err, "the master %s", m.name)
		for _, h := range s.hosts {
			if h != m {
				s.follow(m, h)
				s.requireSameFile(m, h)
			}
		}
	}
}

// master is the host of the highest epoch whose ZEO server may write; one of them, when two were promoted to it. When a
// promotion of the only master died, which had lost its state, there is none: then it is run again.
func (s *site) master() (m *siteHost) {
	for _, h := range s.hosts {
		if h.own != nil && (m == nil || s.state(h).Epoch > s.state(m).Epoch) {
			m = h
		}
	}
	if m != nil {
		return m
	}
	for _, h := range s.hosts {
		if st := s.state(h); !h.touched && !st.Rejoin.pending() && (m == nil || st.Applied.LastTID > s.state(m).Applied.LastTID) {
			m = h
		}
	}
	_, err := s.promote(m)
	require.NoError(s.t, err, "no host is the master, and %s cannot be promoted", m.name)
	return m
}

// follow makes h a standby of m that is current. What a stale master has written is set aside by the first watch, which
// then ends. When two were promoted to one epoch, or the place has a part of the history that m never stored, it takes no
// increments of m: then h reads those of m.
func (s *site) follow(m, h *siteHost) {
	_, err := s.ship(m, h, 0)
	source := h.repo
	if errors.Is(err, fault.Diverged) || errors.Is(err, fault.Gap) {
		source, err = m.repo, nil
	}
	require.NoError(s.t, err, "from %s to %s", m.name, h.name)
	watch := func() (err error) {
		for range 2 {
			if _, err = s.watch(h, func(o *WatchOptions) { o.Source = source }); err == nil {
				break
			}
		}
		return err
	}
	if watch() == nil {
		return
	}
	_, err = s.rejoin(h, func(o *RejoinOptions) { o.Source, o.GiveUp = source, true })
	require.NoError(s.t, err, "%s rejoins %s", h.name, m.name)
	h.touched = false
	require.NoError(s.t, watch(), "%s after its rejoin", h.name)
}

func (s *site) requireSameFile(m, h *siteHost) {
	want, err := os.ReadFile(m.data)
	require.NoError(s.t, err)
	got, err := os.ReadFile(h.data)
	require.NoError(s.t, err)
	requireSame(s.t, want, got)
}
