package targettest

import (
	"fmt"
	"io/fs"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func contractRename(t *testing.T, p Place) {
	mustPublish(t, p, file, []byte("the file"))
	mustPublish(t, p, "other", []byte("what had the name"))
	require.NoError(t, p.Rename(t.Context(), file, "other"))
	require.Equal(t, []string{"other"}, names(t, p))
	sameBytes(t, []byte("the file"), get(t, p, "other"))
}

func contractRenameNothing(t *testing.T, p Place) {
	mustPublish(t, p, "other", []byte("stays"))
	mustPut(t, p, file, []byte("not published"))
	require.ErrorIs(t, p.Rename(t.Context(), file, "other"), fs.ErrNotExist)
	require.Equal(t, []string{"other"}, names(t, p))
	sameBytes(t, []byte("stays"), get(t, p, "other"))
}

func contractRenameOnce(t *testing.T, p Place) {
	for round := range 20 {
		mustPublish(t, p, file, []byte("the file"))
		const n = 6
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { errs[i] = p.Rename(t.Context(), file, fmt.Sprintf("taken-%d", i)) })
		}
		wg.Wait()
		won := -1
		for i, err := range errs {
			if err == nil {
				require.Equal(t, -1, won, "round %d: %d and %d", round, won, i)
				won = i
				continue
			}
			require.ErrorIs(t, err, fs.ErrNotExist)
		}
		require.Equal(t, []string{fmt.Sprintf("taken-%d", won)}, names(t, p))
		require.NoError(t, p.Remove(t.Context(), fmt.Sprintf("taken-%d", won)))
	}
}
