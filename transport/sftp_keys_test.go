package transport

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"zodbrepl/internal/fault"
	"zodbrepl/internal/sshtest"
)

// reach opens the directory of a server, and closes it again.
func reach(t *testing.T, s *sshtest.Server, o TargetOptions) error {
	t.Helper()
	o.timing = &hurried
	target, err := OpenTarget(t.Context(), s.URL(s.Dir), o)
	if err != nil {
		return err
	}
	_, err = target.List(t.Context())
	require.NoError(t, err)
	return target.Close()
}

// refused requires an error that an operator can do something with, and that nothing was asked of the server.
func refused(t *testing.T, s *sshtest.Server, err error, says ...string) {
	t.Helper()
	require.Error(t, err)
	for _, text := range says {
		require.Contains(t, fault.Explain(err), text)
	}
	require.NotEmpty(t, fault.Next(err))
	require.NotEmpty(t, fault.Kept(err))
	require.Empty(t, s.Requests())
}

func TestHostKeys(t *testing.T) {
	key := func(kind string) *sshtest.Key { return sshtest.NewKey(t, kind) }
	ed, ec, rsa, other, ca, ecCA := key("ed25519"), key("ecdsa"), key("rsa"), key("ed25519"), key("ed25519"), key("ecdsa")
	line := func(s *sshtest.Server, k *sshtest.Key) string { return sshtest.KnownLine(s.Addr, k.Signer.PublicKey()) }
	hashed := func(s *sshtest.Server, k *sshtest.Key) string {
		return knownhosts.HashHostname(knownhosts.Normalize(s.Addr)) + " " + k.Public()
	}
	marked := func(mark string, s *sshtest.Server, k *sshtest.Key) string { return mark + " " + line(s, k) }
	cert := func(change func(*ssh.Certificate), names ...string) *ssh.Certificate {
		return ca.Sign(t, ssh.HostCert, ed, change, names...)
	}
	for _, c := range []struct {
		name  string
		keys  []*sshtest.Key   // of the host
		cert  *ssh.Certificate // of its first key
		known func(s *sshtest.Server) string
		says  []string // of the refusal; nil: it is reached
	}{
		{"the key is known", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return line(s, ed) }, nil},
		{"its line is hashed", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return hashed(s, ed) }, nil},
		{"the host has several, and the last kind is known", []*sshtest.Key{ed, ec, rsa}, nil, func(s *sshtest.Server) string { return line(s, rsa) }, nil},
		{"the host has several, and an old key of another kind is in the file too", []*sshtest.Key{ed, rsa}, nil,
			func(s *sshtest.Server) string { return line(s, ec) + line(s, rsa) }, nil},
		{"several lines for one kind", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return line(s, other) + line(s, ed) }, nil},
		{"a line for several names, with a pattern", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string {
			return "bms1,[127.0.0.*]:" + s.Port() + " " + ed.Public()
		}, nil},
		{"bad lines elsewhere in the file", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string {
			return "bms1 ssh-ed25519 AAAAnonsense\n\n# a comment\nonly-a-name\n|1|bad|bad ssh-rsa x\n@unknown-marker bms2 ssh-rsa AAAA\n" +
				"bms3 ssh-dss AAAAB3NzaC1kc3MAAAABAA==\n" + line(s, ed) + "bms4 ssh-ed25519"
		}, nil},
		{"no line feed at the end", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return strings.TrimSuffix(line(s, ed), "\n") }, nil},
		{"carriage returns", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return strings.ReplaceAll(line(s, ed), "\n", "\r\n") }, nil},
		{"a certificate of a known authority", []*sshtest.Key{ed}, cert(nil, "127.0.0.1"),
			func(s *sshtest.Server) string { return "@cert-authority * " + ca.Public() }, nil},
		{"a certificate of a known authority with another kind of key", []*sshtest.Key{ed}, ecCA.Sign(t, ssh.HostCert, ed, nil, "127.0.0.1"),
			func(s *sshtest.Server) string { return "@cert-authority * " + ecCA.Public() }, nil},

		{"the host is unknown", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return "bms1 " + ed.Public() },
			[]string{"not known", ed.Fingerprint(), "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub", "--accept-new"}},
		{"the host is known at another port", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return "127.0.0.1 " + ed.Public() },
			[]string{"not known", ed.Fingerprint()}},
		{"the file holds nothing but a bad line", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return "bms1 ssh-ed25519 AAAAnonsense" },
			[]string{"cannot be read", "known_hosts", "line 1", "repair"}},
		{"the file is empty", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return "" }, []string{"not known"}},
		{"the key is another one", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return line(s, other) },
			[]string{"HAS CHANGED", ed.Fingerprint(), other.Fingerprint(), "ssh-keygen -R", "known_hosts"}},
		{"the key is another one, and the line is hashed", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return hashed(s, other) },
			[]string{"HAS CHANGED", ed.Fingerprint(), other.Fingerprint()}},
		{"the key is of another kind than the known one", []*sshtest.Key{ec}, nil, func(s *sshtest.Server) string { return line(s, ed) },
			[]string{"HAS CHANGED", ec.Fingerprint(), ed.Fingerprint()}},
		{"the key is revoked", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return marked("@revoked", s, ed) + line(s, ed) },
			[]string{"revoked", ed.Fingerprint()}},
		{"the key is revoked everywhere", []*sshtest.Key{ed}, nil, func(s *sshtest.Server) string { return line(s, ed) + "@revoked * " + ed.Public() },
			[]string{"revoked", ed.Fingerprint()}},
		{"a certificate of an unknown authority", []*sshtest.Key{ed}, cert(nil, "127.0.0.1"),
			func(s *sshtest.Server) string { return "@cert-authority * " + other.Public() }, []string{ed.Fingerprint()}},
		{"a certificate for another host", []*sshtest.Key{ed}, cert(nil, "bms9"),
			func(s *sshtest.Server) string { return "@cert-authority * " + ca.Public() }, []string{"certificate", "ssh-keygen -Lf"}},
		{"a certificate that is over", []*sshtest.Key{ed}, cert(func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter + 60 }, "127.0.0.1"),
			func(s *sshtest.Server) string { return "@cert-authority * " + ca.Public() }, []string{"certificate", "expired"}},
		{"a certificate of an authority that is revoked", []*sshtest.Key{ed}, cert(nil, "127.0.0.1"),
			func(s *sshtest.Server) string {
				return "@cert-authority * " + ca.Public() + "@revoked * " + ca.Public()
			}, []string{"revoked"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := sshtest.Options{HostCert: c.cert}
			for _, k := range c.keys {
				o.HostKeys = append(o.HostKeys, k.Signer)
			}
			h := newOtherHost(t, o)
			known := c.known(h.Server)
			h.home.Write("known_hosts", known)
			err := reach(t, h.Server, TargetOptions{})
			if c.says == nil {
				require.NoError(t, err)
				return
			}
			refused(t, h.Server, err, c.says...)
			require.Empty(t, h.Users(), "no key of ours is shown to a host that is not known")
			after, err := os.ReadFile(h.home.Path("known_hosts"))
			require.NoError(t, err)
			require.Equal(t, known, string(after))
		})
	}
}

