package sshtest

import "slices"

// extensions are those that the server has unless it is told otherwise, with their versions.
var extensions = []struct{ name, version string }{
	{"posix-rename", "1"}, {"statvfs", "2"}, {"hardlink", "1"}, {"fsync", "1"},
}

// has says whether the server has an extension, given without its domain.
func (s *Server) has(name string) bool {
	for _, e := range extensions {
		if e.name == name {
			return !slices.Contains(s.Without, name+"@openssh.com")
		}
	}
	return false
}

// version is the answer to init: the version, then the extensions that the server has. pkg/sftp's server could only
// be told for all servers of a process at once.
func (s *Server) version(p packet) packet {
	b := slices.Clone(p[:min(5, len(p))])
	for _, e := range extensions {
		if s.has(e.name) {
			b = appendString(appendString(b, e.name+"@openssh.com"), e.version)
		}
	}
	return b
}

// record counts a request and asks the rule about it.
func (s *Server) record(r *Request) {
	if r.Op == "write" {
		r.Sum = s.written.Add(int64(r.Length))
	}
	s.mu.Lock()
	rule := s.rule
	r.Number = len(s.requests) + 1
	s.mu.Unlock()
	if rule != nil {
		r.Verdict = rule(*r)
	}
	s.mu.Lock()
	s.requests = append(s.requests, *r)
	s.mu.Unlock()
}
