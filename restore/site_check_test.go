package restore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// requirePromises holds every host to what the design promises at every moment.
func (s *site) requirePromises() {
	for _, h := range s.hosts {
		s.requireNothingLost(h)
		s.requireOwn(h)
		s.requireOnePast(h)
		s.requireStored(h)
		epoch := s.state(h).Epoch
		require.GreaterOrEqual(s.t, epoch, h.epoch, "the epoch of %s went back", h.name)
		h.epoch = epoch
	}
	s.requireOneMaster()
}

// requireNothingLost: what the ZEO server of a host has acknowledged is in its Data.fs, or in what was saved from it.
func (s *site) requireNothingLost(h *siteHost) {
	if len(h.acked) == 0 {
		return
	}
	there := s.tids(h.data)
	for _, path := range s.saved(h) {
		for tid := range s.tids(path) {
			there[tid] = true
		}
	}
	var stored map[filestorage.TID]bool
	for tid := range h.acked {
		if !there[tid] && stored == nil {
			stored = s.stored(h)
		}
		require.True(s.t, there[tid] || stored[tid], "transaction %s, acknowledged by %s, is nowhere on it", tid, h.name)
	}
}

// stored returns the transactions of the increments that a host has.
func (s *site) stored(h *siteHost) map[filestorage.TID]bool {
	tids := map[filestorage.TID]bool{}
	repo, err := incremental.Open(context.Background(), h.repo)
	require.NoError(s.t, err)
	ms, _, err := repo.Manifests(context.Background())
	require.NoError(s.t, err)
	for _, m := range ms {
		inc, err := m.Increment()
		require.NoError(s.t, err)
		check := filestorage.NewChecker(m.File, m.Start)
		check.OnTransaction = func(_ int64, t filestorage.TxnHeader) error {
			tids[t.TID] = true
			return nil
		}
		require.NoError(s.t, repo.Copy(context.Background(), inc, check))
	}
	return tids
}

// requireOwn: nobody but its ZEO server writes to the Data.fs of a master.
func (s *site) requireOwn(h *siteHost) {
	if h.own == nil {
		return
	}
	b, err := os.ReadFile(h.data)
	require.NoError(s.t, err, "the Data.fs of the master %s", h.name)
	require.True(s.t, bytes.Equal(h.own, b), "somebody wrote to the Data.fs of the master %s", h.name)
}

// requireOnePast: a standby's Data.fs is, up to its position, what some master had when it made that increment; and what
// stands behind it is a part of the one that is being applied.
func (s *site) requireOnePast(h *siteHost) {
	st := s.state(h)
	if st.Role != Standby || st.Applied.Position == 0 || st.Next != nil && st.Next.Whole || st.Rejoin.pending() || h.touched {
		return
	}
	b, err := os.ReadFile(h.data)
	require.NoError(s.t, err)
	require.GreaterOrEqual(s.t, int64(len(b)), st.Applied.Position)
	require.True(s.t, s.histories[st.Applied.Stamp][sha256.Sum256(b[:st.Applied.Position])],
		"the Data.fs of %s is nobody's past at increment %s", h.name, st.Applied.Stamp)
	if st.Next == nil {
		require.EqualValues(s.t, st.Applied.Position, len(b), "bytes on %s that nobody announced", h.name)
	}
}

// requireStored: an increment that was published somewhere stays there as it was, at most set aside.
func (s *site) requireStored(h *siteHost) {
	repo, err := incremental.Open(context.Background(), h.repo)
	require.NoError(s.t, err)
	there := map[string]bool{} // name without what marks it as set aside, and hash
	for _, name := range fileNames(s.t, string(h.repo)) {
		if !strings.Contains(name, "fs") || strings.HasSuffix(name, ".tmp") {
			continue
		}
		b, err := os.ReadFile(h.repo.Path(name))
		require.NoError(s.t, err)
		if i := strings.Index(name, ".stale"); i > 0 {
			name = name[:i]
		}
		there[fmt.Sprintf("%s %x", name, sha256.Sum256(b))] = true
	}
	for name, sum := range h.kept {
		require.True(s.t, there[fmt.Sprintf("%s %x", name, sum)], "the increment %s on %s was lost or changed", name, h.name)
	}
	ms, problems, err := repo.Manifests(context.Background())
	require.NoError(s.t, err)
	require.Empty(s.t, problems)
	for _, m := range ms {
		b, err := os.ReadFile(h.repo.Path(m.File))
		require.NoError(s.t, err, "a manifest without its increment on %s", h.name)
		require.Equal(s.t, m.StoredSHA256, fmt.Sprintf("%x", sha256.Sum256(b)), "%s on %s", m.File, h.name)
		h.kept[m.File] = sha256.Sum256(b)
	}
}

// known returns the highest epoch that can be seen in a host's repository.
func (s *site) known(h *siteHost) int {
	fence, err := incremental.ReadFence(context.Background(), h.repo)
	require.NoError(s.t, err)
	epoch := fence.Epoch
	repo, err := incremental.Open(context.Background(), h.repo)
	require.NoError(s.t, err)
	ms, _, err := repo.Manifests(context.Background())
	require.NoError(s.t, err)
	for _, m := range ms {
		epoch = max(epoch, m.Epoch)
	}
	answers, _, err := incremental.ReadAnswers(context.Background(), h.repo)
	require.NoError(s.t, err)
	for _, a := range answers {
		epoch = max(epoch, a.Epoch)
	}
	return epoch
}

// requireRefused requires a refusal that changed no file of the host.
func (s *site) requireRefused(h *siteHost, kind error, f func() error) {
	before := tree(s.t, filepath.Dir(h.data))
	err := f()
	require.ErrorIs(s.t, err, kind)
	require.NotEmpty(s.t, fault.Next(err), "a refusal without a remedy: %v", err)
	after := tree(s.t, filepath.Dir(h.data))
	require.Equal(s.t, len(before), len(after), "%v", err)
	for name := range before {
		require.True(s.t, before[name] == after[name], "%s was changed, although: %v", name, err)
	}
}

// signature names what is essential of all hosts, to count the states that were reached.
func (s *site) signature() string {
	top := 0
	for _, h := range s.hosts {
		top = max(top, s.state(h).Epoch, s.known(h))
	}
	var b strings.Builder
	for _, h := range s.hosts {
		st := s.state(h)
		fmt.Fprintf(&b, "%s/%d/%s/", st.Role, max(1, st.Epoch)-top, st.Condition.Name)
		for _, yes := range []bool{h.g != nil, h.own != nil, h.touched, st.Next != nil, s.known(h) > st.Epoch, len(s.saved(h)) > 0, s.shares(h)} {
			fmt.Fprint(&b, map[bool]string{true: "y", false: "n"}[yes])
		}
		for _, to := range s.hosts {
			_, err := os.Stat(s.line(h, to))
			fmt.Fprint(&b, map[bool]string{true: "|", false: "x"}[err == nil])
		}
		b.WriteByte(' ')
	}
	return b.String()
}

// shares says whether a host's Data.fs ends with a transaction that another host has too.
func (s *site) shares(h *siteHost) bool {
	last := filestorage.TID(0)
	for tid := range s.tids(h.data) {
		last = max(last, tid)
	}
	for _, other := range s.hosts {
		if other != h && last != 0 && s.tids(other.data)[last] {
			return true
		}
	}
	return false
}
