package filestorage

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// many builds a file of n transactions of the size that a ZODB's often are: a few records, some hundred bytes.
func many(n int) *builder {
	b := newBuilder()
	data := bytes.Repeat([]byte("x"), 300)
	for i := range n {
		b.txn(' ', "user", obj{oid: OID(i), data: data}, obj{oid: OID(i / 2), data: data}, obj{oid: OID(i / 3), data: data[:40]})
	}
	return b
}

// measured is what every benchmark of a file's bytes begins with.
func measured(b *testing.B, size int64) {
	b.SetBytes(size)
	b.ReportAllocs()
}

func BenchmarkScan(b *testing.B) {
	small := many(20_000).file(b)
	size, err := small.Size()
	require.NoError(b, err)
	b.Run("transactions", func(b *testing.B) {
		measured(b, size)
		for b.Loop() {
			_, err := small.Committed(context.Background(), MagicSize)
			require.NoError(b, err)
		}
	})
	b.Run("records", func(b *testing.B) {
		measured(b, size)
		for b.Loop() {
			for t, err := range small.Transactions(MagicSize) {
				require.NoError(b, err)
				for _, err := range t.Records() {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		}
	})
	b.Run("large", func(b *testing.B) { // what a transaction holds is skipped
		osf, end := sparse(b, 2000, 1<<20)
		f, err := NewFile(OSFile{osf}, "Data.fs")
		require.NoError(b, err)
		measured(b, end)
		for b.Loop() {
			_, err := f.Committed(context.Background(), MagicSize)
			require.NoError(b, err)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	raw := many(20_000).b
	for name, onRecord := range map[string]func(Record, []byte) error{
		"headers": nil,
		"blobs":   func(_ Record, head []byte) error { IsBlob(head); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			measured(b, int64(len(raw)))
			for b.Loop() {
				c := NewChecker("Data.fs", 0)
				c.OnRecord = onRecord
				_, err := c.Write(raw)
				require.NoError(b, err)
			}
		})
	}
}

const indexObjects = 10_000_000

// ordered is an index as an index file or a Data.fs without deletions makes it.
func ordered(n int) *Index {
	x := &Index{}
	for i := range n {
		x.Set(OID(i), int64(i)*100+52)
	}
	return x
}

// shuffled is an index whose oids came in any order, as they do after years of changes and packs.
func shuffled(n int) *Index {
	x, rng := &Index{}, rand.New(rand.NewPCG(1, 2))
	for i := range n {
		x.Set(OID(rng.Uint64N(uint64(2*n))), int64(i)*100+52)
	}
	return x
}

func BenchmarkIndex(b *testing.B) {
	f := many(20_000).file(b)
	size, err := f.Size()
	require.NoError(b, err)
	b.Run("scratch", func(b *testing.B) {
		measured(b, size)
		for b.Loop() {
			_, err := f.ExtendIndex(context.Background(), &Index{}, MagicSize, size, nil)
			require.NoError(b, err)
		}
	})
	for name, build := range map[string]func(int) *Index{"set": ordered, "set-shuffled": shuffled} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				build(indexObjects / 10)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(indexObjects/10), "ns/object")
		})
	}
	x := ordered(indexObjects)
	var file bytes.Buffer
	require.NoError(b, WriteIndex(&file, x, 1<<40))
	b.Run("write", func(b *testing.B) {
		measured(b, int64(file.Len()))
		for b.Loop() {
			require.NoError(b, WriteIndex(io.Discard, x, 1<<40))
		}
	})
	b.Run("read", func(b *testing.B) {
		measured(b, int64(file.Len()))
		for b.Loop() {
			_, _, err := ReadIndex(bytes.NewReader(file.Bytes()), "Data.fs.index")
			require.NoError(b, err)
		}
	})
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		i := uint64(1)
		for b.Loop() {
			i = i*6364136223846793005 + 1442695040888963407
			x.Get(OID(i >> 33 % indexObjects))
		}
	})
}
