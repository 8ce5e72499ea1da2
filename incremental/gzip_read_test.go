package incremental

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
)

// ours is one member as we write it.
func ours(raw []byte) []byte {
	var b bytes.Buffer
	if err := compressMember(raw, &b, gzipLevel); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// claiming is a member of which the stored size was changed.
func claiming(raw []byte, n int) []byte {
	b := ours(raw)
	binary.LittleEndian.PutUint32(b[memberField:], uint32(n))
	return b
}

func foreign(raw []byte, header gzip.Header) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Header = header
	z.Write(raw)
	z.Close()
	return b.Bytes()
}

func ourGzip(r io.Reader) (io.ReadCloser, error) { return gzipCodec{}.NewReader(r, 0) }

func plainGzip(r io.Reader) (io.ReadCloser, error) {
	z, err := gzip.NewReader(bufio.NewReader(r))
	switch err {
	case nil:
		return z, nil
	case io.EOF:
		return nil, errors.New("the gzip file is empty")
	}
	return nil, err
}

type made struct {
	raw []byte
	err error
}

// readWith reads at most limit raw bytes.
func readWith(open func(io.Reader) (io.ReadCloser, error), r io.Reader, limit int64) made {
	z, err := open(r)
	if err != nil {
		return made{err: err}
	}
	defer z.Close()
	raw, err := io.ReadAll(io.LimitReader(z, limit))
	return made{raw, err}
}

// sameAsPlain reads what source makes with our reader and with the plain one: the same bytes, then the same error.
func sameAsPlain(t testing.TB, source func() io.Reader, limit int64, what string, args ...any) made {
	t.Helper()
	what = fmt.Sprintf(what, args...)
	want := readWith(plainGzip, source(), limit)
	got := readWith(ourGzip, source(), limit)
	require.Equal(t, want.err, got.err, what)
	require.True(t, bytes.Equal(want.raw, got.raw), "%s: %d bytes wanted, %d there", what, len(want.raw), len(got.raw))
	return got
}

func cores(t testing.TB, n int) {
	was := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(was) })
}

// failingOnce is an error, then nothing.
type failingOnce struct{ failed bool }

func (f *failingOnce) Read([]byte) (int, error) {
	if f.failed {
		return 0, io.EOF
	}
	f.failed = true
	return 0, errBroken
}

const noLimit = 1 << 40

func TestGzipThatIsTruncatedOrDamagedReadsAsWithThePlainReader(t *testing.T) {
	cores(t, 2)
	var whole []byte
	for _, n := range []int{40, 0, 300, 7} {
		whole = append(whole, ours(text(n))...)
	}
	with := func(b []byte) func() io.Reader { return func() io.Reader { return bytes.NewReader(b) } }
	for n := range whole {
		sameAsPlain(t, with(whole[:n]), noLimit, "cut at %d", n)
		sameAsPlain(t, with(append(bytes.Clone(whole[:n]), whole[n+1:]...)), noLimit, "without byte %d", n)
		sameAsPlain(t, func() io.Reader {
			return io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(errBroken))
		}, noLimit, "unreadable from %d on", n)
		sameAsPlain(t, func() io.Reader {
			return io.MultiReader(bytes.NewReader(whole[:n]), &failingOnce{}, bytes.NewReader(whole[n:]))
		}, noLimit, "unreadable once at %d", n)
		got := sameAsPlain(t, func() io.Reader {
			return iotest.DataErrReader(io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(errBroken)))
		}, noLimit, "unreadable from %d on, told with the last bytes", n)
		require.ErrorIs(t, got.err, errBroken)
		sameAsPlain(t, func() io.Reader { return iotest.OneByteReader(bytes.NewReader(whole[:n])) }, noLimit, "byte for byte up to %d", n)
	}
	wrong := 0
	for bit := range 8 * len(whole) {
		bad := bytes.Clone(whole)
		bad[bit/8] ^= 1 << (bit % 8)
		if got := sameAsPlain(t, with(bad), noLimit, "bit %d", bit); got.err != nil {
			wrong++
		}
	}
	require.Greater(t, wrong, 4*len(whole))
}

