package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

var handoverPoints = []string{"backed up", "shipped", "offered", "published", "seen", "cut", "gave up", "fenced"}

func (w *twin) killHandover(point string) {
	child{Do: "handover", Data: w.master.data, Repository: string(w.master.shipped), Source: string(w.standby().shipped), Kill: point, Nth: 1}.killed(w.t)
}

func TestAHandoverThatIsKilledOnTheMasterGoesOn(t *testing.T) {
	for _, point := range handoverPoints {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newTwin(t, t.TempDir())
			w.write(2)
			var run *running
			if point == "seen" || point == "cut" || point == "gave up" || point == "fenced" {
				run = w.accepting()
			}
			w.killHandover(point)
			require.LessOrEqual(t, w.masters(), 1)
			if run == nil {
				run = w.accepting()
			}
			res, err := HandOver(context.Background(), w.options())
			require.NoError(t, err)
			require.Equal(t, "handed-over", res.State)
			require.ErrorIs(t, run.end(t), fault.Refused)
			w.exchanged()
			require.Equal(t, 1, w.masters())
			again := w.options()
			again.Data, again.Repository, again.Place = w.standby().data, w.standby().shipped, w.master.shipped
			res, err = HandOver(context.Background(), again)
			require.NoError(t, err)
			require.True(t, res.Already)
			w.write(1)
			w.sync()
		})
	}
}

func TestAHandoverThatWasKilledOnTheMasterIsTakenBack(t *testing.T) {
	for _, point := range []string{"backed up", "shipped", "offered", "published"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newTwin(t, t.TempDir())
			w.write(2)
			w.killHandover(point)
			offered := point == "offered" || point == "published"
			_, err := w.master.save(w.master.shipped)
			if offered {
				require.ErrorIs(t, err, fault.Refused)
				require.ErrorContains(t, err, "has offered to hand over")
				require.Contains(t, fault.Next(err), "--cancel")
			} else {
				require.NoError(t, err)
			}
			for range 2 {
				res, err := CancelHandover(context.Background(), w.options())
				require.NoError(t, err)
				require.Equal(t, map[bool]string{true: "withdrawn", false: "none"}[offered], res.State)
				offered = false
			}
			require.Equal(t, 1, w.masters())
			w.follow() // takes nothing
			require.Equal(t, Standby, w.standby().state().Role)
			w.write(1)
			w.sync()
			w.exchange() // and it may be offered again
		})
	}
}

func TestAHandoverThatIsKilledOnTheStandbyGoesOn(t *testing.T) {
	for _, c := range []struct{ point, then string }{
		{"taking", "watch"}, {"taken", "watch"}, {"promoted", "watch"},
		{"taking", "promote"}, {"taken", "promote"}, {"promoted", "promote"},
		{"taken", "plain watch"},
	} {
		t.Run(c.point+", then "+c.then, func(t *testing.T) {
			t.Parallel()
			w := newTwin(t, t.TempDir())
			w.write(2)
			w.killHandover("published")
			s := w.standby()
			child{Do: "accept", Data: s.data, Source: string(s.shipped), Kill: c.point, Nth: 1}.killed(t)
			require.LessOrEqual(t, w.masters(), 1)
			done := make(chan error, 1)
			go func() {
				_, err := HandOver(context.Background(), w.options())
				done <- err
			}()
			var err error
			if c.then == "promote" {
				_, err = s.promote(func(o *PromoteOptions) { o.Tell = tellIn(s.shipped) })
			} else {
				_, err = s.watch(func(o *WatchOptions) { o.AcceptHandover = c.then == "watch" })
				if c.point == "promoted" {
					require.ErrorIs(t, err, fault.Refused)
					err = nil
				}
			}
			require.NoError(t, err)
			require.NoError(t, <-done)
			w.exchanged()
			w.write(1)
			w.sync()
		})
	}
}

// cut is a place that is out of reach while it is down. A call may also do what it should and fail to say so.
type cut struct {
	incremental.Dir
	down func(call string) (before, after error)
}

var errLine = errors.New("the line is cut")

func (c *cut) around(call string, do func() error) error {
	before, after := c.down(call)
	if before != nil {
		return before
	}
	if err := do(); err != nil {
		return err
	}
	return after
}

func (c *cut) List(ctx context.Context) (entries []fs.DirEntry, err error) {
	return entries, c.around("list", func() error { entries, err = c.Dir.List(ctx); return err })
}

func (c *cut) Rename(ctx context.Context, from, to string) error {
	return c.around("rename", func() error { return c.Dir.Rename(ctx, from, to) })
}

func (c *cut) WriteFile(ctx context.Context, name string, b []byte) error {
	return c.around("write", func() error { return c.Dir.WriteFile(ctx, name, b) })
}

func TestTheStandbyLosesTheLineWhileItTakesOver(t *testing.T) {
	for _, effect := range []bool{false, true} {
		t.Run(fmt.Sprintf("the rename has happened: %v", effect), func(t *testing.T) {
			w := newTwin(t, t.TempDir())
			w.write(1)
			w.killHandover("published")
			s := w.standby()
			place := &cut{Dir: s.shipped, down: func(call string) (error, error) {
				if call != "rename" {
					return nil, nil
				}
				if effect {
					return nil, errLine
				}
				return errLine, nil
			}}
			_, err := s.watch(func(o *WatchOptions) { o.AcceptHandover, o.Source = true, place })
			require.ErrorIs(t, err, errLine)
			require.Equal(t, "source-unreadable", s.state().Condition.Name)
			require.Equal(t, Standby, s.state().Role)

			if !effect {
				// Then the master may still take it back.
				res, err := CancelHandover(context.Background(), w.options())
				require.NoError(t, err)
				require.Equal(t, "withdrawn", res.State)
				w.follow()
				require.Equal(t, Standby, s.state().Role)
				return
			}
			_, err = CancelHandover(context.Background(), w.options())
			require.ErrorIs(t, err, fault.Refused)
			require.ErrorContains(t, err, "has taken over already")
			require.Zero(t, w.masters(), "in between there is none")
			_, err = HandOver(context.Background(), func() HandoverOptions { o := w.options(); o.Wait = time.Second; return o }())
			require.NoError(t, err)
			w.follow()
			w.exchanged()
		})
	}
}
