package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// identity joins the keys of the agent and of files for one host.
type identity struct {
	host  *hostConfig
	log   *slog.Logger
	conn  net.Conn // to the agent; nil for none
	notes []string // why keys could not be used; told when nothing else helps
	tried []string
}

func (id *identity) note(format string, args ...any) {
	id.notes = append(id.notes, fmt.Sprintf(format, args...))
}

func (id *identity) close() {
	if id.conn != nil {
		id.conn.Close()
	}
}

// signers returns all keys in the order in which they are shown: those of the files that are named, from the agent
// where it has them, each after its certificate; then what else the agent has. All stand in one list because the
// ssh package asks only the first method of a kind. Servers count every key that is shown, often up to six.
func (id *identity) signers() ([]ssh.Signer, error) {
	inAgent := id.fromAgent()
	certs := id.certificates(id.host.certificates)
	var out []ssh.Signer
	add := func(s ssh.Signer) {
		if !slices.ContainsFunc(out, func(o ssh.Signer) bool { return sameKey(o.PublicKey(), s.PublicKey()) }) {
			out = append(out, s)
			id.tried = append(id.tried, fingerprint(s.PublicKey()))
		}
	}
	for _, file := range id.host.identities {
		s := id.fromFile(file, inAgent)
		if s == nil {
			continue
		}
		for _, cert := range append(id.certificates([]string{file + "-cert.pub"}), certs...) {
			if cs, err := ssh.NewCertSigner(cert, s); err == nil { // else it is another key's
				add(cs)
			}
		}
		add(s)
	}
	for _, s := range inAgent {
		if cert, ok := s.PublicKey().(*ssh.Certificate); !id.host.identitiesOnly || ok && slices.ContainsFunc(out, func(o ssh.Signer) bool { return sameKey(o.PublicKey(), cert.Key) }) {
			add(s)
		}
	}
	return out, nil
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// agentTime is how long the agent may take: it may ask somebody.
const agentTime = 15 * time.Second

func (id *identity) fromAgent() []ssh.Signer {
	if id.host.agent == "" {
		id.note("there is no agent (SSH_AUTH_SOCK is not set)")
		return nil
	}
	conn, err := net.DialTimeout("unix", id.host.agent, agentTime)
	if err == nil {
		id.conn = conn
		_ = conn.SetDeadline(time.Now().Add(agentTime))
		var signers []ssh.Signer
		if signers, err = agent.NewClient(conn).Signers(); err == nil {
			if len(signers) == 0 {
				id.note("the agent has no key")
			}
			return signers
		}
	}
	id.note("the agent does not answer (%v)", err)
	return nil
}

// fromFile returns the key in a file, or the agent's if it is encrypted or only its public half is there.
func (id *identity) fromFile(file string, inAgent []ssh.Signer) ssh.Signer {
	b, err := os.ReadFile(file)
	if err != nil {
		b, err2 := os.ReadFile(file + ".pub") // the private half may be the agent's alone
		if s := find(inAgent, b); err2 == nil && s != nil {
			return s
		}
		if !errors.Is(err, fs.ErrNotExist) {
			id.note("%v", err)
		}
		return nil
	}
	if s := find(inAgent, b); s != nil {
		return s
	}
	s, err := ssh.ParsePrivateKey(b)
	var locked *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return s
	case errors.As(err, &locked):
		var public []byte
		if locked.PublicKey != nil {
			public = ssh.MarshalAuthorizedKey(locked.PublicKey)
		} else if public, err = os.ReadFile(file + ".pub"); err != nil {
			public = nil
		}
		if s := find(inAgent, public); s != nil {
			return s
		}
		id.note("%s is encrypted and not in the agent: ssh-add %s", file, file)
	case strings.HasSuffix(file, ".pub"):
		id.note("the agent does not have the key of %s", file)
	default:
		id.note("%s holds no usable key (%v)", file, err)
	}
	return nil
}

// find returns the signer with that public key, as a .pub file has it.
func find(signers []ssh.Signer, public []byte) ssh.Signer {
	key, _, _, _, err := ssh.ParseAuthorizedKey(public)
	if err != nil {
		return nil
	}
	for _, s := range signers {
		if sameKey(s.PublicKey(), key) {
			return s
		}
	}
	return nil
}

func (id *identity) certificates(files []string) (certs []*ssh.Certificate) {
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var key ssh.PublicKey
		if err == nil {
			key, _, _, _, err = ssh.ParseAuthorizedKey(b)
		}
		cert, ok := key.(*ssh.Certificate)
		if err != nil || !ok {
			id.note("%s holds no certificate", file)
			continue
		}
		if end := cert.ValidBefore; end != ssh.CertTimeInfinity && time.Now().Unix() >= int64(end) {
			id.note("the certificate %s ended at %s", file, time.Unix(int64(end), 0).UTC().Format(time.RFC3339))
		}
		certs = append(certs, cert)
	}
	return certs
}

// story says what was tried, for when no key was accepted.
func (id *identity) story() error {
	s := "no key was found"
	if len(id.tried) > 0 {
		s = "not accepted: " + strings.Join(id.tried, ", ")
	}
	if len(id.notes) > 0 {
		s += "; " + strings.Join(id.notes, "; ")
	}
	return errors.New(s)
}
