package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"zodbrepl/internal/sshtest"
)

// terminal returns one, and what is read from it when it is closed.
func terminal(t *testing.T) (tty *os.File, shown func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 200}))
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	var b bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = b.ReadFrom(master) // ends with EIO when the other end is closed
	}()
	return tty, func() string {
		tty.Close()
		<-done
		master.Close()
		return b.String()
	}
}

func TestShipShowsABarForEachTargetAtATerminal(t *testing.T) {
	p := newPair(t, sshtest.Options{})
	require.NoError(t, grow("Data.fs", false, 40, 20_000, p.clock.Add(time.Minute).Format(time.RFC3339), false))
	p.backup()
	there := filepath.Join(t.TempDir(), "directory")
	require.NoError(t, os.Mkdir(there, 0o755))
	tty, shown := terminal(t)
	// Slow enough for a bar to be drawn.
	code := run([]string{"zodbrepl", "ship", "-r", "repo", "--to", p.url(), "--to", there, "--limit-rate", "2M", "-v"}, &bytes.Buffer{}, tty)
	text := shown()
	require.Zero(t, code, text)
	for _, target := range []string{p.url(), there} {
		require.Regexp(t, regexp.QuoteMeta(target)+` +2024-\S+ [0-9.]+ \S+ of [0-9.]+ \S+, files left: \d .*%.* left`, text)
		require.Contains(t, text, "msg=shipped target="+target, "log lines stand above the bars")
	}
}

func TestShipShowsNoBarsElsewhere(t *testing.T) {
	p := newPair(t, sshtest.Options{})
	_, stderr := p.run(0, "ship", "-r", "repo", "--to", p.url())
	require.Empty(t, stderr)
	_, stderr = p.run(0, "ship", "-v", "-r", "repo", "--to", p.url())
	require.NotContains(t, stderr, "\x1b")
}
