package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"zodbrepl/internal/fault"
)

// timing are the limits of waiting. Together they end a call within a minute when the peer falls silent.
type timing struct {
	dial      time.Duration // for the connection
	handshake time.Duration // for keys, authentication, and the start of SFTP
	stall     time.Duration // without a byte from the peer while it owes an answer
	flush     time.Duration // the same while it makes a file durable; keep-alives show meanwhile that it lives
	alive     time.Duration // between keep-alives, and for the answer to one
	grace     time.Duration // for what is under way when a call is cancelled
	pause     time.Duration // before a line that was cut is tried again; it doubles up to maxPause
	maxPause  time.Duration
}

var usualTiming = timing{dial: 10 * time.Second, handshake: 15 * time.Second, stall: 20 * time.Second, flush: 5 * time.Minute,
	alive: 15 * time.Second, grace: 2 * time.Second, pause: 250 * time.Millisecond, maxPause: 10 * time.Second}

// dialer reaches hosts with SSH of our own.
type dialer struct {
	TargetOptions
	timing
	config *sshConfig
}

// link is a connection to a host, perhaps through others.
type link struct {
	client *ssh.Client
	conn   *meteredConn
	below  *link // the jump host that it goes through
	once   sync.Once
}

// close ends the connection at once, also when the peer is silent.
func (l *link) close() {
	if l == nil {
		return
	}
	l.once.Do(func() {
		l.conn.Close()
		l.client.Close()
		l.below.close()
	})
}

// meteredConn remembers when the peer was heard last.
type meteredConn struct {
	net.Conn
	heard atomic.Int64
}

func (c *meteredConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

const maxJumps = 8

// connect reaches h the way that ssh's configuration says.
func (d *dialer) connect(ctx context.Context, h hop) (*link, error) { return d.through(ctx, nil, h, 0) }

// through reaches h by way of the host below, or when that is nil by the way that is configured for h.
func (d *dialer) through(ctx context.Context, below *link, h hop, depth int) (l *link, err error) {
	defer func() {
		if err != nil {
			below.close()
		}
	}()
	if depth > maxJumps {
		return nil, fault.New(nil, "the way to %s has more than %d jumps, or goes round in a circle", h, maxJumps).
			Keeping("nothing was connected").Remedy("look at ProxyJump in ~/.ssh/config")
	}
	host, err := d.config.host(h)
	if err != nil {
		return nil, err
	}
	if below == nil {
		for _, j := range host.jumps {
			if below, err = d.through(ctx, below, j, depth+1); err != nil {
				return nil, fmt.Errorf("jump host %s: %w", j, err)
			}
			depth++
		}
	}
	return d.one(ctx, below, host)
}

// one connects to a host and proves both sides' keys.
func (d *dialer) one(ctx context.Context, below *link, host *hostConfig) (*link, error) {
	keys, err := newHostKeys(host, d.AcceptNew, d.Log)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort(host.host, host.port)
	raw, err := d.tcp(ctx, below, addr)
	if err != nil {
		return nil, err
	}
	id := &identity{host: host, log: d.Log}
	defer id.close()
	conn := &meteredConn{Conn: raw}
	// A jump host's channel knows no deadlines; closing ends the handshake on every kind of connection.
	timer := time.AfterFunc(d.handshake, func() { conn.Close() })
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	c, chans, reqs, err := ssh.NewClientConn(conn, addr, &ssh.ClientConfig{
		User: host.user, Auth: []ssh.AuthMethod{ssh.PublicKeysCallback(id.signers)},
		HostKeyCallback: keys.check, HostKeyAlgorithms: keys.algorithms(), ClientVersion: "SSH-2.0-zodbrepl",
	})
	timely := timer.Stop()
	stop()
	switch {
	case err == nil && timely && ctx.Err() == nil:
		return &link{client: ssh.NewClient(c, chans, reqs), conn: conn, below: below}, nil
	case err == nil:
		c.Close()
	}
	conn.Close()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case keys.refuse != nil:
		return nil, keys.refuse
	case !timely:
		return nil, &lineError{fmt.Errorf("%s: no answer to the SSH handshake within %s", addr, d.handshake)}
	}
	return nil, d.explain(err, host, addr, id)
}

