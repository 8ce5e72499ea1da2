//go:build interop

package sftp

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"zodbrepl/internal/sshtest"
)

// published lets the account read what the master's backups wrote.
func (s *sshd) published(m *master) string {
	m.t.Helper()
	m.repo = filepath.Join(s.Dir, "zodb")
	require.NoError(m.t, os.Mkdir(m.repo, 0o755))
	return s.URL("zodb")
}

// standing is what status --json tells.
type standing struct {
	Role      string `json:"role"`
	Position  int64  `json:"position"`
	Condition struct {
		Name string `json:"name"`
	} `json:"condition"`
}

func statusOf(t *testing.T, h *sshtest.Home, data string) (s standing) {
	t.Helper()
	if r := try(t, h, "status", "--json", "--data", data); r.stdout != "" {
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &s), r.stdout)
	}
	return s
}

// A standby pulls from the master's repository with an account that may only read, over a line that is cut, and a server
// that is killed and comes back. It becomes what the master is, and is promoted.
func TestAStandbyPullsWithAReadOnlyAccount(t *testing.T) {
	t.Parallel()
	s := startSSHD(t, sshdOptions{chroot: true, internal: "-R"})
	p := sshtest.NewProxy(t, s.Addr)
	h := s.home(p.Addr)
	m := newMaster(t, h)
	s.published(m)
	from := s.URLAt(p.Addr, "zodb")
	m.backup(16, 250_000)
	before := files(t, m.repo)
	data := filepath.Join(t.TempDir(), "Data.fs")
	p.Rate(8 << 20)
	p.Delay(5 * time.Millisecond)
	watch := start(t, command(h, "watch", "--from", from, "--data", data, "--interval", "100ms"))
	until(t, "the full is under way", func() bool { return p.Down() > 4<<20 })
	p.Cut()
	until(t, "it is gone on with", func() bool { return p.Tries() > 1 && p.Down() > 6<<20 })
	s.Kill()
	p.Rate(0)
	s.Start()
	until(t, "the standby is what the master is", func() bool { return sameFile(m.data, data) })
	require.Less(t, p.Down(), int64(3)*m.stored(), "what was read is not read again and again")

	for range 3 {
		m.backup(2, 2000)
		until(t, "the standby is what the master is", func() bool { return sameFile(m.data, data) })
	}
	p.Refuse(true)
	p.Cut()
	m.backup(2, 2000)
	until(t, "it is known that the master cannot be reached", func() bool {
		return statusOf(t, h, data).Condition.Name == "source-unreadable"
	})
	p.Refuse(false)
	until(t, "the standby is what the master is", func() bool { return sameFile(m.data, data) })
	until(t, "it is current", func() bool { return statusOf(t, h, data).Condition.Name == "current" })

	m.backup(2, 2000)
	promoted := try(t, h, "promote", "--data", data, "--from", from)
	require.Zero(t, promoted.code, promoted.stderr)
	require.Equal(t, 3, watch.wait().code, "watch ends when its node is promoted")
	require.True(t, sameFile(m.data, data), "what had arrived was applied")
	for name, content := range before {
		if filepath.Ext(name) == ".dat" {
			continue // the backups have added to it
		}
		require.True(t, files(t, m.repo)[name] == content, "%s was changed by somebody who may only read", name)
	}
	left, err := filepath.Glob(filepath.Join(m.repo, "*.standby*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// Push: the answer of the standby comes back through the target; a promoted one closes the repository.
func TestShipLearnsHowTheStandbyStands(t *testing.T) {
	t.Parallel()
	s := startSSHD(t, sshdOptions{chroot: true})
	h := s.home()
	m := newMaster(t, h)
	m.backup(3, 2000)
	ship := []string{"ship", "-r", m.repo, "--to", s.URL(), "--json"}
	good(t, h, ship...)
	// The standby reads the directory that the master writes to; the two accounts share a group at best.
	data := filepath.Join(t.TempDir(), "Data.fs")
	good(t, h, "watch", "--once", "--from", s.URL(), "--data", data)
	require.True(t, sameFile(m.data, data))
	type told struct {
		Standbys []struct {
			Role      string `json:"role"`
			Epoch     int    `json:"epoch"`
			Condition string `json:"condition"`
			LastTID   string `json:"last_tid"`
		} `json:"standbys"`
	}
	var all []told
	require.NoError(t, json.Unmarshal([]byte(good(t, h, ship...)), &all))
	require.Len(t, all[0].Standbys, 1)
	require.Equal(t, "standby", all[0].Standbys[0].Role)
	require.Equal(t, "current", all[0].Standbys[0].Condition)
	require.Equal(t, 1, all[0].Standbys[0].Epoch)

	require.Zero(t, try(t, h, "promote", "--data", data, "--from", s.URL()).code)
	m.backup(1, 500)
	before := files(t, s.Dir)
	r := try(t, h, ship...)
	require.Equal(t, 3, r.code, r.stderr)
	require.Contains(t, r.stderr, "promoted")
	require.Equal(t, before, files(t, s.Dir), "nothing was sent")
	require.Equal(t, 3, try(t, h, "backup", "-f", m.data, "-r", m.repo).code, "the repository has learnt it")
}

// What is on another host is read without a copy here.
func TestARepositoryOnAnotherHostIsRead(t *testing.T) {
	t.Parallel()
	s := startSSHD(t, sshdOptions{chroot: true, internal: "-R"})
	h := s.home()
	m := newMaster(t, h)
	where := s.published(m)
	m.backup(6, 250_000)
	m.backup(2, 2000)
	m.backup(2, 2000)
	before := files(t, m.repo)

	local, remote := good(t, h, "list", "-r", m.repo), good(t, h, "list", "-r", where)
	require.Equal(t, strings.ReplaceAll(local, m.repo, "X"), strings.ReplaceAll(remote, where, "X"))
	good(t, h, "verify", "-r", where)
	good(t, h, "verify", "--quick", "-r", where)
	out := filepath.Join(t.TempDir(), "Recovered.fs")
	good(t, h, "recover", "-r", where, "-o", out)
	require.True(t, sameFile(m.data, out))
	good(t, h, "recover", "-r", where, "-o", out+".2", "--ssh-command",
		"ssh -F none -oUserKnownHostsFile="+h.Path("known_hosts")+" -i "+h.Path("id_ed25519"))
	require.True(t, sameFile(m.data, out+".2"))

	found, err := filepath.Glob(filepath.Join(m.repo, "*.deltafs"))
	require.NoError(t, err)
	require.NotEmpty(t, found)
	b, err := os.ReadFile(found[0])
	require.NoError(t, err)
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(found[0], b, 0o644))
	r := try(t, h, "verify", "-r", where)
	require.Equal(t, 4, r.code, r.stderr)
	require.Contains(t, r.stdout+r.stderr, filepath.Base(found[0]))
	r = try(t, h, "recover", "-r", where, "-o", out+".3")
	require.Equal(t, 4, r.code, r.stderr)
	require.NoFileExists(t, out+".3")
	b[len(b)/2] ^= 1
	require.NoError(t, os.WriteFile(found[0], b, 0o644))
	require.Equal(t, before, files(t, m.repo))
}

// Of several targets, none holds back another: one is dead, one is full, one is slow, one refuses; the last gets all, and
// what is told names the ones that failed.
func TestSeveralTargets(t *testing.T) {
	t.Parallel()
	fine, full := startSSHD(t, sshdOptions{chroot: true}), startSSHD(t, sshdOptions{small: "256k"})
	readOnly, slow := startSSHD(t, sshdOptions{internal: "-R"}), startSSHD(t, sshdOptions{chroot: true})
	p := sshtest.NewProxy(t, slow.Addr)
	p.Rate(1 << 20)
	h := fine.home()
	all := []*sshd{full, readOnly, slow}
	for _, s := range all {
		s.trust(h, p.Addr)
		s.write("authorized_keys", fine.Key.Public())
	}
	m := newMaster(t, h)
	m.backup(6, 250_000)
	dead := freeAddr(t)
	to := []string{full.URL(), readOnly.URL(), slow.URLAt(p.Addr), fine.URLAt(dead), fine.URL()}
	args := []string{"ship", "-r", m.repo, "--json"}
	for _, where := range to {
		args = append(args, "--to", where)
	}
	ship := start(t, command(h, args...))
	until(t, "the good one has all", func() bool {
		found, _ := filepath.Glob(filepath.Join(fine.Dir, "*.manifest"))
		return len(found) == 1
	})
	found, err := filepath.Glob(filepath.Join(slow.Dir, "*.manifest"))
	require.NoError(t, err)
	require.Empty(t, found, "the slow one was not waited for")
	p.Rate(0)
	r := ship.wait()
	require.Equal(t, 1, r.code, r.stderr)
	results := readShipped(t, r.stdout)
	require.Len(t, results, 5)
	for i, says := range []string{"is full", "cannot be written", "", "cannot be reached", ""} {
		require.Equal(t, to[i], results[i].Target)
		if says == "" {
			require.Empty(t, results[i].Error)
			require.Len(t, results[i].Increments, 1)
			continue
		}
		require.Contains(t, results[i].Error, says)
		require.Contains(t, r.stderr, to[i])
		require.Contains(t, r.stderr, says)
	}
	m.same(fine.Dir)
	m.same(slow.Dir)
}

// The peer is stopped, with its connections open, and never goes on: an error within a minute, with the usual time-outs.
func TestAHostThatHangsEndsInAnErrorWithinAMinute(t *testing.T) {
	t.Parallel()
	s := startSSHD(t, sshdOptions{chroot: true})
	p := sshtest.NewProxy(t, s.Addr)
	h := s.home(p.Addr)
	m := newMaster(t, h)
	m.backup(16, 250_000)
	p.Rate(8 << 20)
	ship := start(t, command(h, "ship", "-r", m.repo, "--to", s.URLAt(p.Addr)))
	underWay(t, s.Dir, "*.fs.tmp", 2<<20)
	s.Freeze()
	begun := time.Now()
	r := ship.wait()
	took := time.Since(begun)
	t.Logf("after %s: %s", took.Round(time.Second), r.stderr)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "cannot be reached")
	require.Less(t, took, 75*time.Second, "a minute, and what a busy machine takes")
	s.Thaw()
	good(t, h, "ship", "-r", m.repo, "--to", s.URL())
	m.same(s.Dir)
}

// Certificates instead of keys, on both sides: nobody is in authorized_keys or known_hosts.
func TestCertificatesOnBothSides(t *testing.T) {
	t.Parallel()
	userCA, hostCA := sshtest.NewKey(t, "ed25519"), sshtest.NewKey(t, "ecdsa")
	s := startSSHD(t, sshdOptions{chroot: true, userCA: userCA, hostCA: hostCA})
	h := sshtest.MakeHome(t)
	h.Write("known_hosts", "@cert-authority * "+hostCA.Public())
	mine := sshtest.NewKey(t, "rsa")
	h.AddKey("id_rsa", mine)
	m := newMaster(t, h)
	m.backup(2, 500)
	ship := []string{"ship", "-r", m.repo, "--to", s.URL()}
	r := try(t, h, ship...)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "no usable key")
	h.AddCert("id_rsa", userCA.Sign(t, ssh.UserCert, mine, nil, sshdUser))
	good(t, h, ship...)
	m.same(s.Dir)
	h.Write("known_hosts", "@cert-authority bms9 "+hostCA.Public())
	r = try(t, h, ship...)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "not known")
}

