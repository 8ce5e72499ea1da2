package restore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// at is the stamp of minute n.
func at(n int) incremental.Stamp {
	return incremental.StampAt(time.Date(2026, 1, 1, 0, n, 0, 0, time.UTC))
}

// made is a manifest of an increment that ends at position 100 * minute.
type made struct {
	minute   int
	previous int // minute of the increment before; 0 for a full
	epoch    int
	lineage  string
	bad      bool // it cannot be read
}

func (m made) manifest() *incremental.Manifest {
	zero := fmt.Sprintf("%064x", m.minute)
	out := &incremental.Manifest{Format: 1, Lineage: "l", Epoch: max(m.epoch, 1), Kind: incremental.Full, Stamp: at(m.minute), Codec: "none",
		End: int64(100 * m.minute), FirstTID: filestorage.TID(m.minute), LastTID: filestorage.TID(m.minute), Transactions: 1,
		MD5: zero[:32], StoredSize: 1, StoredSHA256: zero, Tail: incremental.Proof{Size: int64(100 * m.minute), SHA256: zero}, Chain: at(m.minute)}
	out.File = string(out.Stamp) + ".fs"
	if m.previous > 0 {
		out.Kind, out.Start, out.Previous, out.Chain = incremental.Delta, int64(100*m.previous), at(m.previous), at(1)
		out.File = string(out.Stamp) + ".deltafs"
	}
	if m.lineage != "" {
		out.Lineage = m.lineage
	}
	return out
}

// listing is a repository of files in memory.
type listing fstest.MapFS

func (l listing) String() string { return "memory" }
func (l listing) List(context.Context) ([]fs.DirEntry, error) {
	return fs.ReadDir(fstest.MapFS(l), ".")
}
func (l listing) Open(_ context.Context, name string) (io.ReadCloser, error) {
	b, err := fs.ReadFile(fstest.MapFS(l), name)
	return io.NopCloser(bytes.NewReader(b)), err
}

// document returns that of a manifest without blobs.
func document(t *testing.T, m *incremental.Manifest) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, m.Write(&b, func(func(incremental.BlobRef) bool) {}))
	return b.Bytes()
}

func repositoryOf(t *testing.T, increments []made) *incremental.Repository {
	t.Helper()
	l := listing{}
	for _, m := range increments {
		doc := document(t, m.manifest())
		if m.bad {
			doc = doc[1:]
		}
		l[incremental.ManifestName(at(m.minute))] = &fstest.MapFile{Data: doc}
	}
	repo, err := incremental.Open(context.Background(), l)
	require.NoError(t, err)
	return repo
}

// stateAt is the state of a standby that has applied the increment of that minute; none when it is 0.
func stateAt(minute, epoch int) State {
	if minute == 0 {
		return State{}
	}
	m := made{minute: minute}.manifest()
	return State{Lineage: "l", Epoch: epoch, Role: Standby,
		Applied: Applied{Chain: at(1), Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID, Tail: m.Tail}}
}