func (d *dialer) tcp(ctx context.Context, below *link, addr string) (net.Conn, error) {
	inner, cancel := context.WithTimeout(ctx, d.dial)
	defer cancel()
	var conn net.Conn
	var err error
	if below != nil {
		conn, err = below.client.DialContext(inner, "tcp", addr)
	} else {
		conn, err = (&net.Dialer{KeepAlive: d.alive}).DialContext(inner, "tcp", addr)
	}
	var dns *net.DNSError
	var refused *ssh.OpenChannelError
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &dns) && dns.IsNotFound:
		return nil, fault.New(nil, "host %s is not known", dns.Name).Because(dns).Keeping("nothing was sent").
			Remedy("check the name, or give it a HostName in ~/.ssh/config")
	case errors.As(err, &refused) && refused.Reason != ssh.ConnectionFailed:
		return nil, fault.New(nil, "the jump host does not let us through to %s", addr).Because(err).Keeping("nothing was sent").
			Remedy("allow it there: AllowTcpForwarding and PermitOpen in sshd_config, no restrict without port-forwarding in authorized_keys")
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no answer within %s", d.dial)
	}
	return nil, &lineError{fmt.Errorf("%s: %w", addr, plain(err))}
}

// explain tells the failures of a handshake that need somebody from those of the line.
func (d *dialer) explain(err error, host *hostConfig, addr string, id *identity) error {
	var kinds *ssh.AlgorithmNegotiationError
	switch text := err.Error(); {
	case strings.Contains(text, "unable to authenticate") || strings.Contains(text, "Too many authentication failures"):
		return fault.New(nil, "%s does not let %s in: no usable key", addr, host.user).Because(id.story()).Keeping("nothing was sent").
			Remedy("put the public key into ~%s/.ssh/authorized_keys there, or name the right one with IdentityFile in ~/.ssh/config; there are no passwords. sshd's log there says more", host.user)
	case errors.As(err, &kinds):
		return fault.New(nil, "%s and we have no SSH algorithm in common", addr).Because(err).Keeping("nothing was sent").
			Remedy("update the SSH server there, or use --ssh-command ssh")
	}
	return &lineError{fmt.Errorf("%s: SSH handshake: %w", addr, plain(err))}
}

// keepAlive asks the peer now and then for an answer, and calls dead when there is none and nothing else was heard.
func (l *link) keepAlive(ctx context.Context, every time.Duration, dead func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		asked := time.Now()
		answer := make(chan error, 1)
		go func() {
			_, _, err := l.client.SendRequest("keepalive@openssh.com", true, nil)
			answer <- err
		}()
		for waiting := true; waiting; {
			select {
			case err := <-answer:
				if err != nil {
					dead(plain(err))
					return
				}
				waiting = false
			case <-time.After(every):
				if l.conn.heard.Load() < asked.UnixNano() {
					dead(fmt.Errorf("no answer to a keep-alive within %s", every))
					return
				}
				asked = time.Now() // the answer stands behind data
			}
		}
	}
}

// openSFTP starts SFTP on the connection.
func (d *dialer) openSFTP(ctx context.Context, h hop) (*session, error) {
	l, err := d.connect(ctx, h)
	if err != nil {
		return nil, err
	}
	s := newSession(d.timing, d.LimitRate, l.close)
	// The start has a limit like the handshake, of which it is a part.
	timer := time.AfterFunc(d.handshake, func() { s.kill(fmt.Errorf("SFTP did not start within %s", d.handshake)) })
	defer timer.Stop()
	defer context.AfterFunc(ctx, func() { s.kill(ctx.Err()) })()
	go l.keepAlive(s.ctx, d.alive, s.kill)
	r, w, err := sftpPipe(l.client)
	if err != nil {
		if s.dead() == nil && strings.Contains(err.Error(), "subsystem request failed") {
			s.kill(err)
			return nil, noSubsystem(h.host)
		}
		return nil, s.failed("starting SFTP", err)
	}
	s.wider.pipe = func() (io.Reader, io.WriteCloser, error) { return sftpPipe(l.client) }
	if err := s.start(r, w); err != nil {
		return nil, s.failed("starting SFTP", err)
	}
	return s, nil
}

func noSubsystem(host string) error {
	return fault.New(nil, "%s lets us in but has no SFTP", host).Keeping("nothing was sent").
		Remedy("sshd_config there needs: Subsystem sftp internal-sftp")
}
