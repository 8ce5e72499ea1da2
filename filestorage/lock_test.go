//go:build unix

package filestorage

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"zodbrepl/internal/fault"
)

const lockHolderEnv = "FILESTORAGE_TEST_HOLD_LOCK"

// TestMain lets the test binary be the second process that holds a lock.
func TestMain(m *testing.M) {
	if path := os.Getenv(lockHolderEnv); path != "" {
		if _, err := AcquireLock(path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		io.Copy(io.Discard, os.Stdin) // until the parent closes it, or kills us
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// holder starts a process that holds the lock of path, and returns when it does.
func holder(t *testing.T, path string) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), lockHolderEnv+"="+path)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "locked\n", line)
	return cmd, in
}

func dataPath(t *testing.T) string { return filepath.Join(t.TempDir(), "Data.fs") }

func TestALockIsAsZCLockfileMakesIt(t *testing.T) {
	path := dataPath(t)
	content := fmt.Sprintf(" %d\n", os.Getpid())
	for _, before := range []string{"", " 99999999999\n", " 1\n", "a longer text of somebody else\nand more\n"} {
		if before != "" {
			require.NoError(t, os.WriteFile(path+".lock", []byte(before), 0o600))
		}
		l, err := AcquireLock(path)
		require.NoError(t, err, "what a process left that is gone is no lock")
		b, err := os.ReadFile(path + ".lock")
		require.NoError(t, err)
		require.Equal(t, content, string(b))
		require.NoError(t, l.Release())
		require.NoError(t, l.Release(), "twice does nothing")
		b, err = os.ReadFile(path + ".lock")
		require.NoError(t, err, "the file stays")
		require.Equal(t, content, string(b))
	}
	_, err := AcquireLock(filepath.Join(t.TempDir(), "no", "Data.fs"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestALockIsHeldOnce(t *testing.T) {
	path := dataPath(t)
	l, err := AcquireLock(path)
	require.NoError(t, err)
	_, err = AcquireLock(path)
	var locked *LockedError
	require.ErrorAs(t, err, &locked, "not even by the same process")
	require.Equal(t, os.Getpid(), locked.PID)
	require.NoError(t, l.Release())
	l, err = AcquireLock(path)
	require.NoError(t, err)
	require.NoError(t, l.Release())
}

func TestAnotherProcessHoldsTheLockUntilItIsKilled(t *testing.T) {
	path := dataPath(t)
	cmd, _ := holder(t, path)
	_, err := AcquireLock(path)
	var locked *LockedError
	require.ErrorAs(t, err, &locked)
	require.Equal(t, cmd.Process.Pid, locked.PID)
	require.Equal(t, path+".lock", locked.Path)
	require.ErrorContains(t, err, path+".lock")
	require.ErrorContains(t, err, strconv.Itoa(cmd.Process.Pid))
	require.ErrorIs(t, err, fault.Busy)
	require.Equal(t, 75, fault.ExitCode(err))
	require.NotEmpty(t, fault.Next(err))
	b, err := os.ReadFile(path + ".lock")
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf(" %d\n", cmd.Process.Pid), string(b), "who fails leaves the content alone")

	pid, held, err := LockHolder(path)
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, cmd.Process.Pid, pid)

	require.NoError(t, cmd.Process.Signal(unix.SIGKILL))
	require.Error(t, cmd.Wait())
	_, held, err = LockHolder(path)
	require.NoError(t, err)
	require.False(t, held)
	l, err := AcquireLock(path)
	require.NoError(t, err)
	require.NoError(t, l.Release())
}

func TestALockEndsWithItsProcess(t *testing.T) {
	path := dataPath(t)
	cmd, in := holder(t, path)
	require.NoError(t, in.Close())
	require.NoError(t, cmd.Wait())
	l, err := AcquireLock(path)
	require.NoError(t, err)
	require.NoError(t, l.Release())
}

func TestChildrenDoNotInheritALock(t *testing.T) {
	path := dataPath(t)
	l, err := AcquireLock(path)
	require.NoError(t, err)
	child := exec.Command("sleep", "60")
	require.NoError(t, child.Start())
	defer func() { child.Process.Kill(); child.Wait() }()
	flags, err := unix.FcntlInt(l.f.Fd(), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NotZero(t, flags&unix.FD_CLOEXEC)
	require.NoError(t, l.f.Close()) // as when this process dies: no unlocking
	require.Eventually(t, func() bool {
		_, held, err := LockHolder(path)
		return err == nil && !held
	}, 10*time.Second, 10*time.Millisecond)
}

func TestLockHolderChangesNothing(t *testing.T) {
	path := dataPath(t)
	_, held, err := LockHolder(path)
	require.NoError(t, err)
	require.False(t, held)
	_, err = os.Stat(path + ".lock")
	require.ErrorIs(t, err, os.ErrNotExist)

	require.NoError(t, os.WriteFile(path+".lock", []byte(" 42\n"), 0o400))
	pid, held, err := LockHolder(path)
	require.NoError(t, err)
	require.False(t, held)
	require.Zero(t, pid, "who is gone holds nothing")
	b, err := os.ReadFile(path + ".lock")
	require.NoError(t, err)
	require.Equal(t, " 42\n", string(b))
	require.NoError(t, os.Chmod(path+".lock", 0o600))
	l, err := AcquireLock(path)
	require.NoError(t, err, "the probe left nothing taken")
	pid, held, err = LockHolder(path)
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, os.Getpid(), pid)
	require.NoError(t, l.Release())
}

func TestThePIDOfALockIsReadWithCare(t *testing.T) {
	for content, want := range map[string]int{" 17\n": 17, "17": 17, "": 0, "\n": 0, " 17;host\n": 17, "nobody": 0,
		" 99999999999999999999999\n": 0, strings.Repeat(" ", 100) + "5": 0} {
		path := dataPath(t)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		f, err := os.Open(path)
		require.NoError(t, err)
		require.Equal(t, want, readPID(f), "%q", content)
		f.Close()
	}
	require.Equal(t, "Data.fs.lock is locked by another process", (&LockedError{Path: "Data.fs.lock"}).Error())
}
