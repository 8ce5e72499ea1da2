package transport

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
)

// On a long line a large file goes through several channels, where the server allows it; whichever writes come first,
// and wherever it is cut, what arrives is the file.
func TestALargeFileOnALongLine(t *testing.T) {
	content := make([]byte, 14<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content)
	for _, c := range []struct {
		name  string
		o     sshtest.Options
		limit int64
		cut   bool
		lanes int
	}{
		{"as it is", sshtest.Options{}, 0, false, maxLanes},
		{"with writes in another order", sshtest.Options{Rule: sshtest.Reordered(5)}, 0, false, maxLanes},
		{"cut in the middle", sshtest.Options{}, 0, true, 2 * maxLanes},
		{"to a server that allows one session", sshtest.Options{MaxSessions: 1}, 0, false, 1},
		{"to a server that allows two", sshtest.Options{MaxSessions: 2}, 0, false, 2},
		{"with a limit of its own", sshtest.Options{}, 64 << 20, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newOtherHost(t, c.o)
			p := sshtest.NewProxy(t, h.Addr)
			h.home.TrustAt(p.Addr, h.Server)
			p.Delay(4 * time.Millisecond)
			target, err := OpenTarget(t.Context(), fmt.Sprintf("sftp://%s@%s%s", sshtest.User, p.Addr, h.Dir), TargetOptions{timing: &hurried, LimitRate: c.limit})
			require.NoError(t, err)
			if c.cut {
				p.CutAfter(9 << 20)
			}
			_, err = target.Put(t.Context(), "file", bytes.NewReader(content), int64(len(content)), nil)
			require.NoError(t, err)
			require.NoError(t, target.Publish(t.Context(), "file"))
			got, err := os.ReadFile(filepath.Join(h.Dir, "file"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, got))
			begun := func() int {
				return len(slices.DeleteFunc(h.Requests(), func(r sshtest.Request) bool { return r.Op != "init" }))
			}
			if !c.cut {
				require.Eventually(t, func() bool { return begun() == c.lanes }, 10*time.Second, time.Millisecond)
			}
			require.LessOrEqual(t, begun(), c.lanes)
			require.NoError(t, target.Close())
			require.Eventually(t, func() bool { return h.Connections() == 0 }, 10*time.Second, time.Millisecond)
		})
	}
}