func TestPlans(t *testing.T) {
	chain := []made{{minute: 1}, {minute: 2, previous: 1}, {minute: 3, previous: 2}, {minute: 4, previous: 3}}
	with := func(more ...made) []made { return append(append([]made{}, chain...), more...) }
	without := func(minute int, more ...made) (out []made) {
		for _, m := range with(more...) {
			if m.minute != minute {
				out = append(out, m)
			}
		}
		return out
	}
	for _, c := range []struct {
		name       string
		increments []made
		applied    int
		epoch      int
		steps      []int
		head       int
		blocked    error
		stale      error
		err        error
	}{
		{name: "everything for one that has nothing", increments: chain, steps: []int{1, 2, 3, 4}, head: 4},
		{name: "what is newer", increments: chain, applied: 2, steps: []int{3, 4}, head: 4},
		{name: "nothing new", increments: chain, applied: 4},
		{name: "through a newer full", increments: with(made{minute: 5}, made{minute: 6, previous: 5}), applied: 2, steps: []int{5, 6}, head: 6},
		{name: "only what the newer full does not have", increments: with(made{minute: 5}, made{minute: 6, previous: 5}), applied: 5, steps: []int{6}, head: 6},
		{name: "what is before a gap", increments: without(3, made{minute: 5, previous: 4}), applied: 1, steps: []int{2}, head: 5, blocked: fault.Gap},
		{name: "what is before a gap, for one that has nothing", increments: without(3), steps: []int{1, 2}, head: 4, blocked: fault.Gap},
		{name: "nothing before a gap", increments: without(3), applied: 2, head: 4, blocked: fault.Gap},
		{name: "a missing full", increments: without(1), head: 4, blocked: fault.Gap},
		{name: "a missing full behind a chain", increments: with(made{minute: 6, previous: 5}), applied: 3, steps: []int{4}, head: 6, blocked: fault.Gap},
		{name: "no increment at all", applied: 0, blocked: fault.Gap},
		{name: "neither ours nor a newer one", increments: []made{{minute: 1}}, applied: 4, blocked: fault.Gap},
		{name: "a manifest in the middle that cannot be read", applied: 1, steps: []int{2}, head: 4, blocked: fault.Unverified,
			increments: []made{{minute: 1}, {minute: 2, previous: 1}, {minute: 3, previous: 2, bad: true}, {minute: 4, previous: 3}}},
		{name: "a manifest at the end that cannot be read", applied: 1, steps: []int{2}, head: 2, blocked: fault.Unverified,
			increments: []made{{minute: 1}, {minute: 2, previous: 1}, {minute: 3, previous: 2, bad: true}}},
		{name: "a manifest that cannot be read before a full", applied: 1, steps: []int{4}, head: 4,
			increments: []made{{minute: 1}, {minute: 3, previous: 2, bad: true}, {minute: 4}}},
		{name: "a new epoch", increments: with(made{minute: 5, previous: 4, epoch: 2}), applied: 3, epoch: 1, steps: []int{4, 5}, head: 5},
		{name: "a stale master after the head", increments: with(made{minute: 5, previous: 4, epoch: 2}, made{minute: 6, previous: 4}), applied: 4, epoch: 1, steps: []int{5}, head: 5, stale: fault.Refused},
		{name: "a stale master before the head", increments: with(made{minute: 5, previous: 4}, made{minute: 6, previous: 4, epoch: 2}), applied: 4, epoch: 1, steps: []int{6}, head: 6},
		{name: "a new epoch with an earlier stamp than a leftover", increments: with(made{minute: 7, previous: 4, epoch: 2}, made{minute: 9, previous: 4}), applied: 3, epoch: 1, steps: []int{4, 7}, head: 7, stale: fault.Refused},
		{name: "only a stale master", increments: with(made{minute: 5, previous: 4}), applied: 4, epoch: 2, stale: fault.Refused},
		{name: "a full of a stale master", increments: with(made{minute: 5}), applied: 4, epoch: 2, stale: fault.Refused},
		{name: "a gap in a new epoch applies nothing of the old", increments: []made{{minute: 1}, {minute: 2, previous: 1}, {minute: 5, previous: 4, epoch: 2}}, applied: 1, epoch: 1, head: 5, blocked: fault.Gap},
		{name: "a new master that never had what was applied", increments: with(made{minute: 5, previous: 3, epoch: 2}), applied: 4, epoch: 1, head: 5, err: fault.Diverged},
		{name: "another lineage", increments: with(made{minute: 5, previous: 4, lineage: "m"}), applied: 4, epoch: 1, err: fault.Diverged},
		{name: "two lineages", increments: with(made{minute: 5, previous: 4, lineage: "m"}), err: fault.Diverged},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := planFor(context.Background(), repositoryOf(t, c.increments), stateAt(c.applied, max(c.epoch, 1)))
			is := func(want, got error) {
				t.Helper()
				if want == nil {
					require.NoError(t, got)
					return
				}
				require.ErrorIs(t, got, want)
				require.NotEmpty(t, fault.Next(got))
			}
			is(c.err, err)
			if c.err != nil {
				return
			}
			is(c.blocked, p.blocked)
			is(c.stale, p.stale)
			var steps []incremental.Stamp
			for _, n := range c.steps {
				steps = append(steps, at(n))
			}
			var got []incremental.Stamp
			for _, m := range p.steps {
				got = append(got, m.Stamp)
			}
			require.Equal(t, steps, got)
			if c.head == 0 {
				require.Nil(t, p.head)
			} else {
				require.Equal(t, at(c.head), p.head.Stamp)
			}
		})
	}
}

func FuzzReadState(f *testing.F) {
	good, err := json.Marshal(func() State { s := stateAt(3, 2); s.Format = stateFormat; return s }())
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"format":1,"role":"standby","lineage":"","epoch":0}`))
	f.Add([]byte(`{"format":1,"role":"promoted","lineage":"l","epoch":2,"applied":{"position":4,"tail":{"size":4}}}`))
	f.Add([]byte(`{"format":1,"role":"standby","lineage":"l","epoch":1,"next":{"position":-4,"whole":true}}`))
	f.Add(append(good, "{}"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		data := t.TempDir() + "/Data.fs"
		if err := os.WriteFile(statePath(data), b, 0o644); err != nil {
			t.Fatal(err)
		}
		s, ok, err := ReadState(data)
		if err != nil {
			require.False(t, ok)
			require.NotEmpty(t, fault.Next(err))
			return
		}
		require.True(t, ok)
		require.True(t, s.Applied.Position >= 0 && s.Applied.Tail.Size <= incremental.TailSize)
		require.NoError(t, s.write(data))
		again, _, err := ReadState(data)
		require.NoError(t, err)
		require.Equal(t, s.Applied.Position, again.Applied.Position)
		require.Equal(t, s.Next == nil, again.Next == nil)
	})
}
