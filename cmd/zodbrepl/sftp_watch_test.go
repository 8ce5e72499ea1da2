package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
	"zodbrepl/restore"
	"zodbrepl/transport"
)

// A watch that pulls says that it cannot read while the line is down, goes on when it is up, and needs no more than one
// connection as long as it is.
func TestAWatchThatPullsSurvivesTheLine(t *testing.T) {
	served := t.TempDir()
	p := newPair(t, sshtest.Options{Dir: served, ReadOnly: true})
	publish := func() { require.NoError(t, os.CopyFS(served, newer{os.DirFS("repo"), served})) }
	publish()
	source := newLazySource(p.url(), transport.TargetOptions{Patience: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := restore.Watch(ctx, restore.WatchOptions{Source: source, Data: "standby.fs", Interval: 20 * time.Millisecond,
			Tell: source.tell, Log: slog.New(slog.DiscardHandler)})
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoError(t, source.Close())
	})
	condition := func(name string, position int64) {
		t.Helper()
		require.Eventually(t, func() bool {
			st, ok, err := restore.ReadState("standby.fs")
			return err == nil && ok && st.Condition.Name == name && st.Applied.Position == position
		}, time.Minute, 5*time.Millisecond, "%s at %d", name, position)
	}
	size := func() int64 {
		fi, err := os.Stat("Data.fs")
		require.NoError(t, err)
		return fi.Size()
	}
	first := size()
	condition("current", first)
	for range 3 { // several looks
		n := len(p.server.Requests())
		require.Eventually(t, func() bool { return len(p.server.Requests()) > n }, time.Minute, time.Millisecond)
	}
	require.Len(t, p.server.Users(), 1, "one connection serves all looks")

	p.server.Stop()
	condition("source-unreadable", first)
	p.server.Restart(t)
	condition("current", first)

	// The line breaks whenever an increment is read.
	p.server.SetRule(func(r sshtest.Request) sshtest.Verdict {
		if r.Op == "read" && strings.Contains(r.Path, ".deltafs") {
			return sshtest.CutBefore
		}
		return sshtest.Pass
	})
	p.backup()
	publish()
	condition("source-unreadable", first)
	p.server.SetRule(nil)
	condition("current", size())
	p.same("standby.fs")
}
