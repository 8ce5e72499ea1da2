//go:build interop

package sftp

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
)

// running is a zodbrepl that was started.
type running struct {
	*exec.Cmd
	out, errs bytes.Buffer
}

func start(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{Cmd: cmd}
	cmd.Stdout, cmd.Stderr = &r.out, &r.errs
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill() })
	return r
}

func (r *running) wait() result {
	r.Wait()
	return result{r.ProcessState.ExitCode(), r.out.String(), r.errs.String()}
}

// underWay waits until a file on the other host has begun, and holds more than n bytes.
func underWay(t *testing.T, dir, pattern string, n int64) {
	t.Helper()
	until(t, pattern+" is under way", func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, f := range found {
			if fi, err := os.Stat(f); err == nil && fi.Size() > n {
				return true
			}
		}
		return false
	})
}

// inFlight is how much of a file may be sent and not answered yet, in bytes.
const inFlight = 128 * 32 << 10

// Whatever breaks off a large file in its middle, the same run or the next one gets everything there, and not much more
// is sent twice than was under way. The line carries 8 MiB a second, so that there is a middle.
func TestALargeFileThatIsBrokenOff(t *testing.T) {
	for _, c := range []struct {
		name string
		dies bool // the ship
		what func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running)
	}{
		{"the line is cut", false, func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running) { p.Cut() }},
		{"the line is cut, and stays away for a while", false, func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running) {
			p.Refuse(true)
			p.Cut()
			before := p.Tries()
			until(t, "it is tried again", func() bool { return p.Tries() >= before+3 })
			p.Refuse(false)
		}},
		{"the server is killed and comes back", false, func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running) {
			s.Kill()
			s.Start()
		}},
		{"the ship is killed", true, func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running) { ship.Process.Kill() }},
		{"the ship is interrupted", true, func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running) { ship.Process.Signal(os.Interrupt) }},
		{"the ship and the server are killed", true, func(t *testing.T, s *sshd, p *sshtest.Proxy, ship *running) {
			ship.Process.Kill()
			s.Kill()
			s.Start()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startSSHD(t, sshdOptions{chroot: true})
			p := sshtest.NewProxy(t, s.Addr)
			h := s.home(p.Addr)
			m := newMaster(t, h)
			m.backup(16, 250_000)
			m.backup(1, 500)
			size := m.stored()
			p.Rate(8 << 20)
			to := []string{"ship", "-r", m.repo, "--to", s.URLAt(p.Addr), "--json"}
			ship := start(t, command(h, to...))
			underWay(t, s.Dir, "*.fs.tmp", size/3)
			c.what(t, s, p, ship)
			p.Rate(0)
			first := ship.wait()
			if !c.dies {
				require.Zero(t, first.code, first.stderr)
			} else {
				require.NotZero(t, first.code)
				published, err := filepath.Glob(filepath.Join(s.Dir, "*.manifest"))
				require.NoError(t, err)
				require.Empty(t, published)
				second := readShipped(t, good(t, h, to...))[0]
				t.Logf("the second run sent %d bytes, and found %d", second.Sent, second.Resumed)
				require.Less(t, second.Sent, size-size/3+inFlight)
			}
			twice := p.Up() - size
			t.Logf("%d bytes of increments; %d more went over the line: what was sent twice, small files, and what SSH needs", size, twice)
			require.Less(t, twice, int64(inFlight+size/20))
			m.same(s.Dir)
			again := readShipped(t, good(t, h, to...))[0]
			require.Zero(t, again.Sent)
			require.Empty(t, again.Increments)
		})
	}
}
