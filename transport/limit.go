package transport

import (
	"context"
	"io"

	"golang.org/x/time/rate"
)

// limiter spreads bytes over time; nil limits nothing. Each direction of each target has its own.
type limiter struct{ *rate.Limiter }

func newLimiter(bytesPerSecond int64) *limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	// A fifth of a second at once keeps the line even, and does not look like silence.
	burst := min(max(bytesPerSecond/5, 1), 1<<20)
	return &limiter{rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))}
}

// piece returns how many of n bytes may be taken at once.
func (l *limiter) piece(n int) int {
	if l == nil {
		return n
	}
	return min(n, l.Burst())
}

// reader limits what is read from r.
func (l *limiter) reader(ctx context.Context, r io.ReadCloser) io.ReadCloser {
	if l == nil {
		return r
	}
	return &limitedReader{r, l, ctx}
}

type limitedReader struct {
	io.ReadCloser
	l   *limiter
	ctx context.Context
}

func (r *limitedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p[:r.l.piece(len(p))])
	if werr := r.l.wait(r.ctx, n); werr != nil {
		return 0, werr
	}
	return n, err
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
