package incremental

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// text makes n bytes that gzip can make smaller, not the same in every member.
func text(n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), 7))
	b := make([]byte, 0, n+20)
	for len(b) < n {
		b = fmt.Appendf(b, "item-%d the page ", rng.IntN(100000))
	}
	return b[:n]
}

func stored(t testing.TB, c Codec, raw []byte, piece int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := c.NewWriter(&b, Effort{})
	for len(raw) > 0 {
		n := min(piece, len(raw))
		k, err := w.Write(raw[:n])
		require.NoError(t, err)
		require.Equal(t, n, k)
		raw = raw[n:]
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func TestGzipMembers(t *testing.T) {
	for _, size := range []int{0, 1, 100, memberSize - 1, memberSize, memberSize + 1, 5 * memberSize, 5*memberSize + 17} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			raw := text(size)
			b := stored(t, gzipCodec{}, raw, 1<<20)
			r, err := gzipCodec{}.NewReader(bytes.NewReader(b), 0)
			require.NoError(t, err)
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			same(t, raw, got)

			std, err := gzip.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			got, err = io.ReadAll(std)
			require.NoError(t, err)
			same(t, raw, got)

			// From member to member by the extra field, without unpacking. The trailer tells CRC and raw size.
			members, total := 0, 0
			for rest := b; len(rest) > 0; members++ {
				require.Equal(t, []byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0}, rest[:8], "FEXTRA and nothing else; no time")
				require.Equal(t, []byte{8, 0, 'Z', 'R', 4, 0}, rest[10:16])
				n := int(binary.LittleEndian.Uint32(rest[memberField:]))
				require.LessOrEqual(t, n, len(rest))
				k := int(binary.LittleEndian.Uint32(rest[n-4:]))
				require.LessOrEqual(t, k, memberSize)
				require.Equal(t, crc32.ChecksumIEEE(raw[total:total+k]), binary.LittleEndian.Uint32(rest[n-8:]))
				total += k
				rest = rest[n:]
			}
			require.Equal(t, size, total)
			require.Equal(t, max(1, (size+memberSize-1)/memberSize), members)
		})
	}
}

func TestGzipIsTheSameOnEveryHost(t *testing.T) {
	raw := text(3*memberSize + 5)
	want := stored(t, gzipCodec{}, raw, len(raw))
	for _, cores := range []int{1, 2, 7} {
		was := runtime.GOMAXPROCS(cores)
		for _, piece := range []int{1 << 20, 333333, memberSize} {
			same(t, want, stored(t, gzipCodec{}, raw, piece))
		}
		runtime.GOMAXPROCS(was)
	}
}

var errFull = errors.New("no space left on device")

// fullAfter takes n bytes.
type fullAfter struct{ n int }

func (f *fullAfter) Write(p []byte) (int, error) {
	if len(p) > f.n {
		n := f.n
		f.n = 0
		return n, errFull
	}
	f.n -= len(p)
	return len(p), nil
}

func TestGzipToAFullDisk(t *testing.T) {
	raw := text(memberSize)
	before := runtime.NumGoroutine()
	for _, room := range []int{0, 1, 100, memberSize / 4, memberSize} {
		w := gzipCodec{}.NewWriter(&fullAfter{room}, Effort{})
		var failed error
		for i := 0; i < 100 && failed == nil; i++ { // far more than is ever under way: it must not go on for ever
			_, failed = w.Write(raw[:memberSize])
		}
		require.ErrorIs(t, failed, errFull)
		require.ErrorIs(t, w.Close(), errFull)

		w = gzipCodec{}.NewWriter(&fullAfter{0}, Effort{})
		_, err := w.Write([]byte("little"))
		require.NoError(t, err, "nothing was written out yet")
		require.ErrorIs(t, w.Close(), errFull, "so Close tells it")
	}
	for i := 0; i < 1e6 && runtime.NumGoroutine() > before; i++ {
		runtime.Gosched()
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before, "no goroutine is left")
}

func TestGzipThatIsDamaged(t *testing.T) {
	raw := text(memberSize + 1000)
	b := stored(t, gzipCodec{}, raw, len(raw))
	read := func(b []byte) ([]byte, error) {
		r, err := gzipCodec{}.NewReader(bytes.NewReader(b), 0)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	second := int(binary.LittleEndian.Uint32(b[memberField:]))
	for _, i := range []int{0, 1, 2, 5000, second / 2, second - 5, second, second + 1, second + 100, len(b) - 8, len(b) - 1} {
		bad := bytes.Clone(b)
		bad[i] ^= 0x55
		_, err := read(bad)
		require.Error(t, err, "byte %d", i)
	}
	_, err := read(append(bytes.Clone(b), "garbage"...))
	require.Error(t, err)
	r, err := gzipCodec{}.NewReader(iotest.ErrReader(errBroken), 0)
	require.ErrorIs(t, err, errBroken)
	require.Nil(t, r)
}

// The memory of writing does not depend on the size.
func TestGzipInBoundedMemory(t *testing.T) {
	raw := text(memberSize)
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapSys
	}
	w := gzipCodec{}.NewWriter(io.Discard, Effort{})
	base := heap()
	for range 60 {
		_, err := w.Write(raw)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	require.Less(t, heap(), base+uint64(48<<20)*uint64(max(1, min(runtime.GOMAXPROCS(0), gzipJobs))/2+1), "120 MiB went through")
}

func TestPlainIsWhatItIs(t *testing.T) {
	raw := text(100000)
	same(t, raw, stored(t, noneCodec{}, raw, 777))
	r, err := noneCodec{}.NewReader(bufio.NewReader(bytes.NewReader(raw)), 0)
	require.NoError(t, err)
	require.NoError(t, iotest.TestReader(r, raw))
}
