package incremental

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
)

// increment is an increment of those raw bytes, with what a manifest says of the stored ones.
func increment(raw, file []byte, c Codec) Increment {
	sum, storedSum := md5.Sum(raw), sha256.Sum256(file)
	return Increment{File: "x.fs", End: int64(len(raw)), MD5: hex.EncodeToString(sum[:]), codec: c,
		Manifest: &Manifest{StoredSize: int64(len(file)), StoredSHA256: hex.EncodeToString(storedSum[:])}}
}

// A bubble of synctest fails when a goroutine is left in it for ever.
func TestDecodingLeavesNoGoroutine(t *testing.T) {
	cores(t, 3)
	raw := text(4*memberSize + 100)
	for _, c := range []struct {
		name  string
		codec Codec
		file  []byte
	}{
		{"gzip", gzipCodec{}, stored(t, gzipCodec{}, raw, len(raw))},
		{"none", noneCodec{}, raw},
		{"zstd", zstdCodec{}, stored(t, zstdCodec{}, raw, len(raw))},
		{"repozo's", gzipCodec{}, foreign(raw, gzip.Header{Name: "x"})},
	} {
		name, file, inc := c.name, c.file, increment(raw, c.file, c.codec)
		try := func(t *testing.T, ctx context.Context, inc Increment, r io.Reader, w io.Writer) (err error) {
			open := 0
			inc.codec = opening{inc.codec, &open}
			decode := func(*testing.T) { err = inc.decode(ctx, "repository", r, w, 0) }
			if c.name != "zstd" {
				synctest.Test(t, decode)
			} else { // decoders are used again and have channels, which must not cross bubbles
				before := runtime.NumGoroutine()
				decode(t)
				for i := 0; i < 1e6 && runtime.NumGoroutine() > before; i++ {
					runtime.Gosched()
				}
				require.LessOrEqual(t, runtime.NumGoroutine(), before, "no goroutine is left")
			}
			require.Zero(t, open, "its reader was closed")
			return err
		}
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			require.NoError(t, try(t, t.Context(), inc, bytes.NewReader(file), &out))
			same(t, raw, out.Bytes())
			for _, n := range []int{0, 1, memberSize, 2*memberSize + 5, len(raw) - 1} {
				require.ErrorIs(t, try(t, t.Context(), inc, bytes.NewReader(file), &fullAfter{n}), errFull, "a disk that is full after %d bytes", n)
			}
			for _, n := range []int{0, 1, len(file) / 3, len(file) - 1, len(file)} {
				r := io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(errBroken))
				err := try(t, t.Context(), inc, r, io.Discard)
				require.ErrorIs(t, err, errBroken, "unreadable from %d on", n)
				require.NotErrorIs(t, err, fault.Unverified, "a disk that fails is no damage")
				if n < len(file) {
					require.ErrorIs(t, try(t, t.Context(), inc, bytes.NewReader(file[:n]), io.Discard), fault.Unverified, "cut at %d", n)
				}
			}
			for _, reads := range []int{1, 2, 5} {
				ctx, cancel := context.WithCancel(t.Context())
				left := reads
				require.ErrorIs(t, try(t, ctx, inc, reading{iotest.HalfReader(bytes.NewReader(file)), func() {
					if left--; left == 0 {
						cancel()
					}
				}}, io.Discard), context.Canceled)
				cancel()
			}
			longer, shorter, other, lie := inc, inc, inc, inc
			longer.End++
			shorter.End--
			other.MD5 = "0123456789abcdef0123456789abcdef"
			lie.Manifest = &Manifest{StoredSize: int64(len(file)), StoredSHA256: other.MD5}
			for want, inc := range map[string]Increment{"should be 8388709": longer, "holds more than": shorter, "have md5": other, "has SHA-256": lie} {
				err := try(t, t.Context(), inc, bytes.NewReader(file), io.Discard)
				require.ErrorIs(t, err, fault.Unverified)
				require.ErrorContains(t, err, want)
			}
		})
	}
}

// opening counts its readers that are open.
type opening struct {
	Codec
	n *int
}

func (o opening) NewReader(r io.Reader, _ int) (io.ReadCloser, error) {
	z, err := o.Codec.NewReader(r, 0)
	if err != nil {
		return nil, err
	}
	*o.n++
	return struct {
		io.Reader
		io.Closer
	}{z, closing(func() error { *o.n--; return z.Close() })}, nil
}

type closing func() error

func (c closing) Close() error { return c() }

// reading calls do before every read.
type reading struct {
	io.Reader
	do func()
}

func (r reading) Read(p []byte) (int, error) {
	r.do()
	return r.Reader.Read(p)
}

func TestAHashAsideIsTheSameHash(t *testing.T) {
	for _, size := range []int{0, 1, asidePiece - 1, asidePiece, asidePiece + 1, 9*asidePiece + 3} {
		raw := text(size)
		for _, piece := range []int{1000, asidePiece - 1, asidePiece, asidePiece + 1, 3 * asidePiece} {
			synctest.Test(t, func(t *testing.T) {
				h := aside(crc32.NewIEEE())
				defer h.end()
				for part := range slices.Chunk(raw, piece) {
					given := bytes.Clone(part)
					n, err := h.Write(given)
					require.NoError(t, err)
					require.Equal(t, len(part), n)
					clear(given) // a buffer belongs to the caller again
				}
				want := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(raw))
				require.Equal(t, want, h.Sum(nil))
				require.Equal(t, want, h.Sum(nil))
				_, _ = h.Write([]byte("more"))
				require.Equal(t, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(append(raw[:size:size], "more"...))), h.Sum(nil))
			})
		}
	}
}
