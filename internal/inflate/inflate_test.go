package inflate

import (
	"bytes"
	"compress/flate"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	klauspost "github.com/klauspost/compress/flate"
	"github.com/stretchr/testify/require"
)

func deflated(t testing.TB, raw []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	require.NoError(t, err)
	_, err = w.Write(raw)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func deflatedFast(t testing.TB, raw []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := klauspost.NewWriter(&b, level)
	require.NoError(t, err)
	_, err = w.Write(raw)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

// contents is bytes of every kind: literals, runs, repetitions near and far, and all together.
func contents(t testing.TB) map[string][]byte {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 100<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	few := bytes.Clone(noise)
	for i := range few {
		few[i] = "etaoinsh rdlu\n\x00zq"[few[i]>>4]
	}
	skewed := make([]byte, 100<<10) // so that some codes are as long as they get
	for i := range skewed {
		n := 0
		for rng.IntN(2) == 0 && n < 200 {
			n++
		}
		skewed[i] = byte(n)
	}
	source, err := os.ReadFile("inflate.go")
	require.NoError(t, err)
	var periods []byte
	for n := 1; n < 40; n++ {
		periods = append(periods, bytes.Repeat(noise[n*40:n*40+n], 300/n+rng.IntN(9))...)
	}
	all := map[string][]byte{
		"nothing": nil, "a byte": {7}, "zeros": make([]byte, 300<<10), "noise": noise, "few": few, "skewed": skewed, "source": source, "periods": periods,
		"far": append(append(bytes.Clone(noise[:32700]), periods...), noise[:32700]...),
	}
	var mixed []byte
	for _, name := range []string{"few", "zeros", "source", "noise", "periods", "source"} {
		mixed = append(mixed, all[name][:min(len(all[name]), 20<<10+rng.IntN(999))]...)
	}
	all["mixed"] = mixed
	return all
}

func TestWhatWasDeflatedComesBack(t *testing.T) {
	var d Decoder
	for name, raw := range contents(t) {
		for level := -2; level <= 9; level++ {
			for _, src := range [][]byte{deflated(t, raw, level), deflatedFast(t, raw, level)} {
				dst := make([]byte, len(raw))
				n, used, ok := d.Decode(dst, src)
				require.True(t, ok, "%s at level %d", name, level)
				require.Equal(t, len(raw), n)
				require.Equal(t, len(src), used)
				require.True(t, bytes.Equal(raw, dst), "%s at level %d", name, level)

				n, used, ok = d.Decode(make([]byte, len(raw)+1000), append(bytes.Clone(src), "what follows it"...))
				require.True(t, ok)
				require.Equal(t, len(raw), n)
				require.Equal(t, len(src), used)
				if len(raw) > 0 {
					_, _, ok = d.Decode(dst[:len(raw)-1], src)
					require.False(t, ok, "it does not fit")
				}
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, raw := range contents(f) {
		raw = raw[:min(len(raw), 3000)]
		for _, level := range []int{-2, 0, 1, 6, 9} {
			f.Add(deflated(f, raw, level), len(raw))
		}
		f.Add(deflatedFast(f, raw, 5), len(raw)+300)
	}
	f.Fuzz(func(t *testing.T, src []byte, size int) { asTheLibraries(t, src, size&(1<<20-1)) })
}

// asTheLibraries decodes anything, with memory around it that must not be touched, and compares.
func asTheLibraries(t testing.TB, src []byte, size int) {
	t.Helper()
	var d Decoder
	room := bytes.Repeat([]byte{0xa5}, size+64)
	n, used, ok := d.Decode(room[:size:size], src)
	require.LessOrEqual(t, n, size)
	require.Equal(t, bytes.Repeat([]byte{0xa5}, 64), room[size:])
	in := bytes.NewReader(src)
	want, err := io.ReadAll(io.LimitReader(flate.NewReader(in), int64(size)+1))
	if good := err == nil && len(want) <= size; good != ok {
		require.Equal(t, good, ok, "%v", err)
	}
	if ok {
		require.True(t, bytes.Equal(want, room[:n]))
		require.Equal(t, len(src)-in.Len(), used)
	}
}

func TestWhateverIsDecodedIsWhatTheLibraryDecodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for name, raw := range contents(t) {
		raw = raw[:min(len(raw), 2500)]
		for _, src := range [][]byte{deflated(t, raw, 9), deflated(t, raw, 0), deflated(t, raw, -2), deflatedFast(t, raw, 1)} {
			for range 300 {
				bad := bytes.Clone(src)
				switch rng.IntN(3) {
				case 0:
					bad = bad[:rng.IntN(len(bad))]
				case 1:
					bad[rng.IntN(min(100, len(bad)))] ^= 1 << rng.IntN(8)
				default:
					bad[rng.IntN(len(bad))] = byte(rng.Uint32())
				}
				asTheLibraries(t, bad, len(raw)+rng.IntN(2)*400)
			}
			require.NotEmpty(t, name)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	raw := bytes.Repeat(contents(b)["mixed"], 10)
	src := deflatedFast(b, raw, 6)
	dst := make([]byte, len(raw))
	var d Decoder
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, _, ok := d.Decode(dst, src); !ok {
			b.Fatal("wrong")
		}
	}
}
