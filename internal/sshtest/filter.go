package sshtest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// filter stands between a client and pkg/sftp's server. Two goroutines carry the packets, one each way.
type filter struct {
	s      *Server
	client io.ReadWriteCloser // the SSH channel
	server net.Conn           // a pipe to pkg/sftp's server
	line   *line

	out  sync.Mutex // one packet at a time to the client
	mu   sync.Mutex
	open map[uint32]string                      // requests that open a file, by id: its path
	path map[string]string                      // of open files, by handle
	then map[uint32]func(packet) (packet, bool) // what becomes of the answer to a request; false: it is not sent
	held []packet                               // writes that wait, in the order of arrival
}

func newFilter(s *Server, client io.ReadWriteCloser, server net.Conn, l *line) *filter {
	return &filter{s: s, client: client, server: server, line: l, open: make(map[uint32]string), path: make(map[string]string),
		then: make(map[uint32]func(packet) (packet, bool))}
}

// patience is how long held writes wait for others: a client that waits for answers sends no more.
const patience = 20 * time.Millisecond

func (f *filter) run() {
	var wg sync.WaitGroup
	wg.Go(func() {
		f.answers()
		f.client.Close()
		f.server.Close()
	})
	arrived, done := make(chan packet), make(chan struct{})
	wg.Go(func() {
		defer close(arrived)
		for {
			p, err := readPacket(f.client)
			if err != nil {
				return
			}
			select {
			case arrived <- p:
			case <-done:
				return
			}
		}
	})
	f.requests(arrived)
	close(done)
	f.server.Close() // pkg/sftp's server finishes what it has been given
	f.client.Close()
	wg.Wait()
}

func (f *filter) requests(arrived <-chan packet) {
	for {
		var timeout <-chan time.Time
		if len(f.held) > 0 {
			timeout = time.After(patience)
		}
		select {
		case <-timeout:
			if f.release() != nil {
				return
			}
		case p, ok := <-arrived:
			if !ok {
				f.release()
				return
			}
			if f.request(p) != nil {
				return
			}
		}
	}
}

// release does the held writes, the last first.
func (f *filter) release() error {
	held := f.held
	f.held = nil
	for _, p := range slices.Backward(held) {
		if err := writePacket(f.server, p); err != nil {
			return err
		}
	}
	return nil
}

var errCut = errors.New("cut")

func (f *filter) request(p packet) error {
	r := f.describe(p)
	p = f.translate(p)
	f.s.record(&r)
	v := r.Verdict
	if v.kind != hold && r.Op != "write" {
		if err := f.release(); err != nil {
			return err
		}
	}
	switch v.kind {
	case fail:
		if v.code == noSpace {
			return f.reply(fullDisk(p.id()))
		}
		return f.reply(statusPacket(p.id(), v.code))
	case drop:
		return nil
	case late:
		select {
		case <-time.After(v.time):
		case <-f.line.end:
			return errCut
		}
	case hang:
		f.line.silence()
		<-f.line.end
		return errCut
	case cutBefore:
		f.line.Close()
		return errCut
	case cutAfter:
		f.answer(p.id(), func(packet) (packet, bool) { f.line.Close(); return nil, false })
	case short, lie:
		code := uint32(Failure)
		if v.kind == lie {
			code = ok
		}
		id := p.id()
		f.answer(id, func(packet) (packet, bool) { return statusPacket(id, code), true })
		p = shorten(p, v.bytes)
	case hold:
		f.held = append(f.held, p)
		return nil
	}
	if r.Op == "write" && len(f.held) > 0 {
		f.held = append(f.held, p)
		return f.release()
	}
	return f.pass(r, p)
}

// pass hands a request on, or answers it where OpenSSH does otherwise than pkg/sftp's server.
func (f *filter) pass(r Request, p packet) error {
	switch {
	case r.Op == "fsync":
		return f.reply(f.fsync(r, p.id()))
	case p[0] == typeExtended && !f.s.has(r.Op):
		return f.reply(statusPacket(p.id(), unsupported))
	case r.Op == "rename" && !f.s.ReadOnly:
		if _, err := os.Lstat(r.NewPath); err == nil {
			return f.reply(statusPacket(p.id(), Failure))
		}
	case r.Op == "open" || r.Op == "opendir":
		f.mu.Lock()
		f.open[p.id()] = r.Path
		f.mu.Unlock()
	}
	return writePacket(f.server, p)
}

func (f *filter) fsync(r Request, id uint32) packet {
	switch {
	case !f.s.has("fsync"):
		return statusPacket(id, unsupported)
	case f.s.ReadOnly:
		return statusPacket(id, PermissionDenied)
	case r.Path == "":
		return statusPacket(id, Failure)
	}
	return statusPacket(id, ok)
}