func TestAcceptNewTakesAnUnknownKeyOnceAndNoOther(t *testing.T) {
	for _, before := range []string{"", "bms1 " + sshtest.NewKey(t, "rsa").Public() + "bms2 ssh-ed25519 AAAAnonsense", "# a comment\n"} {
		h := newOtherHost(t, sshtest.Options{})
		h.home.Write("known_hosts", before)
		accept := TargetOptions{AcceptNew: true}
		require.NoError(t, reach(t, h.Server, accept))
		lines, err := os.ReadFile(h.home.Path("known_hosts"))
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(string(lines), before))
		require.Contains(t, string(lines), string(ssh.MarshalAuthorizedKey(h.HostKeys[0].PublicKey()))) // the system's configuration may want it hashed
		require.NoError(t, reach(t, h.Server, TargetOptions{}), "it is known from now on")
		require.NoError(t, reach(t, h.Server, accept))
		again, err := os.ReadFile(h.home.Path("known_hosts"))
		require.NoError(t, err)
		require.Equal(t, string(lines), string(again), "it is written once")

		other := newOtherHost(t, sshtest.Options{})
		other.home.Write("known_hosts", sshtest.KnownLine(other.Addr, h.HostKeys[0].PublicKey()))
		refused(t, other.Server, reach(t, other.Server, accept), "HAS CHANGED")
	}
	// Without a .ssh.
	h := newOtherHost(t, sshtest.Options{})
	h.home.Write("config", "IdentityFile "+h.home.Path("id_ed25519")+"\nUserKnownHostsFile ~/new/known\n")
	require.NoError(t, reach(t, h.Server, TargetOptions{AcceptNew: true}))
	require.FileExists(t, h.home.Dir+"/new/known")
}

