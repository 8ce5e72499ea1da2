package restore

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
)

// However the bytes are cut into pieces, a header at the seam included, what comes out ends with the moment.
func TestTheMomentIsCutOutOfPiecesOfAnySize(t *testing.T) {
	v := newVault(t)
	v.commit(4)
	raw := v.bytes()
	for _, size := range []int{1, 2, 7, 22, 23, 24, 64, 1000, len(raw)} {
		for _, m := range moments(t, raw) {
			var out bytes.Buffer
			check := filestorage.NewChecker("Data.fs", 0)
			check.StopAfter = m.tid
			c := &cutter{check: check, out: &out, tell: func(int64, int64) {}, total: int64(len(raw))}
			for b := raw; len(b) > 0; b = b[min(size, len(b)):] {
				_, err := c.Write(b[:min(size, len(b))])
				require.NoError(t, err)
			}
			require.NoError(t, check.Close())
			requireSame(t, m.raw, out.Bytes())
		}
	}
}
