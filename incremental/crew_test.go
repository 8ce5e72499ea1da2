package incremental

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

func TestACrewHasOnlySoManyHands(t *testing.T) {
	c := newCrew(3)
	require.Equal(t, 1, c.hire(0))
	require.Equal(t, 2, c.hire(memberSize+1))
	var third atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		require.Equal(t, 3, c.hire(1<<40)) //nolint:testifylint // fails the test all the same
		third.Store(true)
		c.release(3)
	}()
	c.release(1)
	time.Sleep(time.Millisecond)
	require.False(t, third.Load(), "two hands are busy")
	c.release(2)
	<-done
}

// With any number of jobs the same is found, in the same order.
func TestVerificationFindsTheSameWithAnyNumberOfJobs(t *testing.T) {
	for _, zstd := range []bool{false, true} {
		w := newWorld(t)
		w.zstd = zstd
		for range 12 {
			w.grow(1)
			w.backup()
		}
		w.growBy(3 * memberSize)
		w.backup()
		w.grow(1)
		w.backup()
		var good VerifyResult
		for _, n := range []int{1, 2, 3, 8, 0} {
			res, err := Verify(t.Context(), w.repo, VerifyOptions{Jobs: n})
			require.NoError(t, err)
			if n == 1 {
				good = res
			}
			require.Equal(t, good, res)
		}
		require.Len(t, good.Chains[0].Increments, 14)
		// Two that are damaged, and one that is gone.
		ms := manifestsOf(t, w.repo)
		for _, i := range []int{3, 8} {
			b, err := os.ReadFile(w.repo.Path(ms[i].File))
			require.NoError(t, err)
			b[len(b)/2] ^= 1
			require.NoError(t, os.WriteFile(w.repo.Path(ms[i].File), b, 0o644))
		}
		require.NoError(t, os.Remove(w.repo.Path(ms[5].File)))
		var bad VerifyResult
		var first string
		for _, n := range []int{1, 2, 8} {
			told := int64(0)
			res, err := Verify(t.Context(), w.repo, VerifyOptions{Jobs: n, Progress: func(done, _ int64) {
				require.GreaterOrEqual(t, done, told)
				told = done
			}})
			require.ErrorIs(t, err, fault.Unverified)
			if n == 1 {
				bad, first = res, err.Error()
			}
			require.Equal(t, bad, res)
			require.Equal(t, first, err.Error())
		}
		require.NotEmpty(t, bad.Chains[0].Increments[3].Problem)
	}
}
