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

func TestSFTPTarget(t *testing.T) {
	for _, c := range []struct {
		name string
		o    sshtest.Options
	}{
		{"a server like OpenSSH's", sshtest.Options{}},
		{"one without any extension", sshtest.Options{Without: []string{"posix-rename@openssh.com", "fsync@openssh.com", "statvfs@openssh.com", "hardlink@openssh.com"}}},
		{"one that carries out writes in another order", sshtest.Options{Rule: sshtest.Reordered(5)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Dir = t.TempDir()
			server, home := sshtest.Start(t, c.o), sshtest.NewHome(t)
			home.Trust(server)
			home.AddKey("id_ed25519", server.Key)
			targettest.Contract(t, func(t *testing.T) targettest.Place {
				dir := t.TempDir()
				target, err := transport.OpenTarget(t.Context(), server.URL(dir), transport.TargetOptions{})
				require.NoError(t, err)
				return targettest.Place{Target: target, Dir: dir}
			})
		})
	}
}