// Bad input names the remedy and leaves nothing behind.
func TestWhatIsWrongWithATargetIsSaid(t *testing.T) {
	t.Parallel()
	s := startSSHD(t, sshdOptions{hostKeys: []string{"ed25519", "ecdsa"}})
	h := s.home()
	m := newMaster(t, h)
	m.backup(2, 500)
	other := newMaster(t, h)
	other.backup(2, 500)
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "file"), nil, 0o644))
	for _, dir := range []string{"other", "closed", "mine"} {
		require.NoError(t, os.Mkdir(filepath.Join(s.Dir, dir), 0o755))
	}
	s.give(s.Dir)
	good(t, h, "ship", "-r", other.repo, "--to", s.URL("other"))
	run(t, "chown", "root", filepath.Join(s.Dir, "closed"))
	require.NoError(t, os.Chmod(filepath.Join(s.Dir, "closed"), 0o700))
	stranger := sshtest.MakeHome(t)
	s.trust(stranger)
	unknown := sshtest.MakeHome(t)
	unknown.AddKey("id_ed25519", s.Key)
	changed := sshtest.MakeHome(t)
	changed.AddKey("id_ed25519", s.Key)
	wrong := sshtest.NewKey(t, "ed25519")
	changed.Write("known_hosts", sshtest.KnownLine(s.Addr, wrong.Signer.PublicKey()))
	_, port, _ := strings.Cut(s.Addr, ":")
	for _, c := range []struct {
		name string
		h    *sshtest.Home
		to   string
		code int
		says []string
	}{
		{"an unknown host name", h, "sftp://host.invalid/srv", 1, []string{"host.invalid", "HostName"}},
		{"nobody listens", h, "sftp://nobody@" + freeAddr(t) + "/srv", 1, []string{"cannot be reached", "refused"}},
		{"a host key that is not known", unknown, s.URL("mine"), 1, []string{"not known", "--accept-new", "ssh-keygen -lf"}},
		{"a changed host key", changed, s.URL("mine"), 1, []string{"HAS CHANGED", wrong.Fingerprint(), s.keys[0].Fingerprint(), "ssh-keygen -R"}},
		{"no usable key", stranger, s.URL("mine"), 1, []string{"no usable key", "authorized_keys"}},
		{"a missing path", h, s.URL("missing"), 1, []string{"does not exist", "mkdir -p"}},
		{"a file", h, s.URL("file"), 1, []string{"not a directory"}},
		{"no permission", h, s.URL("closed"), 1, []string{"cannot be read", "right"}},
		{"another lineage", h, s.URL("other"), 5, []string{"lineage", "directory of its own"}},
		{"a URL with a password", h, "sftp://nobody:secret@127.0.0.1:" + port + s.Path, 2, []string{"password", "ssh-keygen"}},
		{"an unknown scheme", h, "ftp://127.0.0.1" + s.Path, 2, []string{"unknown scheme", "sftp://"}},
		{"rsync's form", h, "nobody@127.0.0.1:" + s.Path, 2, []string{"sftp://nobody@127.0.0.1" + s.Path}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := files(t, filepath.Join(s.Dir, "other"))
			known, _ := os.ReadFile(c.h.Path("known_hosts"))
			r := try(t, c.h, "ship", "-r", m.repo, "--to", c.to)
			require.Equal(t, c.code, r.code, r.stderr)
			for _, text := range append(c.says, "next: ") {
				require.Contains(t, r.stderr, text)
			}
			require.NotContains(t, r.stdout+r.stderr, "secret")
			require.Equal(t, before, files(t, filepath.Join(s.Dir, "other")))
			require.Empty(t, files(t, filepath.Join(s.Dir, "mine")))
			after, _ := os.ReadFile(c.h.Path("known_hosts"))
			require.Equal(t, string(known), string(after))
		})
	}
	r := try(t, unknown, "ship", "-r", m.repo, "--to", s.URL("mine"), "--accept-new")
	require.Zero(t, r.code, r.stderr)
	m.same(filepath.Join(s.Dir, "mine"))
	good(t, unknown, "ship", "-r", m.repo, "--to", s.URL("mine"))
}
