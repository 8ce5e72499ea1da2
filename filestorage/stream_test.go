package filestorage

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// checkSlowly is CheckFile without the stream.
func checkSlowly(f *File) (Health, error) {
	c := &fsck{file: f, index: &Index{}, slow: true}
	err := c.run(context.Background(), nil)
	c.Objects = c.index.Len()
	if err == nil {
		err = c.first
	}
	if c.OK = err == nil; !c.OK {
		c.Problem = err.Error()
	}
	return c.Health, err
}

// large has transactions of all kinds, over many blocks.
func large() *builder {
	b := newBuilder()
	rng := rand.New(rand.NewPCG(5, 6))
	for range 500 {
		var objs []obj
		for range 1 + rng.IntN(5) {
			oid := OID(rng.IntN(300))
			o := obj{oid: oid, data: bytes.Repeat([]byte{7}, rng.IntN(8000))}
			if rng.IntN(5) == 0 {
				o.data, o.back = nil, b.index[oid]
			}
			objs = append(objs, o)
		}
		b.txn("         pu"[rng.IntN(11)], "abc"[:rng.IntN(4)], objs...)
	}
	return b
}

func TestAFileIsCheckedInAStreamAsTransactionByTransaction(t *testing.T) {
	compare := func(f *File, what string, args ...any) {
		t.Helper()
		want, wantErr := checkSlowly(f)
		got, err := f.CheckFile(t.Context(), nil)
		require.Equal(t, want, got, what, args)
		require.Equal(t, fmt.Sprint(wantErr), fmt.Sprint(err))
	}
	b := large()
	require.Greater(t, len(b.b), 3*blockSize)
	compare(b.file(t), "whole")
	h, err := b.file(t).CheckFile(t.Context(), nil)
	require.NoError(t, err)
	require.EqualValues(t, 500, h.Transactions)
	compare(sample().file(t), "sample")
	rng := rand.New(rand.NewPCG(7, 8))
	for range 40 {
		compare(b.of(t, b.b[:MagicSize+rng.IntN(len(b.b)-MagicSize)]), "cut")
		at := b.ends[rng.IntN(len(b.ends))] + rng.Int64N(80) - 20
		if at < int64(len(b.b)) {
			compare(b.of(t, patched(b.b, at, byte(rng.Uint32()))), "patched at %d", at)
		}
	}
	small := randomFile(3, 12)
	for i := MagicSize; i < len(small.b); i++ {
		compare(small.of(t, patched(small.b, int64(i), small.b[i]^0x15)), "byte %d", i)
	}
}

func TestAnObjectTwiceInATransactionHasOnePreviousRecord(t *testing.T) {
	b := newBuilder()
	b.txn(StatusCommitted, "", obj{oid: 1, data: []byte("first")}, obj{oid: 2, data: []byte("x")})
	b.txn(StatusCommitted, "", obj{oid: 1, data: []byte("second")}, obj{oid: 2, data: []byte("y")}, obj{oid: 1, data: []byte("third")}, obj{oid: 1, data: []byte("fourth")})
	x := &Index{}
	mismatches, err := b.file(t).ExtendIndex(t.Context(), x, MagicSize, int64(len(b.b)), nil)
	require.NoError(t, err)
	require.Zero(t, mismatches)
	at, _ := x.Get(1)
	require.Equal(t, int64(len(b.b))-trailerSize-int64(len("fourth"))-DataHeaderSize, at, "the last one counts")
	x = &Index{}
	x.Set(1, 4711)
	mismatches, err = b.file(t).ExtendIndex(t.Context(), x, MagicSize, int64(len(b.b)), nil)
	require.NoError(t, err)
	require.EqualValues(t, 1, mismatches, "the first record of 1 has no previous one, the index knew one")
}

func TestSwapTellsWhatWasThere(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	model, x := map[OID]int64{}, &Index{}
	for i := range 20000 {
		oid := OID(rng.Uint64N(3000)) << (rng.UintN(3) * 20)
		want, there := model[oid]
		old, ok := x.Swap(oid, int64(i))
		require.Equal(t, there, ok)
		require.Equal(t, want, old)
		model[oid] = int64(i)
	}
	requireSame(t, model, x)
}

func TestBlocksAreReadAheadAndLeaveNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	raw := make([]byte, 5*blockSize+17)
	rand.NewChaCha8([32]byte{}).Read(raw)
	copy(raw, "FS30")
	f, err := NewFile(memory(raw), "Data.fs")
	require.NoError(t, err)
	for _, from := range []int64{0, 1, blockSize, int64(len(raw))} {
		var got []byte
		for b, err := range f.blocks(t.Context(), from, int64(len(raw))) {
			require.NoError(t, err)
			got = append(got, b...)
		}
		require.True(t, bytes.Equal(raw[from:], got))
	}
	for range f.blocks(t.Context(), 0, int64(len(raw))) {
		break // the rest is not wanted
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var failed error
	for _, err := range f.blocks(ctx, 0, int64(len(raw))) {
		cancel()
		failed = err
	}
	require.ErrorIs(t, failed, context.Canceled)
	for _, err := range f.blocks(t.Context(), 0, int64(len(raw))+1) {
		failed = err
	}
	var shrunk *ShrunkError
	require.ErrorAs(t, failed, &shrunk)
	for i := 0; i < 1e6 && runtime.NumGoroutine() > before; i++ {
		runtime.Gosched()
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before)
}
