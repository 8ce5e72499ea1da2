package transport_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
	"zodbrepl/transport"
	"zodbrepl/transport/targettest"
)

func TestDirectoryTarget(t *testing.T) {
	targettest.Contract(t, func(t *testing.T) targettest.Place {
		dir := t.TempDir()
		target, err := transport.OpenTarget(t.Context(), dir, transport.TargetOptions{})
		require.NoError(t, err)
		return targettest.Place{Target: target, Dir: dir}
	})
}

// trusted starts a server and makes this process's home that of somebody who knows it and is let in.
func trusted(t *testing.T, o sshtest.Options) *sshtest.Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s := sshtest.Start(t, o)
	h := sshtest.NewHome(t)
	h.Trust(s)
	h.AddKey("id_ed25519", s.Key)
	return s
}

// place opens the directory of a server.
func place(t *testing.T, s *sshtest.Server) targettest.Place {
	t.Helper()
	path := s.Dir
	if s.Chroot {
		path = "/"
	}
	target, err := transport.OpenTarget(t.Context(), s.URL(path), transport.TargetOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { target.Close() })
	return targettest.Place{Target: target, Dir: s.Dir}
}

func TestSFTPTarget(t *testing.T) {
	const fsync, rename, statvfs = "fsync@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com"
	for _, c := range []struct {
		name string
		o    sshtest.Options
	}{
		{"as OpenSSH has it", sshtest.Options{}},
		{"in a chroot, without any extension, doing writes in another order",
			sshtest.Options{Chroot: true, Without: []string{fsync, rename, statvfs}, Rule: sshtest.Reordered(7)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			targettest.Contract(t, func(t *testing.T) targettest.Place { return place(t, trusted(t, c.o)) })
		})
	}
}

func TestAnSFTPTargetThatIsReadOnly(t *testing.T) {
	s := trusted(t, sshtest.Options{ReadOnly: true})
	targettest.Seed(t, s.Dir)
	targettest.ReadOnly(t, place(t, s))
}

func TestAnSFTPTargetThatIsFull(t *testing.T) {
	s := trusted(t, sshtest.Options{Rule: sshtest.Full(2_000_000)})
	targettest.Full(t, place(t, s), 3_000_000, func() { s.SetRule(nil) })
}
