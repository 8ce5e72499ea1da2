package sshtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// Options says what a server serves, to whom, and how. The zero value with a Dir serves it to the holder of a fresh
// key, with the extensions that OpenSSH has.
type Options struct {
	Dir      string   // what is served; also the home directory, ~, of everybody who logs in
	Chroot   bool     // the client sees Dir as /, as with ChrootDirectory; otherwise the paths are those of this host
	ReadOnly bool     // as internal-sftp -R
	Without  []string // extensions that are not there: "fsync@openssh.com", ...
	Rule     Rule     // faults; see also SetRule

	HostKeys     []ssh.Signer     // default: one ed25519 key
	HostCert     *ssh.Certificate // for the first host key, optional
	Authorized   []ssh.PublicKey  // who is let in; default: a fresh key, Server.Key
	UserCA       ssh.PublicKey    // lets in the certificates that it signed for the user
	MaxAuthTries int              // default: OpenSSH's 6
	Forward      bool             // may be used as a jump host
	MaxSessions  int              // on one connection; 0: any
}

// Server is a running server. It ends with its test.
type Server struct {
	Options
	Addr string // 127.0.0.1:PORT
	Key  *Key   // a key that is let in

	mu                      sync.Mutex
	rule                    Rule
	requests                []Request
	users                   []string
	conns                   map[net.Conn]bool
	closed                  bool
	listener                net.Listener
	received, sent, written atomic.Int64
	wg                      sync.WaitGroup
}

// Start starts a server on a free port of the loopback interface.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if len(o.HostKeys) == 0 {
		o.HostKeys = []ssh.Signer{NewKey(t, "ed25519").Signer}
	}
	if o.MaxAuthTries == 0 {
		o.MaxAuthTries = 6
	}
	key := NewKey(t, "ed25519")
	if len(o.Authorized) == 0 {
		o.Authorized = []ssh.PublicKey{key.Signer.PublicKey()}
	}
	s := &Server{Options: o, Addr: l.Addr().String(), Key: key, rule: o.Rule, listener: l, conns: make(map[net.Conn]bool)}
	s.wg.Go(func() { s.accept(l) })
	t.Cleanup(func() {
		s.Stop()
		s.wg.Wait()
	})
	return s
}

// URL names a path on the server as a client sees it.
func (s *Server) URL(path string) string {
	return (&url.URL{Scheme: "sftp", User: url.User(User), Host: s.Addr, Path: path}).String()
}

// User is the name in the URLs; the server takes any.
const User = "zope"

// Port returns the port alone.
func (s *Server) Port() string {
	_, port, _ := net.SplitHostPort(s.Addr)
	return port
}

// SetRule replaces the rule, also for connections that are open.
func (s *Server) SetRule(r Rule) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rule = r
}

// Requests returns what was asked so far, and what was decided, in the order of arrival.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Users returns who logged in, in order.
func (s *Server) Users() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.users)
}

// Received and Sent count the bytes on the wire; Written counts the bytes of file content that arrived.
func (s *Server) Received() int64 { return s.received.Load() }

// Sent counts the bytes on the wire that left.
func (s *Server) Sent() int64 { return s.sent.Load() }

// Written counts the bytes of file content in write requests.
func (s *Server) Written() int64 { return s.written.Load() }

// Reset forgets requests, users and counts.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.users = nil, nil
	s.received.Store(0)
	s.sent.Store(0)
	s.written.Store(0)
}

// CutAll drops every open connection; new ones are taken.
func (s *Server) CutAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Connections returns how many are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Stop drops everything and takes no new connections: the server is dead.
func (s *Server) Stop() {
	s.mu.Lock()
	s.closed = true
	s.listener.Close()
	s.mu.Unlock()
	s.CutAll()
}

// Restart takes connections again, at the same address.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.closed, s.listener = false, l
	s.mu.Unlock()
	s.wg.Go(func() { s.accept(l) })
}

func (s *Server) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		line := newLine(c, s)
		if !s.track(line, true) {
			c.Close()
			continue
		}
		s.wg.Go(func() {
			defer s.track(line, false)
			defer line.Close()
			s.serve(line)
		})
	}
}

// track keeps the open connections. It returns false for one that came too late.
func (s *Server) track(c net.Conn, open bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !open {
		delete(s.conns, c)
	} else if !s.closed {
		s.conns[c] = true
	}
	return !s.closed
}

func (s *Server) config() *ssh.ServerConfig {
	certs := &ssh.CertChecker{
		IsUserAuthority: func(ca ssh.PublicKey) bool {
			return s.UserCA != nil && bytes.Equal(ca.Marshal(), s.UserCA.Marshal())
		},
		UserKeyFallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if slices.ContainsFunc(s.Authorized, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) }) {
				return nil, nil
			}
			return nil, errors.New("this key is not authorised")
		},
	}
	c := &ssh.ServerConfig{MaxAuthTries: s.MaxAuthTries, PublicKeyCallback: certs.Authenticate, ServerVersion: "SSH-2.0-sshtest"}
	for i, k := range s.HostKeys {
		if i == 0 && s.HostCert != nil {
			if signer, err := ssh.NewCertSigner(s.HostCert, k); err == nil {
				c.AddHostKey(signer)
			}
		}
		c.AddHostKey(k)
	}
	return c
}

func (s *Server) serve(line *line) {
	conn, channels, requests, err := ssh.NewServerConn(line, s.config())
	if err != nil {
		return
	}
	s.mu.Lock()
	s.users = append(s.users, conn.User())
	s.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { ssh.DiscardRequests(requests) }) // answers keep-alives, as OpenSSH does, with a failure
	sessions := 0
	for c := range channels {
		if c.ChannelType() == "session" {
			sessions++
		}
		switch {
		case s.MaxSessions > 0 && sessions > s.MaxSessions:
			c.Reject(ssh.ResourceShortage, "too many sessions")
		case c.ChannelType() == "session":
			wg.Go(func() { s.session(c, line) })
		case c.ChannelType() == "direct-tcpip" && s.Forward:
			wg.Go(func() { forward(c) })
		default:
			c.Reject(ssh.Prohibited, "not here")
		}
	}
	wg.Wait()
}

// session serves the sftp subsystem and nothing else, as with ForceCommand internal-sftp.
func (s *Server) session(c ssh.NewChannel, line *line) {
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer ch.Close()
	for r := range requests {
		ok := r.Type == "subsystem" && bytes.HasSuffix(r.Payload, []byte("sftp"))
		r.Reply(ok, nil)
		if ok {
			go ssh.DiscardRequests(requests)
			s.subsystem(ch, line)
			return
		}
	}
}

func (s *Server) subsystem(ch ssh.Channel, line *line) {
	client, inner := net.Pipe()
	o := []sftp.ServerOption{sftp.WithServerWorkingDirectory(s.Dir)}
	if s.ReadOnly {
		o = append(o, sftp.ReadOnly())
	}
	server, err := sftp.NewServer(inner, o...)
	if err != nil {
		fmt.Fprintln(ch.Stderr(), err)
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		server.Serve()
		inner.Close()
	})
	newFilter(s, ch, client, line).run()
	wg.Wait()
}

// forward connects a channel with what it names, as a jump host does.
func forward(c ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(c.ExtraData(), &to); err != nil {
		c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(to.Host, fmt.Sprint(to.Port)))
	if err != nil {
		c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	ch, requests, err := c.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(ch, conn); ch.CloseWrite() })
	wg.Go(func() { io.Copy(conn, ch); conn.Close() })
	wg.Wait()
	ch.Close()
}
