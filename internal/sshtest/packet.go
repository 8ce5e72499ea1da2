package sshtest

import (
	"encoding/binary"
	"errors"
	"io"
)

// Packets of SFTP, version 3:
//
//	| length u32 | type u8 | id u32 | fields ... |       strings are | length u32 | bytes |
const (
	typeInit     = 1
	typeVersion  = 2
	typeOpen     = 3
	typeClose    = 4
	typeRead     = 5
	typeWrite    = 6
	typeLstat    = 7
	typeFstat    = 8
	typeSetstat  = 9
	typeFsetstat = 10
	typeOpendir  = 11
	typeReaddir  = 12
	typeRemove   = 13
	typeMkdir    = 14
	typeRmdir    = 15
	typeRealpath = 16
	typeStat     = 17
	typeRename   = 18
	typeReadlink = 19
	typeSymlink  = 20
	typeStatus   = 101
	typeHandle   = 102
	typeName     = 104
	typeExtended = 200
)

var opNames = map[byte]string{
	typeInit: "init", typeOpen: "open", typeClose: "close", typeRead: "read", typeWrite: "write", typeLstat: "lstat",
	typeFstat: "fstat", typeSetstat: "setstat", typeFsetstat: "fsetstat", typeOpendir: "opendir", typeReaddir: "readdir",
	typeRemove: "remove", typeMkdir: "mkdir", typeRmdir: "rmdir", typeRealpath: "realpath", typeStat: "stat",
	typeRename: "rename", typeReadlink: "readlink", typeSymlink: "symlink",
}

// Codes of a status, and the text that OpenSSH sends with each: it never tells the errno.
const (
	ok               = 0
	noSuchFile       = 2
	PermissionDenied = 3
	Failure          = 4
	unsupported      = 8
)

var statusTexts = map[uint32]string{ok: "Success", 1: "End of file", noSuchFile: "No such file", PermissionDenied: "Permission denied",
	Failure: "Failure", 5: "Bad message", 6: "No connection", 7: "Connection lost", unsupported: "Operation unsupported"}

// packet is the type and all that follows it.
type packet []byte

func readPacket(r io.Reader) (packet, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > 1<<20 {
		return nil, errors.New("not an SFTP packet")
	}
	p := make(packet, n)
	_, err := io.ReadFull(r, p)
	return p, err
}

func writePacket(w io.Writer, p packet) error {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(p)), uint32(len(p)))
	_, err := w.Write(append(b, p...))
	return err
}

func (p packet) id() uint32 {
	if len(p) < 5 {
		return 0
	}
	return binary.BigEndian.Uint32(p[1:])
}

// strings returns the first n strings that begin at byte off, and where they end.
func (p packet) strings(off, n int) (s []string, end int) {
	for range n {
		if len(p) < off+4 {
			return append(s, make([]string, n-len(s))...), off
		}
		size := int(binary.BigEndian.Uint32(p[off:]))
		if size > len(p)-off-4 {
			return append(s, make([]string, n-len(s))...), off
		}
		s = append(s, string(p[off+4:off+4+size]))
		off += 4 + size
	}
	return s, off
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// head returns the type and the id of a packet to be built.
func head(kind byte, id uint32) packet { return binary.BigEndian.AppendUint32(packet{kind}, id) }

func statusPacket(id, code uint32) packet {
	p := binary.BigEndian.AppendUint32(head(typeStatus, id), code)
	return appendString(appendString(p, statusTexts[code]), "en")
}
