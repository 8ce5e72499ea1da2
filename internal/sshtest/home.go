package sshtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// Home is a home directory with a .ssh in it.
type Home struct {
	t   testing.TB
	Dir string
}

// NewHome makes an empty one and lets $HOME lead there until the test ends; there is no agent. A test that calls it
// cannot run in parallel.
func NewHome(t *testing.T) *Home {
	t.Helper()
	h := MakeHome(t)
	t.Setenv("HOME", h.Dir)
	t.Setenv("SSH_AUTH_SOCK", "")
	return h
}

// MakeHome makes one for a command that is started with its Env.
func MakeHome(t testing.TB) *Home {
	t.Helper()
	h := &Home{t: t, Dir: t.TempDir()}
	h.check(os.Mkdir(filepath.Join(h.Dir, ".ssh"), 0o700))
	return h
}

// Env is the environment in which a command finds this home.
func (h *Home) Env() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "HOME=") && !strings.HasPrefix(e, "SSH_AUTH_SOCK=") {
			env = append(env, e)
		}
	}
	return append(env, "HOME="+h.Dir)
}

func (h *Home) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// Path returns the path of a file in .ssh.
func (h *Home) Path(name string) string { return filepath.Join(h.Dir, ".ssh", name) }

// Write writes a file in .ssh that only its owner may read.
func (h *Home) Write(name, content string) string {
	h.t.Helper()
	h.check(os.WriteFile(h.Path(name), []byte(content), 0o600))
	return h.Path(name)
}

// Append adds lines to a file in .ssh.
func (h *Home) Append(name, lines string) {
	h.t.Helper()
	old, _ := os.ReadFile(h.Path(name))
	h.Write(name, string(old)+lines)
}

// Trust adds the host keys of servers to known_hosts.
func (h *Home) Trust(servers ...*Server) {
	h.t.Helper()
	for _, s := range servers {
		for _, k := range s.HostKeys {
			h.Append("known_hosts", KnownLine(s.Addr, k.PublicKey()))
		}
	}
}

// TrustAt adds the host keys of a server to known_hosts for another address, such as a Proxy's.
func (h *Home) TrustAt(addr string, s *Server) {
	h.t.Helper()
	for _, k := range s.HostKeys {
		h.Append("known_hosts", KnownLine(addr, k.PublicKey()))
	}
}

// AddKey writes a private key and its .pub, as ssh-keygen does, and returns the path.
func (h *Home) AddKey(name string, k *Key) string {
	h.t.Helper()
	return h.AddEncryptedKey(name, k, "")
}

// AddEncryptedKey is AddKey with a passphrase.
func (h *Home) AddEncryptedKey(name string, k *Key, passphrase string) string {
	h.t.Helper()
	h.Write(name+".pub", k.Public())
	return h.Write(name, string(k.PEM(h.t, passphrase)))
}

// AddCert writes the certificate of the key of that name.
func (h *Home) AddCert(name string, c *ssh.Certificate) string {
	h.t.Helper()
	return h.Write(name+"-cert.pub", string(ssh.MarshalAuthorizedKey(c)))
}
