package gentle

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// onDisk makes a file on a disk, not in memory as the other tests' are, that nothing of is in the cache.
func onDisk(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "gentle")
	if err != nil {
		t.Skip("no /var/tmp: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		t.Skip("/var/tmp is not on a disk")
	}
	raw := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(raw)
	path := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, raw, 0o644))
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	require.NoError(t, f.Sync())
	drop(t, f)
	return f, raw
}

func drop(t *testing.T, f *os.File) {
	t.Helper()
	require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// cached returns how many pages of a part of the file are in the cache.
func cached(t *testing.T, f *os.File, off int64, size int) (n int) {
	t.Helper()
	other, err := os.Open(f.Name()) // looking must change nothing at f
	require.NoError(t, err)
	defer other.Close()
	there := Open(other).resident(off, size)
	require.NotNil(t, there)
	for _, p := range there {
		n += int(p & 1)
	}
	return n
}

var ways = map[string]bool{"as this kernel does it": false, "as older kernels do it": true}

func TestWhatTheServerHasInTheCacheStaysAndNothingElse(t *testing.T) {
	const size, warm = 8 << 20, 1 << 20
	for name, old := range ways {
		t.Run(name, func(t *testing.T) {
			// On a busy machine the kernel may take a page away, or read one, on its own: then it is tried again.
			var before, after, theirs int
			for range 10 {
				f, raw := onDisk(t, size)
				// The server has read the second MiB, with a descriptor of its own.
				server, err := os.Open(f.Name())
				require.NoError(t, err)
				defer server.Close()
				require.NoError(t, unix.Fadvise(int(server.Fd()), 0, 0, unix.FADV_RANDOM))
				_, err = server.ReadAt(make([]byte, warm), warm)
				require.NoError(t, err)
				before = cached(t, f, 0, size)

				g := Open(f)
				g.unable.Store(old)
				got, err := io.ReadAll(io.NewSectionReader(g, 5, size-5))
				require.NoError(t, err)
				require.True(t, bytes.Equal(raw[5:], got))
				theirs, after = cached(t, f, warm, warm), cached(t, f, 0, size)
				if before >= warm/int(pageSize) && theirs == warm/int(pageSize) && after <= before+8 {
					return
				}
			}
			require.Equal(t, warm/int(pageSize), theirs, "what the server had is still there")
			require.LessOrEqual(t, after, before+8, "hardly anything more is")
		})
	}
}

func TestReadingIsAsUsual(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, []byte("0123456789"), 0o644))
	for _, old := range ways {
		f, err := os.Open(path)
		require.NoError(t, err)
		g := Open(f)
		g.unable.Store(old)
		size, err := g.Size()
		require.NoError(t, err)
		require.EqualValues(t, 10, size)
		for _, off := range []int64{0, 3, 10, 5000} {
			for _, n := range []int{0, 1, 7, 10, 20} {
				want, got := make([]byte, n), make([]byte, n)
				k, werr := f.ReadAt(want, off)
				m, err := g.ReadAt(got, off)
				require.Equal(t, k, m)
				require.Equal(t, werr, err)
				require.Equal(t, want, got)
			}
		}
		require.NoError(t, f.Close())
		_, err = g.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, os.ErrClosed)
	}
}

func TestWritingIsAsUsualAndDoesNotStay(t *testing.T) {
	disk, _ := onDisk(t, 1)
	for name, old := range ways {
		t.Run(name, func(t *testing.T) {
			raw := make([]byte, 64<<20)
			rand.NewChaCha8([32]byte{1}).Read(raw)
			f, err := os.Create(filepath.Join(filepath.Dir(disk.Name()), "written"))
			require.NoError(t, err)
			defer f.Close()
			g := Open(f)
			g.unable.Store(old)
			n, err := io.CopyBuffer(g.Writer(), struct{ io.Reader }{bytes.NewReader(raw)}, make([]byte, 300<<10))
			require.NoError(t, err)
			require.EqualValues(t, len(raw), n)
			require.NoError(t, f.Sync())
			if !g.unable.Load() {
				require.Less(t, cached(t, f, keepWritten, len(raw)-keepWritten), len(raw)/2/int(pageSize))
			}
			got, err := os.ReadFile(f.Name())
			require.NoError(t, err)
			require.True(t, bytes.Equal(raw, got))
		})
	}
}

func TestAFullDiskIsToldAsUsual(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip(err)
	}
	require.NoError(t, err)
	defer f.Close()
	for _, old := range ways {
		g := Open(f)
		g.unable.Store(old)
		w := g.Writer()
		w.n = keepWritten
		_, err = w.Write([]byte("x"))
		require.ErrorIs(t, err, unix.ENOSPC)
	}
}
