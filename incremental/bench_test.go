package incremental

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The file system is part of what the benchmarks of backups and verify measure. Those of codecs and hashes use one core:
// -cpu 1 leaves out even the collector's other one.

// prose makes n bytes that compress as a Data.fs does, about 2.8 times with gzip: words as frequent as in a language, and
// some that cannot be compressed, as images are.
func prose(n int) []byte {
	rng := rand.New(rand.NewPCG(3, 5))
	words := make([][]byte, 20000)
	for i := range words {
		w := make([]byte, 2+rng.IntN(9))
		for k := range w {
			w[k] = "etaoinshrdlucmfwypvbgkjqxz"[min(rng.IntN(26), rng.IntN(26))]
		}
		words[i] = append(w, ' ')
	}
	zipf := rand.NewZipf(rng, 1.15, 3, uint64(len(words)-1))
	b := make([]byte, 0, n+4096)
	for len(b) < n {
		for until := len(b) + 24<<10; len(b) < until; {
			b = append(b, words[zipf.Uint64()]...)
		}
		for range 2 << 10 / 8 {
			b = append(b, fmt.Sprintf("%x", rng.Uint32())[:2]...)
		}
	}
	return b[:n]
}

const benchBytes = 16 << 20

// levels are the ones of a codec, and 0 for none.
func levels(c Codec) []int {
	first, last, _ := c.Levels()
	var ls []int
	for l := first; l <= last; l++ {
		ls = append(ls, l)
	}
	return ls
}

func BenchmarkEncode(b *testing.B) {
	raw := prose(benchBytes)
	for _, c := range codecs {
		for _, level := range levels(c) {
			b.Run(fmt.Sprintf("%s-%d", c.Name(), level), func(b *testing.B) {
				var size counting64
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				for b.Loop() {
					size = 0
					w := c.NewWriter(&size, Effort{Level: level, Jobs: 1})
					_, err := w.Write(raw)
					require.NoError(b, err)
					require.NoError(b, w.Close())
				}
				b.ReportMetric(float64(len(raw))/float64(size), "raw/stored")
			})
		}
	}
}

// counting64 counts what is written to it.
type counting64 int64

func (c *counting64) Write(p []byte) (int, error) {
	*c += counting64(len(p))
	return len(p), nil
}

func BenchmarkDecode(b *testing.B) {
	raw := prose(benchBytes)
	var repozo bytes.Buffer // one member
	z, err := gzip.NewWriterLevel(&repozo, gzip.BestCompression)
	require.NoError(b, err)
	_, err = z.Write(raw)
	require.NoError(b, err)
	require.NoError(b, z.Close())
	for _, c := range []struct {
		name   string
		codec  Codec
		stored []byte
	}{
		{"gzip", gzipCodec{}, stored(b, gzipCodec{}, raw, len(raw))},
		{"repozo", gzipCodec{}, repozo.Bytes()},
		{"zstd", zstdCodec{}, stored(b, zstdCodec{}, raw, len(raw))},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				r, err := c.codec.NewReader(bytes.NewReader(c.stored), 1)
				require.NoError(b, err)
				n, err := io.Copy(io.Discard, r)
				require.NoError(b, err)
				require.EqualValues(b, len(raw), n)
				require.NoError(b, r.Close())
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	raw := prose(benchBytes)
	beside := func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		b.ReportAllocs()
		for b.Loop() {
			one, other := aside(md5.New()), aside(sha256.New())
			for rest := raw; len(rest) > 0; {
				n := min(1<<20, len(rest))
				one.Write(rest[:n])
				other.Write(rest[:n])
				rest = rest[n:]
			}
			one.Sum(nil)
			other.Sum(nil)
			one.end()
			other.end()
		}
	}
	for name, h := range map[string]hash.Hash{"md5": md5.New(), "sha256": sha256.New()} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				h.Reset()
				h.Write(raw)
			}
		})
	}
	b.Run("both-aside", beside)
}

func BenchmarkBackup(b *testing.B) {
	for _, codec := range codecs {
		for _, size := range []int{10 << 10, 10 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", codec.Name(), size>>10), func(b *testing.B) {
				w := newWorld(b)
				set := func(o *BackupOptions) { o.Codec = codec.Name() }
				w.grow(3)
				w.backup(set)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					for until := w.g.Size() + int64(size); w.g.Size() < until; {
						w.now = w.now.Add(time.Second)
						_, err := w.g.CommitRandom(w.rng, 10, 10<<10)
						require.NoError(b, err)
					}
					b.StartTimer()
					require.Equal(b, "delta", w.backup(set).Action)
				}
			})
		}
	}
}

func BenchmarkNothingChanged(b *testing.B) {
	for _, increments := range []int{10, 1000} {
		b.Run(fmt.Sprintf("increments=%d", increments), func(b *testing.B) {
			w := newWorld(b)
			for range increments {
				w.grow(1)
				w.backup()
			}
			b.ReportAllocs()
			for b.Loop() {
				require.Equal(b, "none", w.backup().Action)
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, codec := range codecs {
		for _, quick := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/quick=%v", codec.Name(), quick), func(b *testing.B) {
				w := newWorld(b)
				for w.g.Size() < benchBytes {
					_, err := w.g.CommitRandom(w.rng, 10, 10<<10)
					require.NoError(b, err)
				}
				w.backup(func(o *BackupOptions) { o.Codec = codec.Name() })
				b.SetBytes(w.g.Size())
				b.ReportAllocs()
				for b.Loop() {
					_, err := Verify(b.Context(), w.repo, VerifyOptions{Quick: quick})
					require.NoError(b, err)
				}
			})
		}
	}
}
