package restore

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The file system, and the fsyncs that the standby waits for, are part of what these measure.

// enlarge commits so many bytes.
func (p *pair) enlarge(bytes int64) {
	for until := p.g.Size() + bytes; p.g.Size() < until; {
		_, err := p.g.CommitRandom(p.rng, 10, 10<<10)
		require.NoError(p.t, err)
	}
}

func BenchmarkReplay(b *testing.B) {
	const size = 10 << 20
	for _, codec := range []string{"gzip", "zstd", "none"} {
		for _, before := range []int64{1 << 20, 64 << 20} { // the cost must not depend on it
			b.Run(fmt.Sprintf("%s/standby=%dMiB", codec, before>>20), func(b *testing.B) {
				p := newPair(b)
				p.codec = codec
				p.enlarge(before)
				p.backup()
				p.ship()
				_, err := p.watch()
				require.NoError(b, err)
				s := &standby{data: p.data, log: discard, now: p.now}
				require.NoError(b, openStandby(b.Context(), s, p.shipped))
				defer s.close()
				require.NoError(b, s.needIndex(b.Context()))
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					p.enlarge(size)
					p.backup()
					p.ship()
					b.StartTimer()
					n, err := s.catchUp(b.Context(), p.shipped)
					require.NoError(b, err)
					require.Equal(b, 1, n)
				}
			})
		}
	}
}

func BenchmarkRecover(b *testing.B) {
	for _, codec := range []string{"gzip", "zstd", "none"} {
		b.Run(codec, func(b *testing.B) {
			p := newPair(b)
			p.codec = codec
			p.enlarge(32 << 20)
			p.backup()
			b.SetBytes(p.g.Size())
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				output := filepath.Join(p.dir, fmt.Sprintf("out-%d.fs", n))
				_, err := Recover(b.Context(), RecoverOptions{Source: p.repo, Output: output})
				require.NoError(b, err)
			}
		})
	}
}
