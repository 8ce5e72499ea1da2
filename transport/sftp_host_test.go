package transport

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/incremental"
	"zodbrepl/internal/sshtest"
)

// otherHost is an SSH server, and this process's home directory that of somebody who knows it and is let in.
type otherHost struct {
	*sshtest.Server
	home *sshtest.Home
}

func newOtherHost(t *testing.T, o sshtest.Options) *otherHost {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	h := &otherHost{sshtest.Start(t, o), sshtest.NewHome(t)}
	h.home.Trust(h.Server)
	h.home.AddKey("id_ed25519", h.Key)
	return h
}

// hurried waits for nothing longer than a test should, and long enough for a busy machine.
var hurried = timing{dial: 20 * time.Second, handshake: 20 * time.Second, stall: 20 * time.Second, flush: 20 * time.Second,
	alive: 20 * time.Second, grace: time.Second, pause: time.Millisecond, maxPause: 5 * time.Millisecond}

// impatient is a process that is killed when the line is cut: nothing is tried again.
const impatient = time.Nanosecond

// shipTo ships once to the other host. patience 0 is the usual one.
func (m *master) shipTo(h *otherHost, patience time.Duration) (TargetResult, error) {
	return m.shipVia(h, h.Addr, patience)
}

// shipVia is shipTo through another address, a proxy's.
func (m *master) shipVia(h *otherHost, addr string, patience time.Duration) (TargetResult, error) {
	m.t.Helper()
	where := "sftp://" + sshtest.User + "@" + addr + h.Dir
	res, err := Ship(m.t.Context(), ShipOptions{Repository: m.repo, Targets: []string{where},
		Options: TargetOptions{timing: &hurried, Patience: patience}})
	if len(res) == 0 {
		return TargetResult{}, err
	}
	return res[0], err
}

// mustShipTo ships, and requires that everything is there then and nothing is sent by a further run.
func (m *master) mustShipTo(h *otherHost) TargetResult {
	m.t.Helper()
	res, err := m.shipTo(h, 0)
	require.NoError(m.t, err)
	m.arrived(h)
	return res
}

// arrived requires that the other host has what the repository has, without a duplicate or a left-over, and that a
// further run sends nothing.
func (m *master) arrived(h *otherHost) {
	m.t.Helper()
	m.same(h.Dir)
	written := h.Written()
	again, err := m.shipTo(h, 0)
	require.NoError(m.t, err)
	require.Empty(m.t, again.Increments)
	require.Zero(m.t, again.Sent)
	require.Equal(m.t, written, h.Written(), "a run with nothing new writes nothing")
}

// backupMuch commits transactions that fill an increment of about so many bytes, and backs them up.
func (m *master) backupMuch(bytes int) *incremental.Manifest {
	m.t.Helper()
	for range bytes / 250_000 {
		m.now = m.now.Add(time.Minute)
		_, err := m.g.CommitRandom(m.rng, 1, 250_000)
		require.NoError(m.t, err)
	}
	m.backup(func(o *incremental.BackupOptions) { o.Codec = "none" })
	ms := m.manifests()
	return ms[len(ms)-1]
}

func TestThatAServerCannotMakeFilesDurableIsSaidOnce(t *testing.T) {
	m := newMaster(t)
	h := newOtherHost(t, sshtest.Options{Without: []string{"fsync@openssh.com"}})
	for run := range 3 {
		m.backup()
		log, said := logged()
		_, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{h.URL(h.Dir)}, Log: log})
		require.NoError(t, err)
		require.Contains(t, said.String(), "no fsync@openssh.com")
		require.Equal(t, run == 0, strings.Contains(said.String(), "level=WARN"), "%s", said)
	}
}
