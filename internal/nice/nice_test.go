package nice

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const childVar = "ZODBREPL_TEST_NICE"

// TestMain is the child, too: a priority that was lowered cannot be raised again.
func TestMain(m *testing.M) {
	if l := os.Getenv(childVar); l != "" {
		child(Level(l))
		return
	}
	os.Exit(m.Run())
}

// child applies the level and prints the nice value and I/O priority of every thread, also of some that are made later.
func child(l Level) {
	if err := Apply(l); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	begin := make(chan struct{})
	for range 8 {
		go func() { // threads that are blocked in a system call make others
			var fds [2]int
			_ = unix.Pipe(fds[:])
			_, _ = unix.Read(fds[0], make([]byte, 1))
		}()
	}
	go close(begin)
	<-begin
	threads, _ := os.ReadDir("/proc/self/task")
	for _, t := range threads {
		id, _ := strconv.Atoi(t.Name())
		n, _ := unix.Getpriority(unix.PRIO_PROCESS, id)
		io, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(id), 0)
		fmt.Println(20-n, io>>classShift, io&7)
	}
}

func threadsOf(t *testing.T, l Level, with ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(append(with, exe)[0], append(with, exe)[1:]...)
	cmd.Env = append(os.Environ(), childVar+"="+string(l))
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Greater(t, len(lines), 2)
	return lines
}

func TestEveryThreadStandsBack(t *testing.T) {
	for l, want := range map[Level]string{Low: "10 2 7", Idle: "19 3 0"} {
		for _, line := range threadsOf(t, l) {
			require.Equal(t, want, line, string(l))
		}
	}
	was, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	require.NoError(t, err)
	for _, line := range threadsOf(t, None) {
		require.Regexp(t, fmt.Sprintf(`^%d `, 20-was), line)
	}
}

func TestWhoStandsBackAlreadyGoesNotForward(t *testing.T) {
	for _, line := range threadsOf(t, Low, "nice", "-n", "15") {
		require.Equal(t, "15 2 7", line)
	}
}

func TestLevelsHaveNames(t *testing.T) {
	for _, l := range []Level{None, Low, Idle} {
		got, err := Parse(string(l))
		require.NoError(t, err)
		require.Equal(t, l, got)
	}
	_, err := Parse("high")
	require.ErrorContains(t, err, "want none, low or idle")
}
