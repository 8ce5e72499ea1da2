package filestorage

import (
	"bytes"
	"context"
	"io"
	"testing"
)

func BenchmarkCommittedOfLargeTransactions(b *testing.B) {
	osf, end := sparse(b, 2000, 1<<20)
	f, err := NewFile(OSFile{osf}, "Data.fs")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(end)
	for b.Loop() {
		if _, err := f.Committed(context.Background(), MagicSize); err != nil {
			b.Fatal(err)
		}
	}
}

// many builds a file of n transactions of the size that a ZODB's often are: a few records, some hundred bytes.
func many(n int) *builder {
	b := newBuilder()
	data := bytes.Repeat([]byte("x"), 300)
	for i := range n {
		b.txn(' ', "user", obj{oid: OID(i), data: data}, obj{oid: OID(i / 2), data: data}, obj{oid: OID(i / 3), data: data[:40]})
	}
	return b
}

func BenchmarkCommittedOfSmallTransactions(b *testing.B) {
	f := many(20_000).file(b)
	size, _ := f.Size()
	b.SetBytes(size)
	for b.Loop() {
		if _, err := f.Committed(context.Background(), MagicSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChecker(b *testing.B) {
	raw := many(20_000).b
	for name, onRecord := range map[string]func(Record, []byte) error{
		"headers": nil,
		"heads":   func(_ Record, head []byte) error { IsBlob(head); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				c := NewChecker("Data.fs", 0)
				c.OnRecord = onRecord
				if _, err := c.Write(raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkExtendIndex(b *testing.B) {
	f := many(20_000).file(b)
	size, _ := f.Size()
	b.SetBytes(size)
	for b.Loop() {
		if _, err := f.ExtendIndex(context.Background(), &Index{}, MagicSize, size, nil); err != nil {
			b.Fatal(err)
		}
	}
}

const benchObjects = 10_000_000

func bigIndex() *Index {
	x := &Index{}
	for i := range benchObjects {
		x.Set(OID(i), int64(i)*100+52)
	}
	return x
}

func BenchmarkIndexBuild10M(b *testing.B) {
	for b.Loop() {
		bigIndex()
	}
}

func BenchmarkIndexWrite10M(b *testing.B) {
	x := bigIndex()
	for b.Loop() {
		if err := WriteIndex(io.Discard, x, 1<<40); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIndexRead10M(b *testing.B) {
	var buf bytes.Buffer
	if err := WriteIndex(&buf, bigIndex(), 1<<40); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, err := ReadIndex(bytes.NewReader(buf.Bytes()), "Data.fs.index"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIndexGet(b *testing.B) {
	x := bigIndex()
	i := uint64(1)
	for b.Loop() {
		i = i*6364136223846793005 + 1442695040888963407
		x.Get(OID(i >> 33 % benchObjects))
	}
}
