package filestorage

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// liveWriter writes to a file as FileStorage does: a vote appends with status 'c', in several writes, and flushes;
// finish overwrites the status; an abort truncates, and the next vote uses the same place.
type liveWriter struct {
	f   *os.File
	r   *rand.Rand
	pos int64
	tid TID

	mu   sync.Mutex
	ends map[int64]bool // every commit boundary, noted before it can be seen
}

func (w *liveWriter) step() error {
	w.tid += TID(w.r.IntN(1 << 20))
	w.tid++
	objs := []obj{}
	for i := range w.r.IntN(4) {
		objs = append(objs, obj{oid: OID(i), data: make([]byte, 1+w.r.IntN(20_000)*w.r.IntN(2)+w.r.IntN(50))})
	}
	b := newBuilder()
	b.tid = w.tid
	b.txn(StatusVoted, "user"[:w.r.IntN(4)], objs...)
	raw := b.b[MagicSize:]
	for i, at := 0, int64(0); i < len(objs); i++ { // the builder wrote it for position 4
		off := int64(TxnHeaderSize) + 3*int64(be16(raw[17:])) + at
		copy(raw[off+24:], u64(uint64(w.pos)))
		copy(raw[off+16:], u64(0))
		at += DataHeaderSize + int64(len(objs[i].data))
	}
	end := w.pos + int64(len(raw))
	stop := len(raw)
	abort := w.r.IntN(3) == 0
	if abort && w.r.IntN(2) == 0 {
		stop = w.r.IntN(len(raw)) // the writer dies or aborts in the middle of its vote
	}
	for at := 0; at < stop; {
		n := min(1+w.r.IntN(9000), stop-at)
		if _, err := w.f.WriteAt(raw[at:at+n], w.pos+int64(at)); err != nil {
			return err
		}
		at += n
	}
	if abort {
		return w.f.Truncate(w.pos)
	}
	w.mu.Lock()
	w.ends[end] = true
	w.mu.Unlock()
	if _, err := w.f.WriteAt([]byte{StatusCommitted}, w.pos+16); err != nil {
		return err
	}
	w.pos = end
	return nil
}

func TestALiveFileIsNeverInErrorAndEndsOnACommitBoundary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	_, err = out.WriteString("FS30")
	require.NoError(t, err)
	w := &liveWriter{f: out, r: rand.New(rand.NewPCG(1, 2)), pos: MagicSize, tid: 1 << 40, ends: map[int64]bool{MagicSize: true}}

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := w.step(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	isBoundary := func(pos int64) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.ends[pos]
	}
	f, closer, err := Open(path)
	require.NoError(t, err)
	defer closer.Close()
	last, scans, inFlight := int64(MagicSize), 0, 0
	for ; ctx.Err() == nil; scans++ {
		from := last
		if scans%50 == 0 {
			from = MagicSize
		}
		e, err := f.Committed(context.Background(), from)
		require.NoError(t, err)
		require.True(t, isBoundary(e.End), "%d is no commit boundary", e.End)
		require.GreaterOrEqual(t, e.End, last, "what was committed stays")
		if e.Tail != TailClean {
			inFlight++
		}
		require.NotEqual(t, TailTorn, e.Tail, e.Reason)
		require.True(t, e.Tail != TailClean || e.InFlight == 0, "%+v", e)
		if e.End > last {
			x := &Index{}
			_, err := f.ExtendIndex(context.Background(), x, last, e.End, nil)
			require.NoError(t, err, "what is committed can be read")
		}
		last = e.End
	}
	require.NoError(t, <-done)
	t.Logf("%d scans of %d transactions, %d of them with something in flight", scans, len(w.ends)-1, inFlight)
	require.Greater(t, scans, 100)
	require.Greater(t, inFlight, 5)
	e := committed(t, f, MagicSize)
	require.Equal(t, w.pos, e.End)
	require.EqualValues(t, len(w.ends)-1, e.Transactions)
}

// switching is a Reader whose file changes after its size was asked for the first time.
type switching struct {
	now  *memory
	next memory
}

func (s switching) ReadAt(p []byte, off int64) (int, error) { return s.now.ReadAt(p, off) }
func (s switching) Size() (int64, error) {
	n, err := s.now.Size()
	*s.now = s.next
	return n, err
}

func TestAVoteThatReplacesALongerOneIsInFlight(t *testing.T) {
	b := newBuilder()
	b.txn(StatusCommitted, "", obj{oid: 1, data: make([]byte, 3*windowMin)})
	good := int64(len(b.b))
	first, second := *b, *b
	first.txn(StatusVoted, "", obj{oid: 1, data: make([]byte, 5000)})
	second.b = append([]byte(nil), b.b...)
	second.txn(StatusVoted, "", obj{oid: 1, data: make([]byte, 50)})

	now := memory(first.b)
	f := &File{r: switching{&now, second.b}, name: "Data.fs"}
	e := committed(t, f, MagicSize)
	require.Equal(t, good, e.End)
	require.Equal(t, TailInFlight, e.Tail, "what was read before the change is not believed: %s", e.Reason)
	require.Equal(t, int64(len(second.b))-good, e.InFlight)
}
