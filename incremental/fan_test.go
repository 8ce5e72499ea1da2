package incremental

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func TestEveryWriterGetsAllThatIsReadInOrder(t *testing.T) {
	for _, size := range []int{0, 1, slabSize - 1, slabSize, slabSize + 1, 5*slabSize + 7} {
		for _, slabs := range []int{1, 2, 3, 20} {
			raw := text(size)
			var a, b, c bytes.Buffer
			n, err := fanOut(iotest.HalfReader(bytes.NewReader(raw)), slabs, &a, &b, &c)
			require.NoError(t, err)
			require.EqualValues(t, size, n)
			for _, got := range []*bytes.Buffer{&a, &b, &c} {
				same(t, raw, got.Bytes())
			}
		}
	}
}

func TestAFailureOfAnyoneEndsTheFan(t *testing.T) {
	before := runtime.NumGoroutine()
	raw := text(6*slabSize + 5)
	var good bytes.Buffer
	endless := io.MultiReader(bytes.NewReader(raw), zeros{})
	_, err := fanOut(endless, 4, &good, &fullAfter{2*slabSize + 3})
	require.ErrorIs(t, err, errFull)
	require.LessOrEqual(t, good.Len(), 2*slabSize+3+5*slabSize, "not much more is read")

	// Of several it is the first writer's, whichever came first.
	for range 20 {
		_, err = fanOut(bytes.NewReader(raw), 8, &fullAfter{0}, refusing{})
		require.ErrorIs(t, err, errFull)
		_, err = fanOut(bytes.NewReader(raw), 8, refusing{}, &fullAfter{0})
		require.ErrorIs(t, err, errRefusing)
	}

	// The reader's comes with what was read before; io.ErrUnexpectedEOF is one.
	for _, bad := range []error{errors.New("unreadable"), io.ErrUnexpectedEOF} {
		var got bytes.Buffer
		n, err := fanOut(io.MultiReader(bytes.NewReader(raw), iotest.ErrReader(bad)), 4, &got)
		require.ErrorIs(t, err, bad)
		require.EqualValues(t, len(raw), n)
		same(t, raw, got.Bytes())
	}
	for i := 0; i < 1e6 && runtime.NumGoroutine() > before; i++ {
		runtime.Gosched()
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before, "no goroutine is left")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

var errRefusing = errors.New("refusing")

type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, errRefusing }
