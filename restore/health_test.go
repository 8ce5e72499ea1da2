package restore

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// stopwatch is a clock that a test moves.
type stopwatch struct {
	mu sync.Mutex
	t  time.Time
}

func newStopwatch() *stopwatch { return &stopwatch{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)} }

func (s *stopwatch) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.t
}

func (s *stopwatch) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t = s.t.Add(d)
}

func TestHealthOfAWatch(t *testing.T) {
	const limit = time.Minute
	at := func(s incremental.Stamp) State {
		return State{Role: Standby, Applied: Applied{Stamp: s, Position: 100, LastTID: 7}}
	}
	newest := func(s incremental.Stamp) *incremental.Manifest { return &incremental.Manifest{Stamp: s, LastTID: 9} }
	gap := fault.New(fault.Gap, "a piece is missing").Remedy("ship again")
	const one, two = incremental.Stamp("2026-03-01-11-00-00"), incremental.Stamp("2026-03-01-11-30-00")
	// current is a watch that has everything.
	current := func(h *Health, c *stopwatch) {
		h.begins(at(one))
		h.saw(c.now(), nil)
		h.looked(at(one), nil)
	}
	for _, c := range []struct {
		name    string
		do      func(h *Health, c *stopwatch)
		reason  string
		message string
	}{
		{"the guard has not let it follow", func(*Health, *stopwatch) {}, "starting", "not begun"},
		{"it has not looked yet", func(h *Health, _ *stopwatch) { h.begins(at(one)) }, "behind", "not been read"},
		{"it has everything", current, "current", ""},
		{"it had everything just as long ago as is allowed", func(h *Health, c *stopwatch) {
			current(h, c)
			c.pass(limit)
		}, "current", ""},
		{"the source has not answered for too long", func(h *Health, c *stopwatch) {
			current(h, c)
			c.pass(limit + 1)
		}, "behind", "not been read"},
		{"it has looked again, and there was nothing new", func(h *Health, c *stopwatch) {
			current(h, c)
			c.pass(limit)
			h.saw(c.now(), nil)
			h.looked(at(one), nil)
			c.pass(limit)
		}, "current", ""},
		{"a look took long: it counts from its beginning", func(h *Health, c *stopwatch) {
			current(h, c)
			begun := c.now()
			c.pass(limit + 1)
			h.saw(begun, nil)
			h.looked(at(one), nil)
		}, "behind", ""},
		{"an increment is being applied, not for long", func(h *Health, c *stopwatch) {
			current(h, c)
			c.pass(limit / 2)
			h.saw(c.now(), newest(two))
		}, "current", ""},
		{"an increment is being applied for too long", func(h *Health, c *stopwatch) {
			current(h, c)
			h.saw(c.now(), newest(two))
			c.pass(limit + 1)
		}, "behind", string(two) + " is still to be applied"},
		{"a gap, just seen", func(h *Health, c *stopwatch) {
			current(h, c)
			h.saw(c.now(), newest(two))
			h.looked(at(one), gap)
		}, "current", ""},
		{"a gap that does not go away", func(h *Health, c *stopwatch) {
			current(h, c)
			for range 4 {
				c.pass(limit / 3)
				h.saw(c.now(), newest(two))
				h.looked(at(one), gap)
			}
		}, "gap", "a piece is missing"},
		{"a gap that was there from the beginning", func(h *Health, c *stopwatch) {
			h.begins(at(one))
			h.saw(c.now(), newest(two))
			h.looked(at(one), gap)
		}, "gap", "a piece is missing"},
		{"a gap that is over", func(h *Health, c *stopwatch) {
			current(h, c)
			c.pass(limit + 1)
			h.saw(c.now(), newest(two))
			h.looked(at(one), gap)
			h.saw(c.now(), nil)
			h.looked(at(two), nil)
		}, "current", ""},
		{"a source that cannot be read for too long", func(h *Health, c *stopwatch) {
			current(h, c)
			c.pass(limit + 1)
			h.looked(at(one), unreadable(errors.New("the line is cut")))
		}, "source-unreadable", "the line is cut"},
		{"it is quiet for as long as is allowed", func(h *Health, c *stopwatch) {
			h.MaxAge = time.Hour
			current(h, c)
			h.applied(at(one))
			c.pass(time.Hour)
			h.saw(c.now(), nil)
			h.looked(at(one), nil)
		}, "current", ""},
		{"it is quiet for too long", func(h *Health, c *stopwatch) {
			h.MaxAge = time.Hour
			current(h, c)
			h.applied(at(one))
			c.pass(time.Hour + 1)
			h.saw(c.now(), nil)
			h.looked(at(one), nil)
		}, "quiet", "1h0m0s"},
		{"it ends", func(h *Health, c *stopwatch) {
			current(h, c)
			h.ends()
		}, "stopping", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			clock := newStopwatch()
			h := &Health{MaxLag: limit, clock: clock.now}
			c.do(h, clock)
			r := h.Report()
			require.Equal(t, c.reason, r.Reason, r)
			require.Equal(t, c.reason == "current", r.Healthy)
			require.Contains(t, r.Message, c.message)
			if c.reason == "gap" {
				require.Equal(t, "ship again", r.Next)
			}
		})
	}
}

