package filestorage

import (
	"bytes"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// oids draws oids that lie close together, in a few places, or anywhere.
func oids() *rapid.Generator[OID] {
	return rapid.OneOf(
		rapid.Map(rapid.Uint64Range(0, 2000), func(n uint64) OID { return OID(n) }),
		rapid.Map(rapid.Uint64Range(1<<32-300, 1<<32+300), func(n uint64) OID { return OID(n) }),
		rapid.Map(rapid.Uint64Range(0, 30), func(n uint64) OID { return OID(n << 59) }),
		rapid.Map(rapid.Uint64(), func(n uint64) OID { return OID(n) }),
		rapid.Just(OID(math.MaxUint64)),
	)
}

func requireSame(t require.TestingT, model map[OID]int64, x *Index) {
	require.Equal(t, len(model), x.Len())
	keys := slices.Sorted(maps.Keys(model))
	i := 0
	for oid, pos := range x.All() {
		if i >= len(keys) || keys[i] != oid || model[oid] != pos {
			require.FailNow(t, "the index differs", "entry %d: oid %s at %d", i, oid, pos)
		}
		i++
	}
	require.Equal(t, len(keys), i)
	for oid, want := range model {
		pos, ok := x.Get(oid)
		if !ok || pos != want {
			require.FailNow(t, "the index differs", "oid %s: %d, %v, not %d", oid, pos, ok, want)
		}
	}
}

func TestIndexIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		model, x := map[OID]int64{}, &Index{}
		for range rapid.IntRange(0, 60).Draw(t, "runs") {
			start := oids().Draw(t, "start")
			step := OID(rapid.SampledFrom([]uint64{0, 1, 1, 2, 7, 100, 1 << 20, 1 << 31, 1<<64 - 1}).Draw(t, "step"))
			for i := range rapid.IntRange(1, 400).Draw(t, "n") {
				oid, pos := start+OID(i)*step, int64(len(model)+i)
				model[oid] = pos
				x.Set(oid, pos)
			}
			probe := oids().Draw(t, "probe")
			want, there := model[probe]
			pos, ok := x.Get(probe)
			require.Equal(t, there, ok)
			require.Equal(t, want, pos)
		}
		requireSame(t, model, x)
	})
}

func TestIndexFilledInAnyOrder(t *testing.T) {
	const n = 30000
	for name, oid := range map[string]func(i int) OID{
		"upwards":   func(i int) OID { return OID(i) },
		"downwards": func(i int) OID { return OID(n - i) },
		"shuffled":  func(i int) OID { return OID(i * 7919 % n) },
		"random":    func(i int) OID { return OID(rand.New(rand.NewPCG(uint64(i), 0)).Uint64()) },
		"far apart": func(i int) OID { return OID(i) << 40 },
	} {
		t.Run(name, func(t *testing.T) {
			model, x := map[OID]int64{}, &Index{}
			for i := range n {
				model[oid(i)] = int64(i)
				x.Set(oid(i), int64(i))
			}
			requireSame(t, model, x)
		})
	}
}

func TestAnEmptyIndex(t *testing.T) {
	var x Index
	_, ok := x.Get(0)
	require.False(t, ok)
	require.Zero(t, x.Len())
	for range x.All() {
		t.Fatal("nothing is there")
	}
	x.Set(5, 10)
	for range x.All() {
		break
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestIndexTakesLittleMemory(t *testing.T) {
	const million = 1_000_000
	shuffled := rand.New(rand.NewPCG(1, 1)).Perm(million)
	for _, c := range []struct {
		name string
		n    int
		most float64 // bytes an object; 24 are promised
		oid  func(i int) OID
	}{
		{"oids one after the other", million, 13, func(i int) OID { return OID(i) }},
		{"ten million of them", 10 * million, 13, func(i int) OID { return OID(i) }},
		{"every 256th oid", million, 13, func(i int) OID { return OID(i << 8) }},
		{"every 65536th oid", million, 13, func(i int) OID { return OID(i << 16) }},
		{"oids in any order", million, 18, func(i int) OID { return OID(shuffled[i]) }},
		{"every 1000th oid in any order", million, 18, func(i int) OID { return OID(shuffled[i] * 1000) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := heap()
			x := &Index{}
			for i := range c.n {
				x.Set(c.oid(i), int64(i))
			}
			used := float64(heap()-before) / float64(c.n)
			t.Logf("%.1f bytes an object", used)
			require.Less(t, used, c.most)
			require.Equal(t, c.n, x.Len())
		})
	}
	runtime.KeepAlive(shuffled)
}

func TestAnIndexSurvivesItsFile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := &Index{}
		pos := rapid.OneOf(rapid.Int64Range(5, 1<<17), rapid.Int64Range(5, 1<<33), rapid.Int64Range(5, maxLength)).Draw(t, "pos")
		for range rapid.IntRange(0, 20).Draw(t, "runs") {
			start := oids().Draw(t, "start")
			for i := range rapid.IntRange(1, 100).Draw(t, "n") {
				x.Set(start+OID(i), rapid.Int64Range(MagicSize, pos-1).Draw(t, "at"))
			}
		}
		var b bytes.Buffer
		require.NoError(t, WriteIndex(&b, x, pos))
		y, at, err := ReadIndex(bytes.NewReader(b.Bytes()), "Data.fs.index")
		require.NoError(t, err)
		require.Equal(t, pos, at)
		requireSame(t, maps.Collect(x.All()), y)
		var again bytes.Buffer
		require.NoError(t, WriteIndex(&again, y, pos))
		require.Equal(t, b.Bytes(), again.Bytes())
	})
}
