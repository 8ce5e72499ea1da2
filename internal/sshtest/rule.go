package sshtest

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Request is what a client asked. Op is "open", "write", "rename", "fstat" and so on, and for extensions "posix-rename",
// "fsync", "statvfs", "hardlink".
type Request struct {
	Op      string
	Path    string // of this host; that of the open file for requests with a handle
	NewPath string // of a rename
	Offset  int64
	Length  int   // of a read or write
	Number  int   // of all requests, from 1
	Sum     int64 // bytes of file content that arrived with this and all former writes
	Verdict Verdict
}

// Verdict is what becomes of a request.
type Verdict struct {
	kind  verdictKind
	code  uint32
	bytes int
	time  time.Duration
}

type verdictKind int

const (
	pass verdictKind = iota
	fail
	drop
	cutBefore
	cutAfter
	hang
	short
	lie
	hold
	late
)

// The verdicts. Every other request of the same connection goes on as usual, except after a cut or silence.
var (
	Pass      = Verdict{}                // it is done
	Drop      = Verdict{kind: drop}      // it is not done, and never answered
	CutBefore = Verdict{kind: cutBefore} // the connection is cut, and it is not done
	CutAfter  = Verdict{kind: cutAfter}  // it is done, and the connection is cut before the answer
	Hang      = Verdict{kind: hang}      // it is not done, and nothing is ever heard of this connection again
	Hold      = Verdict{kind: hold}      // a write: it is done after those that come later, the last of them first
)

// Fail answers with a code and does nothing.
func Fail(code uint32) Verdict { return Verdict{kind: fail, code: code} }

// Short writes only the first n bytes and fails: what OpenSSH does when the disk fills up.
func Short(n int) Verdict { return Verdict{kind: short, bytes: n} }

// Late does it after a while; what comes behind it waits as well.
func Late(d time.Duration) Verdict { return Verdict{kind: late, time: d} }

// Lie writes only the first n bytes and says that all is well.
func Lie(n int) Verdict { return Verdict{kind: lie, bytes: n} }

// Rule decides about each request as it arrives. It is called for one request at a time of a connection, before
// anything is done, so it may also look at the directory: it sees every state that a client leaves there.
type Rule func(r Request) Verdict

// First joins rules: the first that does not let a request pass decides.
func First(rules ...Rule) Rule {
	return func(r Request) Verdict {
		for _, rule := range rules {
			if v := rule(r); v != Pass {
				return v
			}
		}
		return Pass
	}
}

// Full is a disk that is full when n bytes more have been written. It ends when the rule is replaced.
func Full(n int64) Rule {
	var used atomic.Int64
	return func(r Request) Verdict {
		switch {
		case r.Op == "statvfs":
			return Verdict{kind: fail, code: noSpace}
		case r.Op != "write":
			return Pass
		}
		left := n - (used.Add(int64(r.Length)) - int64(r.Length))
		if left >= int64(r.Length) {
			return Pass
		}
		return Short(int(max(left, 0)))
	}
}

// noSpace is answered by the filter: a statvfs with nothing free.
const noSpace = 1 << 16

// Refuse fails every request of some kinds.
func Refuse(code uint32, ops ...string) Rule { return When(Fail(code), ops...) }

// When gives a verdict to every request of some kinds.
func When(v Verdict, ops ...string) Rule {
	return func(r Request) Verdict {
		for _, op := range ops {
			if r.Op == op {
				return v
			}
		}
		return Pass
	}
}

// Once gives a verdict to the nth request that the rule concerns, from 1, and to no other.
func Once(n int, rule Rule) Rule {
	var seen atomic.Int64
	return func(r Request) Verdict {
		if v := rule(r); v != Pass && seen.Add(1) == int64(n) {
			return v
		}
		return Pass
	}
}

// On limits a rule to files whose name ends so; a temporary file counts as what it will be.
func On(suffix string, rule Rule) Rule {
	return func(r Request) Verdict {
		for _, p := range []string{r.Path, r.NewPath} {
			if p != "" && strings.HasSuffix(strings.TrimSuffix(filepath.Base(p), ".tmp"), suffix) {
				return rule(r)
			}
		}
		return Pass
	}
}

// AfterBytes gives a verdict to the first write with which more than n bytes of content have arrived, and to all that
// follow.
func AfterBytes(n int64, v Verdict) Rule {
	var sum atomic.Int64
	return func(r Request) Verdict {
		if r.Op == "write" && sum.Add(int64(r.Length)) > n {
			return v
		}
		return Pass
	}
}

// Reordered does the writes of each file in another order: up to n are held back, and done last first.
func Reordered(n int) Rule {
	var seen atomic.Int64
	return func(r Request) Verdict {
		if r.Op == "write" && seen.Add(1)%int64(n) != 0 {
			return Hold
		}
		return Pass
	}
}
