package incremental

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

func ourZstd(r io.Reader) (io.ReadCloser, error) { return zstdCodec{}.NewReader(r, 0) }

// frame is one as we write it, without a table.
func frame(raw []byte) []byte {
	var b bytes.Buffer
	if err := compressFrame(raw, &b, zstdLevel); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// tabled puts a right table behind frames, of which the raw sizes are given.
func tabled(frames [][]byte, raw ...int) []byte {
	var entries []byte
	for i, f := range frames {
		entries = appendEntry(entries, len(f), raw[i])
	}
	head := binary.LittleEndian.AppendUint32(nil, tableMagic)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(entries)+tableFooter))
	return append(slices.Concat(frames...), appendFooter(append(head, entries...), len(frames))...)
}

func TestZstdFrames(t *testing.T) {
	for _, size := range []int{0, 1, 300, frameSize, 3*frameSize + 17} {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprintf("%d bytes with %d jobs", size, n), func(t *testing.T) {
				raw := text(size)
				var b bytes.Buffer
				w := zstdCodec{}.NewWriter(&b, Effort{Level: 1, Jobs: n})
				for part := range slices.Chunk(raw, 1<<20) {
					_, err := w.Write(part)
					require.NoError(t, err)
				}
				require.NoError(t, w.Close())
				r, err := zstdCodec{}.NewReader(bytes.NewReader(b.Bytes()), n)
				require.NoError(t, err)
				got, err := io.ReadAll(r)
				require.NoError(t, err)
				require.NoError(t, r.Close())
				same(t, raw, got)

				var whole bytes.Buffer
				r, err = zstdCodec{}.NewReader(bytes.NewReader(b.Bytes()), n)
				require.NoError(t, err)
				k, err := io.Copy(&whole, r)
				require.NoError(t, err)
				require.EqualValues(t, size, k)
				same(t, raw, whole.Bytes())

				// Any zstd takes it for one stream.
				plain, err := zstd.NewReader(bytes.NewReader(b.Bytes()))
				require.NoError(t, err)
				defer plain.Close()
				got, err = io.ReadAll(plain)
				require.NoError(t, err)
				same(t, raw, got)

				// By the table at the end every frame is found.
				end := b.Len() - tableFooter
				frames := int(binary.LittleEndian.Uint32(b.Bytes()[end:]))
				require.Equal(t, (size+frameSize-1)/frameSize, frames)
				require.Equal(t, []byte{0, 0xb1, 0xea, 0x92, 0x8f}, b.Bytes()[end+4:])
				entries := b.Bytes()[end-8*frames : end]
				require.Equal(t, []byte{0x5e, 0x2a, 0x4d, 0x18}, b.Bytes()[end-8*frames-8:][:4])
				at, total := 0, 0
				for e := range slices.Chunk(entries, 8) {
					n, k := int(binary.LittleEndian.Uint32(e)), int(binary.LittleEndian.Uint32(e[4:]))
					got, err := plain.DecodeAll(b.Bytes()[at:at+n], nil)
					require.NoError(t, err)
					same(t, raw[total:total+k], got)
					at, total = at+n, total+k
				}
				require.Equal(t, size, total)
				require.Equal(t, end-8*frames-8, at)
			})
		}
	}
}

func TestZstdThatIsTruncatedOrDamagedIsAnError(t *testing.T) {
	raw := slices.Concat(text(400), text(70), text(3000))
	whole := tabled([][]byte{frame(text(400)), frame(text(70)), frame(text(3000))}, 400, 70, 3000)
	read := func(b []byte) made { return readWith(ourZstd, bytes.NewReader(b), noLimit) }
	got := read(whole)
	require.NoError(t, got.err)
	same(t, raw, got.raw)
	for n := range whole {
		got := read(whole[:n])
		require.ErrorIs(t, got.err, io.ErrUnexpectedEOF, "cut at %d", n)
		require.True(t, bytes.HasPrefix(raw, got.raw))
		require.Error(t, read(append(bytes.Clone(whole[:n]), whole[n+1:]...)).err, "without byte %d", n)
		got = readWith(ourZstd, io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(errBroken)), noLimit)
		require.ErrorIs(t, got.err, errBroken, "unreadable from %d on", n)
		got = readWith(ourZstd, iotest.OneByteReader(bytes.NewReader(whole[:n])), noLimit)
		require.ErrorIs(t, got.err, io.ErrUnexpectedEOF)
	}
	for bit := range 8 * len(whole) {
		bad := bytes.Clone(whole)
		bad[bit/8] ^= 1 << (bit % 8)
		if got := read(bad); got.err == nil { // a bit without a meaning
			same(t, raw, got.raw)
		}
	}
	for _, more := range [][]byte{{0}, []byte("garbage"), whole, frame(text(5)), make([]byte, 5000)} {
		require.ErrorContains(t, read(append(bytes.Clone(whole), more...)).err, "something follows")
	}
}

