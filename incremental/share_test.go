package incremental

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhatIsSharedIsNotWrittenAgain(t *testing.T) {
	raw := text(1000)
	for _, there := range []int{0, 1, 99, 100, 101, 999, 1000} {
		for _, piece := range []int{1, 7, 100, 1000} {
			var out bytes.Buffer
			w := &behind{&out, int64(there)}
			for at := 0; at < len(raw); at += piece {
				p := raw[at:min(at+piece, len(raw))]
				n, err := w.Write(p)
				require.NoError(t, err)
				require.Equal(t, len(p), n)
			}
			same(t, raw[there:], out.Bytes())
		}
	}
	w := &behind{&fullAfter{0}, 10}
	n, err := w.Write(raw[:15])
	require.ErrorIs(t, err, errFull)
	require.Equal(t, 10, n)
}
