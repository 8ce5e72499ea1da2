package transport

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
)

func TestARateIsNotExceeded(t *testing.T) {
	const rate, size = 1 << 20, 500_000 // with the fifth of a second that is free: a quarter of a second at least
	dir := t.TempDir()
	h := newOtherHost(t, sshtest.Options{})
	for _, where := range []string{dir, h.URL(h.Dir)} {
		target, err := OpenTarget(t.Context(), where, TargetOptions{LimitRate: rate})
		require.NoError(t, err)
		start := time.Now()
		_, err = target.Put(t.Context(), "file", bytes.NewReader(make([]byte, size)), size, nil)
		require.NoError(t, err)
		require.Greater(t, time.Since(start), 250*time.Millisecond, where)
		require.NoError(t, target.Publish(t.Context(), "file"))
		start = time.Now()
		r, err := target.Open(t.Context(), "file")
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, r)
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		require.Greater(t, time.Since(start), 250*time.Millisecond, where)
		require.NoError(t, r.Close())
		require.NoError(t, target.Close())
	}
}

// What travels at once takes no longer than a second, so that a slow rate is not taken for a silent peer.
func TestASlowRateIsNotTakenForSilence(t *testing.T) {
	for _, rate := range []int64{1, 10, 1000, 20_000, 1 << 20, 1 << 40} {
		piece := newLimiter(rate).piece(maxPacket)
		require.Positive(t, piece)
		require.LessOrEqual(t, int64(piece), rate, "at %d bytes a second", rate)
	}
	require.Nil(t, newLimiter(0))
	require.Equal(t, 5, newLimiter(0).piece(5), "no limit")
}
