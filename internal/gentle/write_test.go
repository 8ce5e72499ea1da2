package gentle

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func created(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWhatIsThereAlreadyIsNotWrittenAgain(t *testing.T) {
	raw := bytes.Repeat([]byte("0123456789"), 100)
	for _, there := range []int{0, 1, 99, 100, 101, 999, 1000} {
		for _, piece := range []int{1, 7, 100, 1000} {
			f := created(t)
			_, err := f.Write(bytes.Repeat([]byte("x"), there))
			require.NoError(t, err)
			w := Open(f).WriterAfter(int64(there))
			for at := 0; at < len(raw); at += piece {
				p := raw[at:min(at+piece, len(raw))]
				n, err := w.Write(p)
				require.NoError(t, err)
				require.Equal(t, len(p), n)
			}
			require.NoError(t, w.Sync())
			got, err := os.ReadFile(f.Name())
			require.NoError(t, err)
			require.Equal(t, string(bytes.Repeat([]byte("x"), there))+string(raw[there:]), string(got))
		}
	}
}

func TestTheDiskIsAtWorkWhileMoreIsWritten(t *testing.T) {
	w := Open(created(t)).Writer()
	w.every = 10
	var begun atomic.Int32
	told := make(chan error)
	w.sync = func() error { begun.Add(1); return <-told }
	write := func(n int) {
		t.Helper()
		_, err := w.Write(make([]byte, n))
		require.NoError(t, err)
	}
	write(9)
	require.Zero(t, begun.Load())
	write(1)
	for begun.Load() == 0 {
		runtime.Gosched()
	}
	write(100) // one is under way: no other is begun, and nobody waits
	told <- nil
	require.NoError(t, w.Close())
	require.EqualValues(t, 1, begun.Load())
	write(1) // the hundred before it are not durable
	told <- nil
	require.NoError(t, w.Close())
	require.EqualValues(t, 2, begun.Load())
	write(9)
	require.NoError(t, w.Close())
	require.EqualValues(t, 2, begun.Load())
	go func() { told <- nil }()
	require.NoError(t, w.Sync())
	require.EqualValues(t, 3, begun.Load())
}

// The kernel tells an error of an fsync to the first who asks.
func TestWhatOneFsyncCouldNotWriteIsNeverTakenForDurable(t *testing.T) {
	broken := errors.New("input/output error")
	for name, end := range map[string]func(*Writer) error{
		"the next write": func(w *Writer) error {
			for range 1000000 {
				if _, err := w.Write(nil); err != nil {
					return err
				}
				runtime.Gosched()
			}
			return nil
		},
		"the last sync": (*Writer).Sync,
		"close":         (*Writer).Close,
	} {
		t.Run(name, func(t *testing.T) {
			w := Open(created(t)).Writer()
			w.every = 10
			first := true
			w.sync = func() error {
				defer func() { first = false }()
				if first {
					return broken
				}
				return nil
			}
			_, err := w.Write(make([]byte, 10))
			require.NoError(t, err)
			require.ErrorIs(t, end(w), broken)
			require.ErrorIs(t, w.Sync(), broken, "and again")
			_, err = w.Write([]byte("more"))
			require.ErrorIs(t, err, broken)
		})
	}
}
