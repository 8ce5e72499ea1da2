package restore

import (
	"errors"

	"zodbrepl/internal/fault"
)

// The names of conditions.
const (
	conditionCurrent   = "current"
	conditionBehind    = "behind" // in a Status only
	conditionGap       = "gap"
	conditionBad       = "bad-increment"
	conditionStale     = "stale-epoch"
	conditionAddress   = "master-address"
	conditionName      = "address-unknown" // a name given with --refuse-if-address cannot be resolved
	conditionDiverged  = "divergence"
	conditionNoSource  = "source-unreadable"
	conditionUnwritten = "failed"
	conditionPending   = "rejoin-pending" // in a Status only: a rejoin died
	conditionHanded    = "handed-over"    // to another host; watch has not been started here yet
)

func conditionOf(err error) Condition {
	if err == nil {
		return Condition{Name: conditionCurrent}
	}
	c := Condition{Name: conditionUnwritten, Message: err.Error(), Next: fault.Next(err)}
	var src *sourceError
	var addr *addressError
	var name *unresolvedError
	switch {
	case errors.Is(err, fault.Diverged):
		c.Name = conditionDiverged
	case errors.As(err, &addr):
		c.Name = conditionAddress
	case errors.As(err, &name):
		c.Name = conditionName
	case errors.Is(err, fault.Refused):
		c.Name = conditionStale
	case errors.As(err, &src), errors.Is(err, fault.Unreachable):
		c.Name = conditionNoSource
	case errors.Is(err, fault.Gap):
		c.Name = conditionGap
	case errors.Is(err, fault.Unverified):
		c.Name = conditionBad
	}
	return c
}

// sourceError is a source that cannot be read.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// unreadable makes a sourceError that has a remedy.
func unreadable(err error) error {
	if fault.Next(err) == "" {
		err = fault.New(nil, "the source cannot be read").Because(err).Keeping("Data.fs is as it was").
			Remedy("see to its mount, line and rights; watch goes on by itself when it can be read again")
	}
	return &sourceError{err}
}
