//go:build interop

package sftp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
	"zodbrepl/internal/sshtest"
	"zodbrepl/transport"
	"zodbrepl/transport/targettest"
)

// places makes empty targets, each a new directory of one server.
func (s *sshd) places(t *testing.T) func(t *testing.T) targettest.Place {
	h := sshtest.NewHome(t)
	s.trust(h)
	h.AddKey("id_ed25519", s.Key)
	return func(t *testing.T) targettest.Place {
		t.Helper()
		dir, err := os.MkdirTemp(s.Dir, "target")
		require.NoError(t, err)
		require.NoError(t, os.Chmod(dir, 0o755))
		s.give(dir)
		return s.place(t, filepath.Base(dir))
	}
}

// place opens a directory below the server's.
func (s *sshd) place(t *testing.T, name string) targettest.Place {
	t.Helper()
	target, err := transport.OpenTarget(t.Context(), s.URL(name), transport.TargetOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { target.Close() })
	return targettest.Place{Target: target, Dir: filepath.Join(s.Dir, name)}
}

func TestContractWithTheRealSSHD(t *testing.T) {
	for _, c := range []struct {
		name string
		o    sshdOptions
	}{
		{"with a chroot", sshdOptions{chroot: true}},
		{"without extensions", sshdOptions{internal: "-P fsync,posix-rename,statvfs,fstatvfs,hardlink,limits"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			targettest.Contract(t, startSSHD(t, c.o).places(t))
		})
	}
}

// The system's own ssh carries SFTP instead of ours.
func TestContractThroughTheSSHCommand(t *testing.T) {
	s := startSSHD(t, sshdOptions{})
	fresh := s.places(t)
	h := s.home()
	command := "ssh -F none -oUserKnownHostsFile=" + h.Path("known_hosts") + " -i " + h.Path("id_ed25519")
	targettest.Contract(t, func(t *testing.T) targettest.Place {
		p := fresh(t)
		target, err := transport.OpenTarget(t.Context(), s.URL(filepath.Base(p.Dir)), transport.TargetOptions{SSHCommand: command})
		require.NoError(t, err)
		p.Target = target
		return p
	})
}

// A server that may only be read from refuses as such: by its own option, by the rights of the account, by the mount.
func TestAReadOnlyServer(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     sshdOptions
		close func(t *testing.T, dir string)
	}{
		{"internal-sftp -R", sshdOptions{internal: "-R"}, func(t *testing.T, dir string) {}},
		{"internal-sftp -R in a chroot", sshdOptions{internal: "-R", chroot: true}, func(t *testing.T, dir string) {}},
		{"a directory of another user", sshdOptions{}, func(t *testing.T, dir string) { run(t, "chown", "-R", "root", dir) }},
		{"a mount that is read-only", sshdOptions{}, func(t *testing.T, dir string) {
			run(t, "mount", "--bind", dir, dir)
			t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
			run(t, "mount", "-o", "remount,bind,ro", dir)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := startSSHD(t, c.o)
			p := s.places(t)(t)
			targettest.Seed(t, p.Dir)
			s.give(p.Dir)
			c.close(t, p.Dir)
			targettest.ReadOnly(t, p)
		})
	}
}

func TestAServerWhoseDiskIsFull(t *testing.T) {
	s := startSSHD(t, sshdOptions{small: "4m"})
	targettest.Full(t, s.places(t)(t), 6<<20, func() { run(t, "mount", "-o", "remount,size=16m", s.Dir) })
}

func TestAServerWhoseDiskIsFullAndThatCannotSaySo(t *testing.T) {
	s := startSSHD(t, sshdOptions{small: "4m", internal: "-P statvfs,fstatvfs"})
	p := s.places(t)(t)
	_, err := p.Put(t.Context(), "file", bytes.NewReader(make([]byte, 6<<20)), 6<<20, nil)
	require.ErrorContains(t, err, s.Addr)
	require.Contains(t, fault.Next(err), "full", "the server says Failure: all that can be done is to name what it may be")
	require.NoFileExists(t, filepath.Join(p.Dir, "file"))
}

// A shared mount is a target as well.
func TestADirectoryWhoseDiskIsFull(t *testing.T) {
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "-o", "size=4m", "interop", dir)
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	target, err := transport.OpenTarget(t.Context(), dir, transport.TargetOptions{})
	require.NoError(t, err)
	p := targettest.Place{Target: target, Dir: dir}
	targettest.Full(t, p, 6<<20, func() { run(t, "mount", "-o", "remount,size=16m", dir) })
	run(t, "rm", "-r", filepath.Join(dir, "published"))
}

func TestAReadOnlyDirectory(t *testing.T) {
	dir := t.TempDir()
	targettest.Seed(t, dir)
	run(t, "mount", "--bind", dir, dir)
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	run(t, "mount", "-o", "remount,bind,ro", dir)
	target, err := transport.OpenTarget(t.Context(), dir, transport.TargetOptions{})
	require.NoError(t, err)
	targettest.ReadOnly(t, targettest.Place{Target: target, Dir: dir})
}
