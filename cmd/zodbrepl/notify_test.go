package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
	"zodbrepl/restore"
)

// manager is the socket that systemd gives to a service, with what came there.
type manager struct {
	path string
	mu   sync.Mutex
	said []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // a socket's path must be short
	require.NoError(t, err)
	m := &manager{path: filepath.Join(dir, "s")}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close(); os.RemoveAll(dir) })
	go func() {
		for buf := make([]byte, 64<<10); ; {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.said = append(m.said, string(buf[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

// count returns how many messages have the part, and the first of them.
func (m *manager) count(part string) (n int, first string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.said {
		if strings.Contains(s, part) {
			if n++; n == 1 {
				first = s
			}
		}
	}
	return n, first
}

func (m *manager) heard(part string) bool {
	n, _ := m.count(part)
	return n > 0
}

// start is a service of Type=notify.
func (m *manager) start(t *testing.T, args ...string) *process {
	t.Helper()
	return startWith(t, append(os.Environ(), "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=200000"), args...)
}

func TestSystemdHearsHowAWatchStands(t *testing.T) {
	dir := t.TempDir()
	master, standby, repo := filepath.Join(dir, "master.fs"), filepath.Join(dir, "standby.fs"), filepath.Join(dir, "repo")
	require.NoError(t, os.Mkdir(repo, 0o755))
	require.NoError(t, grow(master, true, 5, 300, "", false))
	zodbrepl(t, "backup", "-f", master, "-r", repo)

	m := newManager(t)
	p := m.start(t, "watch", "--from", repo, "--data", standby, "--interval", "1h")
	until(t, "ready", func() bool { return m.heard("READY=1") })
	require.FileExists(t, standby+".lock", "the guard has let it follow")
	until(t, "current", func() bool { return m.heard("STATUS=ok: current") })
	until(t, "signs of life while it rests", func() bool { n, _ := m.count("WATCHDOG=1"); return n > 3 })
	require.False(t, m.heard("STOPPING=1"))
	code, _ := p.stop(t, syscall.SIGTERM)
	require.Zero(t, code, p.stderr.String())
	until(t, "the end", func() bool { return m.heard("STOPPING=1\nSTATUS=ended") })
	n, _ := m.count("READY=1")
	require.Equal(t, 1, n)

	// One that is refused is never ready: starting the service fails.
	zodbrepl(t, "promote", "--data", standby)
	m = newManager(t)
	p = m.start(t, "watch", "--from", repo, "--data", standby)
	<-p.ended
	require.Equal(t, 3, p.ProcessState.ExitCode(), p.stderr.String())
	until(t, "why", func() bool { return m.heard("was promoted (epoch 2") })
	require.False(t, m.heard("READY=1"))
}

func TestAServiceIsToldOfASocketThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	p := startWith(t, append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "none")), "watch", "--once", "-v", "--from", dir, "--data", filepath.Join(dir, "Data.fs"))
	<-p.ended
	require.Equal(t, 6, p.ProcessState.ExitCode())
	require.Contains(t, p.stderr.String(), "systemd cannot be notified")
}

// held is a source whose listing waits.
type held struct {
	incremental.Source
	reached, goOn chan struct{}
}

func (h held) List(ctx context.Context) ([]fs.DirEntry, error) {
	h.reached <- struct{}{}
	select {
	case <-h.goOn:
		return h.Source.List(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestTheWatchdogHearsNothingOfAWatchThatHangs(t *testing.T) {
	dir := t.TempDir()
	master, repo := filepath.Join(dir, "master.fs"), filepath.Join(dir, "repo")
	require.NoError(t, os.Mkdir(repo, 0o755))
	require.NoError(t, grow(master, true, 5, 300, "", false))
	zodbrepl(t, "backup", "-f", master, "-r", repo)

	h := &restore.Health{}
	n := &notifier{health: h}
	src := held{incremental.Dir(repo), make(chan struct{}), make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := restore.Watch(ctx, restore.WatchOptions{Source: src, Data: filepath.Join(dir, "standby.fs"), Health: h})
		done <- err
	}()
	<-src.reached
	require.True(t, n.alive(), "it got so far")
	for range 3 {
		require.False(t, n.alive(), "it hangs in the listing")
	}
	close(src.goOn)
	go func() {
		for range src.reached {
		}
	}()
	until(t, "it goes on", n.alive)
	until(t, "it rests", func() bool { _, resting := h.Progress(); return resting })
	for range 3 {
		require.True(t, n.alive(), "it rests")
	}
	cancel()
	require.NoError(t, <-done)
}

func TestTheEndIsToldOnOneLine(t *testing.T) {
	var said []string
	n := &notifier{send: func(s string) { said = append(said, s) }}
	n.end(errors.Join(fault.New(fault.Gap, "one"), errors.New("two")))
	require.Equal(t, []string{"STOPPING=1\nSTATUS=one; two"}, said)
}
