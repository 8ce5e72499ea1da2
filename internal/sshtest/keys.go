package sshtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// Key is a fresh key.
type Key struct {
	Private crypto.Signer
	Signer  ssh.Signer
}

// NewKey makes a key of a type: ed25519, ecdsa or rsa.
func NewKey(t testing.TB, kind string) *Key {
	t.Helper()
	var k crypto.Signer
	var err error
	switch kind {
	case "ed25519":
		_, k, err = ed25519.GenerateKey(rand.Reader)
	case "ecdsa":
		k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		k, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		err = fmt.Errorf("no key type %q", kind)
	}
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(k)
	if err != nil {
		t.Fatal(err)
	}
	return &Key{k, signer}
}

// Public returns the key as a line of authorized_keys or of a .pub file, with its line feed.
func (k *Key) Public() string { return string(ssh.MarshalAuthorizedKey(k.Signer.PublicKey())) }

// Fingerprint returns it as ssh-keygen -l does: SHA256:...
func (k *Key) Fingerprint() string { return ssh.FingerprintSHA256(k.Signer.PublicKey()) }

// PEM returns the private key as OpenSSH stores it, encrypted when there is a passphrase.
func (k *Key) PEM(t testing.TB, passphrase string) []byte {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(k.Private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(k.Private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// Sign makes a certificate for another key, valid for an hour around now: kind is ssh.HostCert or ssh.UserCert, names
// are hosts or users. change may spoil it before it is signed.
func (k *Key) Sign(t testing.TB, kind uint32, of *Key, change func(*ssh.Certificate), names ...string) *ssh.Certificate {
	t.Helper()
	now := time.Now()
	c := &ssh.Certificate{Key: of.Signer.PublicKey(), CertType: kind, KeyId: "test", ValidPrincipals: names,
		ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix())}
	if change != nil {
		change(c)
	}
	if err := c.SignCert(rand.Reader, k.Signer); err != nil {
		t.Fatal(err)
	}
	return c
}

// Agent serves keys as ssh-agent does and returns the path of its socket, for SSH_AUTH_SOCK.
func Agent(t testing.TB, keys ...agent.AddedKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				agent.ServeAgent(ring, c)
			}()
		}
	}()
	return path
}

// knownName writes an address as known_hosts does.
func knownName(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "22" {
		return strings.Trim(host, "[]")
	}
	return "[" + host + "]:" + port
}

// KnownLine returns a line of known_hosts.
func KnownLine(addr string, key ssh.PublicKey) string {
	return knownName(addr) + " " + string(ssh.MarshalAuthorizedKey(key))
}
