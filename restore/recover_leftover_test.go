package restore

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/durable"
)

// A recovery that was killed leaves a temporary file as large as the database. Whatever the next one does, it is gone
// afterwards.
func TestWhatAKilledRecoveryLeftIsGoneAfterTheNext(t *testing.T) {
	r := newRecoveries(t)
	for _, how := range outputs {
		t.Run("output "+how, func(t *testing.T) {
			r.t = t
			r.before(how)
			for _, left := range []string{durable.TempSuffix, ".index" + durable.TempSuffix, ".index.index_tmp"} {
				require.NoError(t, os.WriteFile(r.out+left, r.all[6].raw, 0o600))
			}
			_, err := r.recover()
			require.NoError(t, err)
			r.whole()
		})
	}
}
