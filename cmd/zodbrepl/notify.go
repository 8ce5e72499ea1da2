package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"zodbrepl/restore"
)

// notifier tells systemd how a watch stands, as a service of Type=notify does: ready when the guard has let it follow,
// then a status line, then stopping. The watchdog hears of a watch that rests or gets on, and not of one that hangs.
type notifier struct {
	health *restore.Health
	send   func(state string)
	// watchdog is how long systemd waits for a sign of life; 0: it does not.
	watchdog time.Duration
	seen     uint64
}

// notify begins to tell systemd, when it has asked to be notified. Call ended with the error that the watch ended by.
func notify(ctx context.Context, h *restore.Health, log *slog.Logger) (ended func(error)) {
	if ok, err := daemon.SdNotify(false, "STATUS=starting"); !ok {
		if err != nil {
			log.Warn("systemd cannot be notified", "cause", err)
		}
		return func(error) {}
	}
	n := &notifier{health: h, send: func(state string) {
		if _, err := daemon.SdNotify(false, state); err != nil {
			log.Warn("systemd could not be notified", "cause", err)
		}
	}}
	var err error
	if n.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn("no signs of life for systemd's watchdog", "cause", err)
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		n.run(ctx, end)
	}()
	return func(err error) {
		close(end)
		<-done
		n.end(err)
	}
}

// run tells until ended is closed.
func (n *notifier) run(ctx context.Context, ended <-chan struct{}) {
	// A quarter: a watch that gets on is heard of in time also when the machine is busy.
	var tick <-chan time.Time
	if n.watchdog > 0 {
		t := time.NewTicker(n.watchdog / 4)
		defer t.Stop()
		tick = t.C
	}
	begins, stopping := n.health.Following(), ctx.Done()
	for {
		select {
		case <-begins:
			begins = nil
			n.send("READY=1\n" + n.status())
		case <-n.health.Changed():
			n.send(n.status())
		case <-tick:
			switch alive := n.alive(); {
			case alive && begins == nil:
				n.send("WATCHDOG=1")
			case alive: // finishing what a run that died had begun, on a large file perhaps
				n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", n.watchdog.Microseconds()))
			}
		case <-stopping:
			stopping = nil
			n.send("STOPPING=1\nSTATUS=writing the index")
		case <-ended:
			return
		}
	}
}

// alive says whether the watch rests, or got on since the last time that this was asked.
func (n *notifier) alive() bool {
	steps, resting := n.health.Progress()
	moved := steps != n.seen
	n.seen = steps
	return resting || moved
}

func (n *notifier) status() string {
	verdict, _, _ := strings.Cut(n.health.Report().String(), "\n")
	return "STATUS=" + verdict
}

// end tells how the watch ended.
func (n *notifier) end(err error) {
	status := "ended"
	if err != nil {
		status = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	n.send("STOPPING=1\nSTATUS=" + status)
}