func TestOnlyFramesAsWeWriteThemAreTaken(t *testing.T) {
	encode := func(raw []byte, o ...zstd.EOption) []byte {
		e, err := zstd.NewWriter(nil, o...)
		require.NoError(t, err)
		return e.EncodeAll(raw, nil)
	}
	streamed := func(raw []byte) []byte {
		var b bytes.Buffer
		e, err := zstd.NewWriter(&b)
		require.NoError(t, err)
		_, err = e.Write(raw)
		require.NoError(t, err)
		require.NoError(t, e.Flush())
		require.NoError(t, e.Close())
		return b.Bytes()
	}
	good := frame(text(50))
	for _, tt := range []struct {
		name string
		file []byte
		want string
	}{
		{"no zstd at all", []byte("FS30 and more of it"), "magic"},
		{"gzip", ours(text(1000)), "magic"},
		{"a frame that does not tell its size", tabled([][]byte{good, streamed(text(1000))}, 50, 1000), "size is not told"},
		{"a frame without a checksum", tabled([][]byte{encode(text(1000), zstd.WithEncoderCRC(false))}, 1000), "without a checksum"},
		{"a frame that is too large", tabled([][]byte{encode(text(frameSize + 1))}, frameSize+1), "size is not told, or not between"},
		{"another skippable frame", slices.Concat(good, []byte("\x50\x2a\x4d\x18\x02\x00\x00\x00ab"), tabled([][]byte{good}, 50)), "skippable"},
		{"frames and no table", slices.Concat(good, good), "unexpected EOF"},
		{"a table of other frames", tabled([][]byte{good}, 51), "not of the frames before it"},
		{"a table of more frames", slices.Concat(good, tabled([][]byte{good}, 50)), "2 frames were read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.ErrorContains(t, readWith(ourZstd, bytes.NewReader(tt.file), noLimit).err, tt.want)
		})
	}
}

// A frame that claims little and holds much must not be decoded whole.
func TestAForgedZstdFrameIsNotDecodedBeyondItsBound(t *testing.T) {
	bomb := frame(make([]byte, frameSize))
	var h zstd.Header
	require.NoError(t, h.Decode(bomb))
	// Its content size, the last 4 bytes of the header, is made smaller; then its blocks go far beyond that.
	binary.LittleEndian.PutUint32(bomb[h.HeaderSize-4:], 1<<17)
	got := readWith(ourZstd, bytes.NewReader(tabled([][]byte{bomb}, 1<<17)), noLimit)
	require.Error(t, got.err)
	require.Empty(t, got.raw)

	// Blocks without end, none of which holds anything.
	endless := append(bytes.Clone(frame(text(5000))[:h.HeaderSize]), make([]byte, 40<<20)...)
	require.Error(t, readWith(ourZstd, bytes.NewReader(endless), noLimit).err)
}

func TestZstdToAFullDisk(t *testing.T) {
	raw := noise(frameSize)
	before := runtime.NumGoroutine()
	for _, room := range []int{0, 1, frameSize / 2, frameSize} {
		w := zstdCodec{}.NewWriter(&fullAfter{room}, Effort{})
		var failed error
		for i := 0; i < 100 && failed == nil; i++ {
			_, failed = w.Write(raw)
		}
		require.ErrorIs(t, failed, errFull)
		require.ErrorIs(t, w.Close(), errFull)
	}
	w := zstdCodec{}.NewWriter(&fullAfter{len(frame(text(9)))}, Effort{})
	_, err := w.Write(text(9))
	require.NoError(t, err)
	require.ErrorIs(t, w.Close(), errFull, "the table does not fit")
	for i := 0; i < 1e6 && runtime.NumGoroutine() > before; i++ {
		runtime.Gosched() // the last encoders may be at their end
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before, "no goroutine is left")
}

func TestAZstdReaderThatIsClosedHasNothingUnderWay(t *testing.T) {
	raw := text(6 * frameSize)
	b := stored(t, zstdCodec{}, raw, len(raw))
	for _, n := range []int64{0, 1, frameSize, 3*frameSize + 1, 7 * frameSize} {
		r, err := zstdCodec{}.NewReader(bytes.NewReader(b), 4)
		require.NoError(t, err)
		_, _ = io.CopyN(io.Discard, r, n)
		under := slices.Clone(r.(*zstdReader).queue)
		require.LessOrEqual(t, len(under), 5)
		require.NoError(t, r.Close())
		for _, u := range under {
			select {
			case <-u.done:
			default:
				require.Fail(t, "a goroutine is left")
			}
		}
		_, err = r.Read(make([]byte, 10))
		require.ErrorIs(t, err, errClosed)
		require.NoError(t, r.Close(), "twice is well")
	}
}

func TestEveryLevelOfEveryCodecReadsTheSame(t *testing.T) {
	raw := slices.Concat(text(100<<10), noise(30<<10), make([]byte, 50<<10))
	for _, c := range codecs {
		first, last, usual := c.Levels()
		sizes := make(map[int]int)
		for level := first; level <= last; level++ {
			var b bytes.Buffer
			w := c.NewWriter(&b, Effort{Level: level})
			_, err := w.Write(raw)
			require.NoError(t, err)
			require.NoError(t, w.Close())
			sizes[level] = b.Len()
			r, err := c.NewReader(&b, 0)
			require.NoError(t, err)
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			same(t, raw, got)
			require.NoError(t, checkLevel(c, level))
		}
		if last > 0 {
			require.NotEqual(t, sizes[last], sizes[first])
			require.Equal(t, sizes[usual], len(stored(t, c, raw, len(raw))), "the default")
			require.Error(t, checkLevel(c, first-2))
		}
		require.Error(t, checkLevel(c, last+1))
	}
}
