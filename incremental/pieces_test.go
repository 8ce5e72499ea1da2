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
		running, most, all := 0, 0, make(chan struct{})
		begin := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			if running += n; running == jobs && most < jobs {
				close(all)
			}
			most = max(most, running)
		}
		p := &pieceWriter{size: memberSize, encode: func([]byte, *bytes.Buffer) error {
			begin(1)
			defer begin(-1)
			select {
			case <-all:
			case <-time.After(time.Minute):
			}
			time.Sleep(20 * time.Millisecond) // one too many would begin
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
