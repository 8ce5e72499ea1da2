package main

import (
	"io"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"zodbrepl/incremental"
)

// bars are the progress bars at a terminal, one below the other.
type bars struct{ *mpb.Progress }

// newBars returns nil when nobody looks on; then no bar is shown.
func newBars(c *cli.Context) *bars {
	if !isTerminal(c.App.ErrWriter) || c.Bool("json") {
		return nil
	}
	return &bars{mpb.New(mpb.WithOutput(c.App.ErrWriter), mpb.WithRefreshRate(barTick))}
}

// logWriter is where log lines go while bars are shown: above them.
func (b *bars) logWriter(c *cli.Context) io.Writer {
	if b == nil {
		return c.App.ErrWriter
	}
	return b.Progress
}

const barTick = 200 * time.Millisecond

// bar shows how far something has come, with its rate and the time that is left.
type bar struct {
	b      *mpb.Bar
	before atomic.Value // text before the bar, and behind it
	behind atomic.Value
	rate   rate
}

func (b *bars) add(name string) *bar {
	r := &bar{}
	r.before.Store("")
	r.behind.Store("")
	text := func(v *atomic.Value) decor.Decorator {
		return decor.Any(func(decor.Statistics) string { return v.Load().(string) }, decor.WCSyncSpaceR)
	}
	r.b = b.AddBar(0, mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), text(&r.before)),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace), text(&r.behind)))
	return r
}

// set is called from one goroutine at a time, and may be called as often as one likes.
func (r *bar) set(done, total int64, before func() string) {
	now := time.Now()
	if now.Sub(r.rate.last()) < barTick && done < total {
		return
	}
	if before != nil {
		r.before.Store(before())
	}
	r.behind.Store(r.rate.add(now, done, total))
	r.b.SetTotal(total, false)
	r.b.SetCurrent(done)
}

// end takes the bars away.
func (b *bars) end(all ...*bar) {
	for _, r := range all {
		r.b.Abort(true)
	}
	b.Wait()
}

// rate is how fast something came on in the last seconds.
type rate struct{ marks []mark }

type mark struct {
	at   time.Time
	done int64
}

const rateMarks = 25 // with a mark at every barTick: five seconds

func (r *rate) last() time.Time {
	if len(r.marks) == 0 {
		return time.Time{}
	}
	return r.marks[len(r.marks)-1].at
}

// add notes how far it has come, and returns rate and time left as a text, "" before they are known. What was there
// when it began counts for nothing.
func (r *rate) add(now time.Time, done, total int64) string {
	if r.marks = append(r.marks, mark{now, done}); len(r.marks) > rateMarks {
		r.marks = r.marks[1:]
	}
	first := r.marks[0]
	moved, took := float64(done-first.done), now.Sub(first.at).Seconds()
	if moved <= 0 || took <= 0 {
		return ""
	}
	left := time.Duration(float64(total-done) / (moved / took) * float64(time.Second))
	return " " + bytesText(int64(moved/took)) + "/s, " + left.Round(time.Second).String() + " left"
}

// progress shows a bar for long work at a terminal, and nothing elsewhere. Call done at the end.
func progress(c *cli.Context, what string) (tell incremental.Progress, done func()) {
	b := newBars(c)
	if b == nil {
		return nil, func() {}
	}
	r := b.add(what)
	return func(n, total int64) { r.set(n, total, nil) }, func() { b.end(r) }
}
