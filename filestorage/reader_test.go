package filestorage

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"zodbrepl/internal/fault"
)

func TestOnlyADataFSIsOpened(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ name, content, want string }{
		{"an empty file is refused", "", "the file is empty"},
		{"a file shorter than the magic is refused", "FS3", "only 3 bytes long"},
		{"another file is refused", "#!/bin/sh", `begins with "#!/b"`},
		{"another magic is refused", "FS20....", `begins with "FS20"`},
		{"Python 3's is opened", "FS30", ""},
		{"Python 2's is opened", "FS21", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(dir, "Data.fs")
			require.NoError(t, os.WriteFile(path, []byte(c.content), 0o600))
			f, closer, err := Open(path)
			if c.want == "" {
				require.NoError(t, err)
				require.Equal(t, path, f.Name())
				require.NoError(t, closer.Close())
				return
			}
			require.ErrorIs(t, err, ErrNotFileStorage)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, path)
			require.NotEmpty(t, fault.Next(err))
		})
	}
}

func TestOnlyARegularFileIsOpened(t *testing.T) {
	dir := t.TempDir()
	pipe, socket := filepath.Join(dir, "pipe"), filepath.Join(dir, "s")
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	for path, want := range map[string]string{dir: "a directory", pipe: "a pipe", "/dev/null": "a device"} {
		done := make(chan error, 1)
		go func() { _, err := OpenRegular(path); done <- err }()
		select {
		case err := <-done:
			require.ErrorContains(t, err, want)
		case <-time.After(10 * time.Second):
			t.Fatalf("opening %s blocks", path)
		}
	}
	_, err = OpenRegular(socket)
	require.Error(t, err)
	_, err = OpenRegular(filepath.Join(dir, "nothing"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, _, err = Open(filepath.Join(dir, "nothing"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestWindowShowsTheFilesBytes(t *testing.T) {
	content := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	for _, reader := range []io.ReaderAt{memory(content), stingy{content, 1000}} {
		w := window{r: reader}
		off := int64(0)
		for range 5000 {
			switch r.IntN(10) {
			case 0:
				off = r.Int64N(int64(len(content)) + 100)
			case 1:
				off = max(0, off-r.Int64N(5000))
			default:
				off += r.Int64N(3000)
			}
			n := r.IntN(3000)
			b, err := w.view(off, n)
			if off+int64(n) <= int64(len(content)) {
				require.NoError(t, err)
				require.Equal(t, content[off:off+int64(n)], b)
			} else {
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
				require.Equal(t, content[min(off, int64(len(content))):], b)
			}
		}
	}
}

func TestWindowReadsLittleFarApartAndMuchInOrder(t *testing.T) {
	c := &counting{Reader: memory(make([]byte, 16<<20))}
	w := window{r: c}
	for off := int64(0); off < 16<<20; off += 1 << 20 {
		_, err := w.view(off, 42)
		require.NoError(t, err)
	}
	require.EqualValues(t, 16*windowMin, c.bytes.Load(), "one page for each header")
	c.bytes.Store(0)
	c.reads.Store(0)
	for off := int64(0); off < 15<<20; off += 100 {
		_, err := w.view(off, 42)
		require.NoError(t, err)
	}
	require.Less(t, c.reads.Load(), int64(100), "many headers at once")
	require.LessOrEqual(t, c.bytes.Load(), int64(16<<20))
}

func TestMeta(t *testing.T) {
	b := newBuilder()
	b.b = append(b.b, TxnHeader{TID: 1, Status: ' ', Length: 23 + 9, UserLen: 2, DescriptionLen: 3, ExtensionLen: 4}.Append(nil)...)
	b.b = append(append(b.b, "uudddeeee"...), u64(32)...)
	for tr, err := range b.file(t).Transactions(MagicSize) {
		require.NoError(t, err)
		u, d, e, err := tr.Meta()
		require.NoError(t, err)
		require.Equal(t, "uu ddd eeee", string(u)+" "+string(d)+" "+string(e))

		cut := b.file(t)
		tr.file = cut
		cut.r = memory(b.b[:30])
		_, _, _, err = tr.Meta()
		var shrunk *ShrunkError
		require.ErrorAs(t, err, &shrunk, "what is not there any more is not empty")
		cut.r = failing{b.b, 30}
		_, _, _, err = tr.Meta()
		require.ErrorIs(t, err, errBroken)
	}
}