func TestGzipOfEveryKindReadsAsWithThePlainReader(t *testing.T) {
	cores(t, 2)
	one, two, three := ours(text(500)), ours(text(60)), ours(text(9))
	name := foreign(text(70), gzip.Header{Name: "Data.fs", Comment: "repozo"})
	tests := map[string][][]byte{
		"nothing":                                 {},
		"garbage alone":                           {[]byte("garbage, and more than a header has")},
		"garbage after the end":                   {one, two, []byte("garbage")},
		"a zero after the end":                    {one, two, {0}},
		"zeros after the end":                     {one, two, make([]byte, 1000)},
		"half a header after the end":             {one, two, three[:9]},
		"a header and nothing else after the end": {one, two, three[:memberHeader]},
		"a header that claims what is not there":  {one, two, claiming(nil, maxStored)[:memberHeader]},
		"a member that claims garbage after it":   {one, claiming(text(60), len(two)+30), bytes.Repeat([]byte("?"), 30), three},
		"another extra field":                     {one, foreign(text(50), gzip.Header{Extra: []byte("ZX\x04\x00\x30\x00\x00\x00")}), two},
		"an extra field of another length":        {one, foreign(text(50), gzip.Header{Extra: []byte("ZR\x04\x00\x30\x00\x00\x00ab\x00\x00")}), two},
		"a member that holds members":             {one, ours(slices.Concat(two, three)), two},
		"a member as large as they get":           {one, ours(text(memberSize)), two},
		"a member one byte larger":                {one, ours(text(memberSize + 1)), two},
		"a member of many times the size":         {one, two, ours(make([]byte, 5*memberSize)), three},
		"a large member that is damaged":          {one, ours(make([]byte, 5*memberSize))[:5000], three},
	}
	for _, claim := range []int{0, 1, memberHeader, minStored - 1, minStored, len(two) - 8, len(two) - 1, len(two) + 1, len(two) + memberHeader,
		len(two) + len(three), len(two) + len(three) + 1, maxStored, maxStored + 1, 1<<31 - 1, 1<<32 - 1} {
		lie := claiming(text(60), claim)
		tests[fmt.Sprintf("the first claims %d", claim)] = [][]byte{lie, three, one}
		tests[fmt.Sprintf("the second claims %d", claim)] = [][]byte{one, lie, three, one}
		tests[fmt.Sprintf("the last claims %d", claim)] = [][]byte{one, three, lie}
		tests[fmt.Sprintf("the last claims %d, then garbage", claim)] = [][]byte{one, three, lie, []byte("garbage")}
		tests[fmt.Sprintf("all claim %d", claim)] = [][]byte{lie, lie, lie, lie, lie, lie}
	}
	for i := range 1 << 5 {
		var mix [][]byte
		for k := range 5 {
			mix = append(mix, [][]byte{two, name}[i>>k&1])
		}
		tests[fmt.Sprintf("ours and foreign members, mix %05b", i)] = mix
	}
	for what, parts := range tests {
		b := slices.Concat(parts...)
		for _, limit := range []int64{noLimit, 1, 61, 570} {
			sameAsPlain(t, func() io.Reader { return bytes.NewReader(b) }, limit, "%s, up to %d", what, limit)
		}
	}
}

func TestGzipMembersAreUnpackedSideBySide(t *testing.T) {
	var raw, b []byte
	for part := range slices.Chunk(noise(14*asidePiece+5), asidePiece) {
		raw, b = append(raw, part...), append(b, ours(part)...)
	}
	for _, n := range []int{1, 2, 4, 20} {
		t.Run(fmt.Sprintf("%d cores", n), func(t *testing.T) {
			cores(t, n)
			var seen bytes.Buffer
			r, err := gzipCodec{}.NewReader(io.TeeReader(bytes.NewReader(b), &seen), 0)
			require.NoError(t, err)
			defer r.Close()
			g := r.(*gzipReader)
			first := make([]byte, 1)
			_, err = io.ReadFull(r, first)
			require.NoError(t, err)
			require.Len(t, g.queue, min(n, gzipReadJobs), "beside the one that is given out")
			require.LessOrEqual(t, seen.Len(), (min(n, gzipReadJobs)+2)*asidePiece+gzipBuffer, "no more is read ahead")
			rest, err := io.ReadAll(r)
			require.NoError(t, err)
			same(t, raw, append(first, rest...))
			require.Nil(t, g.plain)
			same(t, b, seen.Bytes())
			k, err := r.Read(first)
			require.Zero(t, k)
			require.Equal(t, io.EOF, err, "again and again")
		})
	}
}