func get(t *testing.T, h *Health, method, path, accept string) (code int, body string, header http.Header) {
	t.Helper()
	q := httptest.NewRequest(method, path, nil)
	q.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.Handler().ServeHTTP(w, q)
	return w.Code, w.Body.String(), w.Result().Header
}

func TestHealthOverHTTP(t *testing.T) {
	p := following(t)
	clock := newStopwatch()
	h := &Health{clock: clock.now}
	code, body, _ := get(t, h, "GET", "/healthz", "")
	require.Equal(t, 503, code)
	require.Contains(t, body, "not healthy: starting")

	w := p.start(func(o *WatchOptions) { o.Health = h })
	require.Eventually(t, func() bool { c, _, _ := get(t, h, "GET", "/healthz", ""); return c == 200 }, waitLimit, waitTick)
	code, body, header := get(t, h, "GET", "/healthz?format=json", "")
	require.Equal(t, 200, code)
	require.Equal(t, "application/json", header.Get("Content-Type"))
	require.Equal(t, "no-store", header.Get("Cache-Control"))
	var r HealthReport
	require.NoError(t, json.Unmarshal([]byte(body), &r))
	st := p.state()
	require.True(t, r.Healthy)
	require.Equal(t, []any{"current", Standby, st.Lineage, st.Epoch, st.Applied.Stamp, st.Applied.Position, st.Applied.LastTID, st.Applied.Stamp},
		[]any{r.Reason, r.Role, r.Lineage, r.Epoch, r.Stamp, r.Position, r.LastTID, r.Newest})
	require.Equal(t, 300.0, r.MaxLag)
	require.Zero(t, *r.Lag)

	for _, c := range []struct {
		name, method, path, accept string
		code                       int
		says                       string
	}{
		{"health as text", "GET", "/healthz", "*/*", 200, "ok: current, lag 0s (at most 5m0s)"},
		{"health, the head only", "HEAD", "/healthz", "", 200, ""},
		{"health as JSON by its header", "GET", "/healthz", "application/json", 200, `"reason": "current"`},
		{"the role", "GET", "/role", "", 200, "standby\n"},
		{"the role as JSON", "GET", "/role", "application/json", 200, `"role": "standby"`},
		{"it is a standby", "GET", "/role?is=standby", "", 200, "standby\n"},
		{"it is no master", "GET", "/role?is=promoted", "", 503, "standby\n"},
		{"a role that there is not", "GET", "/role?is=primary", "", 400, "unknown role"},
		{"nothing may be sent", "POST", "/healthz", "", 405, ""},
		{"no other path", "GET", "/", "", 404, ""},
		{"nothing below a path", "GET", "/healthz/x", "", 404, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, body, _ := get(t, h, c.method, c.path, c.accept)
			require.Equal(t, c.code, code, body)
			require.Contains(t, body, c.says)
		})
	}

	// An increment that is damaged.
	p.grow(1)
	res := p.backup()
	var good []byte
	change(t, p.repo.Path(res.File), func(b []byte) []byte { good = b; return b[:len(b)-1] })
	p.ship()
	require.Eventually(t, func() bool { return h.Report().Condition.Name == "bad-increment" }, waitLimit, waitTick)
	code, _, _ = get(t, h, "GET", "/healthz", "")
	require.Equal(t, 200, code, "it was current not long ago")
	clock.pass(DefaultMaxLag + time.Second)
	code, body, _ = get(t, h, "GET", "/healthz", "")
	require.Equal(t, 503, code)
	require.Contains(t, body, "not healthy: bad-increment, lag 5m1s (at most 5m0s)")
	require.Contains(t, body, "\nnext: ")
	change(t, p.repo.Path(res.File), func([]byte) []byte { return good })
	p.ship()
	require.Eventually(t, func() bool { return h.Report().Healthy }, waitLimit, waitTick)
	require.Equal(t, stampOfFile(res.File), h.Report().Stamp)
	require.False(t, h.Report().Created.IsZero(), "when the master made it")

	require.NoError(t, w.stop(t))
	code, body, _ = get(t, h, "GET", "/healthz", "")
	require.Equal(t, 503, code)
	require.Contains(t, body, "stopping")
}