func TestWhoWeAreTakenFor(t *testing.T) {
	good, other, ca := sshtest.NewKey(t, "ed25519"), sshtest.NewKey(t, "rsa"), sshtest.NewKey(t, "ed25519")
	inAgent := func(keys ...*sshtest.Key) (added []agent.AddedKey) {
		for _, k := range keys {
			added = append(added, agent.AddedKey{PrivateKey: k.Private})
		}
		return added
	}
	many := func(n int) (keys []*sshtest.Key) {
		for range n {
			keys = append(keys, sshtest.NewKey(t, "ed25519"))
		}
		return keys
	}
	expired := func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter + 60 }
	for _, c := range []struct {
		name  string
		files func(h *sshtest.Home)
		agent []agent.AddedKey
		says  []string // nil: we are let in
	}{
		{"a key in the usual file", func(h *sshtest.Home) { h.AddKey("id_ed25519", good) }, nil, nil},
		{"a key in the agent", func(h *sshtest.Home) {}, inAgent(good), nil},
		{"the agent has another key, a file the right one", func(h *sshtest.Home) { h.AddKey("id_ed25519", good) }, inAgent(other), nil},
		{"a file has another key, the agent the right one", func(h *sshtest.Home) { h.AddKey("id_rsa", other) }, inAgent(good), nil},
		{"an encrypted key that the agent has", func(h *sshtest.Home) { h.AddEncryptedKey("id_ed25519", good, "secret") }, inAgent(other, good), nil},
		{"an encrypted key beside the right one", func(h *sshtest.Home) {
			h.AddEncryptedKey("id_rsa", other, "secret")
			h.AddKey("id_ed25519", good)
		}, nil, nil},
		{"a key under a name of its own", func(h *sshtest.Home) {
			h.AddKey("backup", good)
			h.Write("config", "Host 127.0.0.1\n  IdentityFile ~/.ssh/backup\n")
		}, nil, nil},
		{"the agent has more keys than the server looks at, the configuration names the right one", func(h *sshtest.Home) {
			h.Write("backup.pub", good.Public())
			h.Write("config", "Host 127.0.0.1\n  IdentityFile ~/.ssh/backup\n  IdentitiesOnly yes\n")
		}, inAgent(append(many(8), good)...), nil},
		{"the agent has more keys than the server looks at, the usual file the right one", func(h *sshtest.Home) { h.AddKey("id_ed25519", good) },
			inAgent(many(8)...), nil},
		{"another key with a certificate", func(h *sshtest.Home) {
			h.AddKey("id_rsa", other)
			h.AddCert("id_rsa", ca.Sign(t, ssh.UserCert, other, nil, sshtest.User))
		}, nil, nil},
		{"a certificate under a name of its own", func(h *sshtest.Home) {
			h.AddKey("id_rsa", other)
			h.AddCert("granted", ca.Sign(t, ssh.UserCert, other, nil, sshtest.User))
			h.Write("config", "CertificateFile ~/.ssh/granted-cert.pub\n")
		}, nil, nil},
		{"a certificate in the agent", func(h *sshtest.Home) {},
			[]agent.AddedKey{{PrivateKey: other.Private, Certificate: ca.Sign(t, ssh.UserCert, other, nil, sshtest.User)}}, nil},
		{"a certificate for an encrypted key that the agent has", func(h *sshtest.Home) {
			h.AddEncryptedKey("id_rsa", other, "secret")
			h.AddCert("id_rsa", ca.Sign(t, ssh.UserCert, other, nil, sshtest.User))
		}, inAgent(other), nil},

		{"nothing at all", func(h *sshtest.Home) {}, nil, []string{"no usable key", "no key was found", "no agent", "authorized_keys"}},
		{"another key", func(h *sshtest.Home) { h.AddKey("id_rsa", other) }, nil, []string{"no usable key", other.Fingerprint(), "authorized_keys"}},
		{"an empty agent", func(h *sshtest.Home) {}, []agent.AddedKey{}, []string{"no usable key", "the agent has no key"}},
		{"an encrypted key without an agent", func(h *sshtest.Home) { h.AddEncryptedKey("id_ed25519", good, "secret") }, nil,
			[]string{"no usable key", "id_ed25519 is encrypted and not in the agent", "ssh-add"}},
		{"a file that holds no key", func(h *sshtest.Home) { h.Write("id_ed25519", "nonsense") }, nil, []string{"id_ed25519 holds no usable key"}},
		{"a public key that the agent does not have", func(h *sshtest.Home) {
			h.Write("id_ed25519.pub", good.Public())
			h.Write("config", "IdentityFile ~/.ssh/id_ed25519.pub\n")
		}, inAgent(other), []string{"no usable key", "the agent does not have"}},
		{"a certificate that is over", func(h *sshtest.Home) {
			h.AddKey("id_rsa", other)
			h.AddCert("id_rsa", ca.Sign(t, ssh.UserCert, other, expired, sshtest.User))
		}, nil, []string{"no usable key", "id_rsa-cert.pub ended at"}},
		{"a certificate for another user", func(h *sshtest.Home) {
			h.AddKey("id_rsa", other)
			h.AddCert("id_rsa", ca.Sign(t, ssh.UserCert, other, nil, "root"))
		}, nil, []string{"no usable key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			home := sshtest.NewHome(t)
			s := sshtest.Start(t, sshtest.Options{Dir: t.TempDir(), Authorized: []ssh.PublicKey{good.Signer.PublicKey()}, UserCA: ca.Signer.PublicKey()})
			home.Trust(s)
			c.files(home)
			if c.agent != nil {
				t.Setenv("SSH_AUTH_SOCK", sshtest.Agent(t, c.agent...))
			}
			err := reach(t, s, TargetOptions{})
			if c.says == nil {
				require.NoError(t, err)
				return
			}
			refused(t, s, err, c.says...)
			require.NotContains(t, fault.Explain(err), "secret")
		})
	}
}

