package transport

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// DefaultPatience is how long a line that is cut is tried again.
const DefaultPatience = 40 * time.Second

// retry calls attempt until it succeeds or fails for a reason that another attempt would not mend. A failure of the
// line is tried again after growing pauses, until nothing has come forward for as long as patience lasts. attempt
// stores the time in forward whenever it has achieved something that a later one need not do again.
func retry(ctx context.Context, patience time.Duration, t timing, attempt func(n int, forward *atomic.Int64) error) error {
	var forward atomic.Int64
	forward.Store(time.Now().UnixNano())
	pauses := &backoff.ExponentialBackOff{InitialInterval: t.pause, Multiplier: 2, MaxInterval: t.maxPause, RandomizationFactor: 0.2}
	last := forward.Load()
	for n := 0; ; n++ {
		err := attempt(n, &forward)
		var line *lineError
		if ctx.Err() != nil && err != nil {
			return ctx.Err()
		}
		if err == nil || !errors.As(err, &line) {
			return err
		}
		if now := forward.Load(); now != last {
			last = now
			pauses.Reset()
		}
		pause := pauses.NextBackOff()
		if time.Since(time.Unix(0, last))+pause > patience {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