// blocking is a source whose reads stop at some point until they are let go on.
type blocking struct {
	incremental.Source
	hold chan struct{}
}

func (b blocking) List(ctx context.Context) ([]fs.DirEntry, error) {
	<-b.hold
	return b.Source.List(ctx)
}

func TestAWatchThatHangsMakesNoProgressAndOneThatRestsSaysSo(t *testing.T) {
	p := following(t)
	h := &Health{}
	hold := make(chan struct{}, 1)
	hold <- struct{}{}
	w := p.start(func(o *WatchOptions) {
		o.Source, o.Health, o.Interval = blocking{p.shipped, hold}, h, time.Hour
		o.Hint = string(p.shipped)
	})
	<-h.Following()
	require.Eventually(t, func() bool { _, resting := h.Progress(); return resting }, waitLimit, waitTick, "between two looks")
	p.step(1) // a hint, and the look that it makes hangs
	require.Eventually(t, func() bool { _, resting := h.Progress(); return !resting }, waitLimit, waitTick)
	var before uint64
	require.Eventually(t, func() bool { // it comes to the listing, and no further
		now, _ := h.Progress()
		same := now == before
		before = now
		return same
	}, waitLimit, 50*time.Millisecond)
	close(hold)
	require.Eventually(t, func() bool { now, resting := h.Progress(); return now > before && resting }, waitLimit, waitTick)
	require.NoError(t, w.stop(t))
}

// Reading Data.fs is progress also when nothing comes from the source: to adopt or to index a large one takes long.
func TestEveryReadIsProgress(t *testing.T) {
	p := newPair(t)
	p.step(3)
	b, err := os.ReadFile(p.g.Path())
	require.NoError(t, err)
	h := &Health{}
	r := h.file(memoryFile(b))
	for i := range 5 {
		before, _ := h.Progress()
		_, err := r.ReadAt(make([]byte, 10), int64(i))
		require.NoError(t, err)
		now, _ := h.Progress()
		require.Greater(t, now, before)
	}
	before, _ := h.Progress()
	src := h.source(p.shipped)
	f, err := src.Open(context.Background(), incremental.ManifestName(p.newest()))
	require.NoError(t, err)
	_, err = f.Read(make([]byte, 10))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	now, _ := h.Progress()
	require.Greater(t, now, before+1)
	require.Equal(t, p.shipped.String(), src.String())
}

type memoryFile []byte

func (m memoryFile) ReadAt(b []byte, off int64) (int, error) {
	return strings.NewReader(string(m)).ReadAt(b, off)
}
func (m memoryFile) Size() (int64, error) { return int64(len(m)), nil }
