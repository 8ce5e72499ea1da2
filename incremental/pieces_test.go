package incremental

import (
	"bytes"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAsManyPiecesAreUnderWayAsThereAreJobs(t *testing.T) {
	for _, jobs := range []int{1, 2, 5} {
		var mu sync.Mutex
		running, most := 0, 0
		begin := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			running += n
			most = max(most, running)
		}
		p := &pieceWriter{size: memberSize, encode: func([]byte, *bytes.Buffer) error {
			begin(1)
			time.Sleep(20 * time.Millisecond) // until the others have begun
			begin(-1)
			return nil
		}}
		p.start(io.Discard, jobs)
		for range 4 * jobs {
			_, err := p.Write(make([]byte, memberSize))
			require.NoError(t, err)
		}
		require.NoError(t, p.Close())
		require.Equal(t, jobs, most)
	}
}
