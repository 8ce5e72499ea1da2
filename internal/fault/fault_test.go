package fault

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryKindHasItsExitCode(t *testing.T) {
	for kind, code := range map[error]int{Usage: 2, Refused: 3, Unverified: 4, Diverged: 5, Gap: 6, Busy: 75, Unreachable: 1} {
		require.Equal(t, code, ExitCode(New(kind, "x")), kind)
		require.Equal(t, code, ExitCode(fmt.Errorf("while backing up: %w", New(nil, "x").Because(New(kind, "y")))), kind)
	}
	require.Equal(t, 0, ExitCode(nil))
	require.Equal(t, 1, ExitCode(errors.New("plain")))
}

func TestARefusalIsMoreThanTheLockThatCausedIt(t *testing.T) {
	require.Equal(t, 3, ExitCode(New(Refused, "in use").Because(New(Busy, "locked"))))
}

func TestExplainTellsCauseKeptAndNext(t *testing.T) {
	inner := New(Gap, "b.deltafs is missing").Keeping("inner").Remedy("ship again")
	err := New(nil, "increment b").Because(inner).Keeping("Data.fs is as it was")
	require.Equal(t, "increment b: b.deltafs is missing\n  untouched: Data.fs is as it was\n  next: ship again", Explain(err))
	require.ErrorIs(t, err, Gap)
	require.Equal(t, "plain", Explain(errors.New("plain")))
}

func TestNotesAreFoundThroughJoinedErrors(t *testing.T) {
	err := errors.Join(errors.New("first"), New(Gap, "second").Remedy("do this"))
	require.Equal(t, "do this", Next(err))
	require.ErrorIs(t, err, Gap)
}