// answer says what becomes of the answer to a request.
func (f *filter) answer(id uint32, then func(packet) (packet, bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.then[id] = then
}

// answers carries the server's packets to the client.
func (f *filter) answers() {
	for {
		p, err := readPacket(f.server)
		if err != nil {
			return
		}
		p, send := f.amend(p)
		if send && f.reply(p) != nil {
			return
		}
	}
}

func (f *filter) amend(p packet) (packet, bool) {
	if p[0] == typeVersion {
		return f.s.version(p), true
	}
	f.mu.Lock()
	then := f.then[p.id()]
	delete(f.then, p.id())
	opened := f.open[p.id()]
	delete(f.open, p.id())
	if p[0] == typeHandle {
		h, _ := p.strings(5, 1)
		f.path[h[0]] = opened
	}
	f.mu.Unlock()
	switch {
	case then != nil:
		return then(p)
	case p[0] == typeStatus && len(p) >= 9:
		return statusPacket(p.id(), binary.BigEndian.Uint32(p[5:])), true
	case p[0] == typeName && f.s.Chroot:
		return f.hideRoot(p), true
	}
	return p, true
}

func (f *filter) reply(p packet) error {
	f.out.Lock()
	defer f.out.Unlock()
	return writePacket(f.client, p)
}

// hideRoot takes the directory out of the answer to realpath; names in listings have none.
func (f *filter) hideRoot(p packet) packet {
	names, end := p.strings(9, 2)
	if !filepath.IsAbs(names[0]) {
		return p
	}
	inside := path.Join("/", strings.TrimPrefix(names[0], f.s.Dir))
	b := appendString(appendString(slices.Clone(p[:9]), inside), inside)
	return append(b, p[end:]...)
}

// local returns the path on this host of one that the client named.
func (f *filter) local(p string) string {
	switch {
	case f.s.Chroot:
		return filepath.Join(f.s.Dir, path.Clean("/"+p))
	case filepath.IsAbs(p):
		return p
	}
	return filepath.Join(f.s.Dir, p)
}

// fields returns where the paths of a request begin and how many there are.
func (p packet) fields() (off, paths int) {
	switch p[0] {
	case typeOpen, typeLstat, typeStat, typeSetstat, typeOpendir, typeRemove, typeMkdir, typeRmdir, typeRealpath, typeReadlink:
		return 5, 1
	case typeRename, typeSymlink:
		return 5, 2
	case typeExtended:
		name, end := p.strings(5, 1)
		switch name[0] {
		case "posix-rename@openssh.com", "hardlink@openssh.com":
			return end, 2
		case "statvfs@openssh.com":
			return end, 1
		}
	}
	return 0, 0
}

// translate replaces the paths of a request by those of this host.
func (f *filter) translate(p packet) packet {
	off, n := p.fields()
	if n == 0 {
		return p
	}
	names, end := p.strings(off, n)
	b := slices.Clone(p[:off])
	for _, name := range names {
		b = appendString(b, f.local(name))
	}
	return append(b, p[end:]...)
}

func (f *filter) describe(p packet) Request {
	r := Request{Op: opNames[p[0]]}
	if off, n := p.fields(); n > 0 {
		names, _ := p.strings(off, n)
		r.Path = f.local(names[0])
		if n > 1 {
			r.NewPath = f.local(names[1])
		}
	}
	handle := 5
	if p[0] == typeExtended {
		name, end := p.strings(5, 1)
		r.Op, _, _ = strings.Cut(name[0], "@")
		handle = end
	}
	switch r.Op {
	case "close", "read", "write", "fstat", "fsetstat", "readdir", "fsync":
		h, end := p.strings(handle, 1)
		f.mu.Lock()
		r.Path = f.path[h[0]]
		f.mu.Unlock()
		if (r.Op == "read" || r.Op == "write") && len(p) >= end+12 {
			r.Offset = int64(binary.BigEndian.Uint64(p[end:]))
			r.Length = int(binary.BigEndian.Uint32(p[end+8:]))
		}
	}
	return r
}

// shorten leaves n bytes of content in a write.
func shorten(p packet, n int) packet {
	_, end := p.strings(5, 1)
	if p[0] != typeWrite || len(p) < end+12 {
		return p
	}
	n = max(0, min(n, len(p)-end-12))
	b := binary.BigEndian.AppendUint32(slices.Clone(p[:end+8]), uint32(n))
	return append(b, p[end+12:end+12+n]...)
}

// fullDisk is the answer to statvfs of a disk with nothing free: 11 numbers, of which the third to fifth count blocks.
func fullDisk(id uint32) packet {
	p := head(201, id)
	for _, n := range []uint64{4096, 4096, 1000, 0, 0, 1000, 500, 500, 1, 0, 255} {
		p = binary.BigEndian.AppendUint64(p, n)
	}
	return p
}
