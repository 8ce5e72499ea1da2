package transport_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/transport"
	"zodbrepl/transport/targettest"
)

func TestDirectoryTarget(t *testing.T) {
	targettest.Contract(t, func(t *testing.T) targettest.Place {
		dir := t.TempDir()
		target, err := transport.OpenTarget(t.Context(), dir)
		require.NoError(t, err)
		return targettest.Place{Target: target, Dir: dir}
	})
}
