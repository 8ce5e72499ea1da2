package sshtest

import (
	"net"
	"sync"
)

// line is the server's end of a connection: it counts bytes and can fall silent, as a host does that lost its power or
// its network without a word.
type line struct {
	net.Conn
	server *Server
	once   sync.Once
	mute   chan struct{} // closed: silent from now on
	end    chan struct{} // closed with the connection
	ended  sync.Once
}

func newLine(c net.Conn, s *Server) *line {
	return &line{Conn: c, server: s, mute: make(chan struct{}), end: make(chan struct{})}
}

func (l *line) silence() { l.once.Do(func() { close(l.mute) }) }

// hold waits for the end of the connection when it is silent.
func (l *line) hold() bool {
	select {
	case <-l.mute:
		<-l.end
		return true
	default:
		return false
	}
}

func (l *line) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if l.hold() {
		return 0, net.ErrClosed
	}
	l.server.received.Add(int64(n))
	return n, err
}

func (l *line) Write(p []byte) (int, error) {
	if l.hold() {
		return 0, net.ErrClosed
	}
	n, err := l.Conn.Write(p)
	l.server.sent.Add(int64(n))
	return n, err
}

func (l *line) Close() error {
	l.ended.Do(func() { close(l.end) })
	return l.Conn.Close()
}
