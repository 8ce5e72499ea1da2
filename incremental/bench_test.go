package incremental

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The file system is part of what these measure.

func BenchmarkBackupDelta(b *testing.B) {
	for _, codec := range []string{"gzip", "none"} {
		for _, size := range []int{10 << 10, 10 << 20} {
			b.Run(fmt.Sprintf("%s/%dKiB", codec, size>>10), func(b *testing.B) {
				w := newWorld(b)
				w.grow(3)
				w.backup()
				b.SetBytes(int64(size))
				for b.Loop() {
					b.StopTimer()
					for until := w.g.Size() + int64(size); w.g.Size() < until; {
						w.now = w.now.Add(time.Second)
						_, err := w.g.CommitRandom(w.rng, 10, 10<<10)
						require.NoError(b, err)
					}
					b.StartTimer()
					require.Equal(b, "delta", w.backup(func(o *BackupOptions) { o.Codec = codec }).Action)
				}
			})
		}
	}
}

func BenchmarkBackupNothingChanged(b *testing.B) {
	for _, increments := range []int{10, 1000} {
		b.Run(fmt.Sprintf("increments=%d", increments), func(b *testing.B) {
			w := newWorld(b)
			for range increments {
				w.grow(1)
				w.backup()
			}
			for b.Loop() {
				require.Equal(b, "none", w.backup().Action)
			}
		})
	}
}

func BenchmarkGzip(b *testing.B) {
	raw := text(32 << 20)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(len(raw)))
		for b.Loop() {
			w := gzipCodec{}.NewWriter(io.Discard, Effort{})
			_, err := w.Write(raw)
			require.NoError(b, err)
			require.NoError(b, w.Close())
		}
	})
	members := stored(b, gzipCodec{}, raw, len(raw))
	var one bytes.Buffer // as repozo writes it
	z := gzip.NewWriter(&one)
	_, err := z.Write(raw)
	require.NoError(b, err)
	require.NoError(b, z.Close())
	for name, file := range map[string][]byte{"read": members, "read one member": one.Bytes()} {
		sum := md5.Sum(raw)
		inc := Increment{File: "x.fsz", End: int64(len(raw)), MD5: hex.EncodeToString(sum[:]), codec: gzipCodec{}}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				require.NoError(b, inc.decode(b.Context(), "memory", bytes.NewReader(file), io.Discard, 0))
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, codec := range []string{"gzip", "none"} {
		for _, quick := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/quick=%v", codec, quick), func(b *testing.B) {
				w := newWorld(b)
				for w.g.Size() < 32<<20 {
					_, err := w.g.CommitRandom(w.rng, 10, 10<<10)
					require.NoError(b, err)
				}
				w.backup(func(o *BackupOptions) { o.Codec = codec })
				b.SetBytes(w.g.Size())
				for b.Loop() {
					_, err := Verify(b.Context(), w.repo, VerifyOptions{Quick: quick})
					require.NoError(b, err)
				}
			})
		}
	}
}