// What we write must not take the slow way without anybody seeing it. A member that gzip cannot make smaller is as
// large as stored ones get.
func TestTheLargestMembersAreNotReadTheSlowWay(t *testing.T) {
	raw := noise(3*memberSize + 1)
	r, err := gzipCodec{}.NewReader(bytes.NewReader(stored(t, gzipCodec{}, raw, len(raw))), 0)
	require.NoError(t, err)
	got, err := io.ReadAll(r)
	require.NoError(t, err)
	same(t, raw, got)
	require.Nil(t, r.(*gzipReader).plain)
}

// noise is n bytes of which no hash knows the next.
func noise(n int) []byte {
	b := make([]byte, 0, n+sha256.Size)
	for i := uint64(0); len(b) < n; i++ {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, i))
		b = append(b, sum[:]...)
	}
	return b[:n]
}

func TestAForgedGzipMemberIsNotUnpackedBeyondItsBound(t *testing.T) {
	cores(t, 1)
	bomb := ours(make([]byte, 60*memberSize))
	require.LessOrEqual(t, len(bomb), maxStored)
	r, err := gzipCodec{}.NewReader(bytes.NewReader(slices.Concat(bomb, bomb, bomb)), 0)
	require.NoError(t, err)
	defer r.Close()
	g := r.(*gzipReader)
	g.begin()
	g.begin()
	require.Len(t, g.queue, 2)
	for _, u := range g.queue {
		<-u.done
		require.LessOrEqual(t, len(u.raw), memberSize)
		require.ErrorIs(t, u.err, errNotAsClaimed)
	}
	for _, claim := range []int{0, minStored - 1, maxStored + 1, 1<<32 - 1} {
		r, err := gzipCodec{}.NewReader(bytes.NewReader(claiming(text(100), claim)), 0)
		require.NoError(t, err)
		require.NotNil(t, r.(*gzipReader).plain, "claims %d", claim)
	}
}

func TestAGzipReaderThatIsClosedHasNothingUnderWay(t *testing.T) {
	cores(t, 4)
	raw := text(6 * memberSize)
	b := stored(t, gzipCodec{}, raw, len(raw))
	broken := bytes.Clone(b)
	broken[len(b)/2] ^= 1
	for _, file := range [][]byte{b, broken, foreign(raw, gzip.Header{})} {
		for _, n := range []int64{0, 1, memberSize, memberSize + 1, 3*memberSize + 1, 7 * memberSize} {
			r, err := gzipCodec{}.NewReader(bytes.NewReader(file), 0)
			require.NoError(t, err)
			_, _ = io.CopyN(io.Discard, r, n)
			under := slices.Clone(r.(*gzipReader).queue)
			require.NoError(t, r.Close())
			for _, u := range under {
				select {
				case <-u.done:
				default:
					require.Fail(t, "a goroutine is left")
				}
			}
			k, err := r.Read(make([]byte, 10))
			require.Zero(t, k)
			require.ErrorIs(t, err, errClosed)
			require.NoError(t, r.Close(), "twice is well")
		}
	}
}

// The memory of reading does not depend on the size.
func TestGzipIsReadInBoundedMemory(t *testing.T) {
	member := ours(noise(memberSize))
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapSys
	}
	var members []io.Reader
	for range 60 {
		members = append(members, bytes.NewReader(member))
	}
	base := heap()
	r, err := gzipCodec{}.NewReader(io.MultiReader(members...), 0)
	require.NoError(t, err)
	n, err := io.Copy(io.Discard, r)
	require.NoError(t, err)
	require.EqualValues(t, 60*memberSize, n)
	require.Less(t, heap(), base+uint64(48<<20)*uint64(min(runtime.GOMAXPROCS(0), gzipReadJobs)/2+1), "120 MiB went through")
}
