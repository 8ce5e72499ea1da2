// Package fault gives every refusal and failure of zodbrepl the same shape: what is wrong, what was left
// untouched, and what to do next; and the kind that decides the exit code.
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds. Match them with errors.Is; ExitCode maps them to the process's exit code.
var (
	Usage      = errors.New("usage")                      // 2: the command line is wrong; nothing was tried
	Refused    = errors.New("refused")                    // 3: this node's role forbids it
	Unverified = errors.New("verification failed")        // 4: stored bytes are not what they should be
	Diverged   = errors.New("divergence")                 // 5: two histories after a common position
	Gap        = errors.New("gap")                        // 6: a piece of a chain is missing or incomplete
	Busy       = errors.New("another run holds the lock") // 75: try again later

	Unreachable = errors.New("unreachable") // 1: another host, or the line to it, failed; it may come back by itself
)

// Error is a failure told to an operator.
type Error struct {
	Kind error  // one of the kinds above; nil for a plain failure
	What string // what is wrong and where: file, offset, tid
	Kept string // what was left untouched, as a sentence without a full stop; may be empty
	Next string // what to do next; may be empty
	Err  error  // the cause; may be nil
}

// Error returns what is wrong with its cause, on one line. Kept and Next are for Explain.
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.What
	case e.What == "":
		return e.Err.Error()
	}
	return e.What + ": " + e.Err.Error()
}

// Unwrap returns the kind and the cause, so that errors.Is finds both.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Kind != nil {
		errs = append(errs, e.Kind)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// New returns an *Error of that kind with a formatted What.
func New(kind error, format string, args ...any) *Error {
	return &Error{Kind: kind, What: fmt.Sprintf(format, args...)}
}

// Keeping sets what was left untouched and returns e.
func (e *Error) Keeping(format string, args ...any) *Error {
	e.Kept = fmt.Sprintf(format, args...)
	return e
}

// Remedy sets what to do next and returns e.
func (e *Error) Remedy(format string, args ...any) *Error {
	e.Next = fmt.Sprintf(format, args...)
	return e
}

// Because sets the cause and returns e.
func (e *Error) Because(err error) *Error {
	e.Err = err
	return e
}

// Kept returns the first note in the chain of err about what was left untouched, or "".
func Kept(err error) string { return note(err, func(e *Error) string { return e.Kept }) }

// Next returns the first note in the chain of err about what to do next, or "".
func Next(err error) string { return note(err, func(e *Error) string { return e.Next }) }

func note(err error, field func(*Error) string) string {
	var e *Error
	for errors.As(err, &e) {
		if s := field(e); s != "" {
			return s
		}
		if e.Err == nil {
			return ""
		}
		err = e.Err
	}
	return ""
}

// Explain returns err as an operator should read it: the failure, then what was left untouched, then the
// next step, each on a line of its own.
func Explain(err error) string {
	var b strings.Builder
	b.WriteString(err.Error())
	if s := Kept(err); s != "" {
		b.WriteString("\n  untouched: " + s)
	}
	if s := Next(err); s != "" {
		b.WriteString("\n  next: " + s)
	}
	return b.String()
}

// ExitCode returns the process exit code for err: 0 for nil, 1 for an error of no kind.
func ExitCode(err error) int {
	for _, k := range []struct {
		kind error
		code int
	}{{Usage, 2}, {Refused, 3}, {Unverified, 4}, {Diverged, 5}, {Gap, 6}, {Busy, 75}} {
		if errors.Is(err, k.kind) {
			return k.code
		}
	}
	if err != nil {
		return 1
	}
	return 0
}