func TestAnAgentThatIsGoneIsNoHindrance(t *testing.T) {
	h := newOtherHost(t, sshtest.Options{})
	t.Setenv("SSH_AUTH_SOCK", h.Dir+"/nothing")
	require.NoError(t, reach(t, h.Server, TargetOptions{}))
	require.NoError(t, os.Remove(h.home.Path("id_ed25519")))
	require.NoError(t, os.Remove(h.home.Path("id_ed25519.pub")))
	h.Reset()
	refused(t, h.Server, reach(t, h.Server, TargetOptions{}), "the agent does not answer")
}

func TestJumpHosts(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(h *otherHost, jump *sshtest.Server) string // what known_hosts lacks is left out by says
		says []string
	}{
		{"one jump", func(h *otherHost, jump *sshtest.Server) string { return "ProxyJump " + sshtest.User + "@" + jump.Addr }, nil},
		{"the jump host under an alias", func(h *otherHost, jump *sshtest.Server) string {
			host, port, _ := net.SplitHostPort(jump.Addr)
			return fmt.Sprintf("ProxyJump gate\nHost gate\n  HostName %s\n  Port %s\n  User %s\n", host, port, sshtest.User)
		}, nil},
		{"the same host twice", func(h *otherHost, jump *sshtest.Server) string {
			return "ProxyJump " + sshtest.User + "@" + jump.Addr + "," + sshtest.User + "@" + jump.Addr
		}, nil},
		{"a jump host that does not forward", func(h *otherHost, jump *sshtest.Server) string {
			return "ProxyJump " + sshtest.User + "@" + h.Addr
		}, []string{"jump host does not let us through", "AllowTcpForwarding"}},
		{"a jump host that is not known", func(h *otherHost, jump *sshtest.Server) string {
			h.home.Write("known_hosts", sshtest.KnownLine(h.Addr, h.HostKeys[0].PublicKey()))
			return "ProxyJump " + sshtest.User + "@" + jump.Addr
		}, []string{"jump host", "not known"}},
		{"a host behind it that is not known", func(h *otherHost, jump *sshtest.Server) string {
			h.home.Write("known_hosts", sshtest.KnownLine(jump.Addr, jump.HostKeys[0].PublicKey()))
			return "ProxyJump " + sshtest.User + "@" + jump.Addr
		}, []string{"host key of 127.0.0.1", "not known"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newOtherHost(t, sshtest.Options{})
			jump := sshtest.Start(t, sshtest.Options{Dir: t.TempDir(), Forward: true, Authorized: []ssh.PublicKey{h.Key.Signer.PublicKey()}})
			h.home.Trust(jump)
			host, port, err := net.SplitHostPort(h.Addr)
			require.NoError(t, err)
			jumps := c.set(h, jump)
			h.home.Write("config", fmt.Sprintf("Host bms2\n  HostName %s\n  Port %s\n  User %s\n  %s\n", host, port, sshtest.User, jumps))
			target, err := OpenTarget(t.Context(), "sftp://bms2"+h.Dir, TargetOptions{timing: &hurried, Patience: 5 * time.Second})
			if c.says != nil {
				refused(t, h.Server, err, c.says...)
				return
			}
			require.NoError(t, err)
			require.NotEmpty(t, jump.Users())
			require.NoError(t, target.Close())
			require.Eventually(t, func() bool { return h.Connections()+jump.Connections() == 0 }, 10*time.Second, time.Millisecond, "nothing stays open")
		})
	}
}
