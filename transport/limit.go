package transport

import (
	"context"

	"golang.org/x/time/rate"
)

// limiter spreads bytes over time; nil limits nothing. Each direction of each target has its own.
type limiter struct{ *rate.Limiter }

func newLimiter(bytesPerSecond int64) *limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	// A fifth of a second at once keeps the line even; less than a few KiB would cost more than it carries.
	burst := min(max(bytesPerSecond/5, 4<<10), 1<<20)
	return &limiter{rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))}
}

// piece returns how many of n bytes may be taken at once.
func (l *limiter) piece(n int) int {
	if l == nil {
		return n
	}
	return min(n, l.Burst())
}

// wait returns when n more bytes may travel.
func (l *limiter) wait(ctx context.Context, n int) error {
	for l != nil && n > 0 {
		m := l.piece(n)
		if err := l.WaitN(ctx, m); err != nil {
			return err
		}
		n -= m
	}
	return nil
}
