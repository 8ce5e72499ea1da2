// Package kill kills zodbrepl. A process writes to a master as FileStorage does, and packs it; backup, ship, watch and
// recover run at the same time, and each is killed (SIGKILL) at a random moment, and the writer too. After every
// round all that is on disk must be right; after some rounds everything runs to its end, and nothing may be missing.
//
//	go test ./scripts/kill -v -kill.rounds=5000 -kill.seed=7
//
// With KEEP=1 the files of a failed round are kept.
package kill

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	rounds = flag.Int("kill.rounds", 240, "how many rounds; in each, four processes and sometimes the writer are killed")
	seed   = flag.Uint64("kill.seed", 0, "of the random numbers; 0: another one every time")
)

const (
	worlds        = 2  // at the same time
	roundsOfWorld = 20 // then a new one begins: a repository's first moments are killed too, and files stay small
)

// realRepozo checks a repository with the real repozo; set with the tag interop.
var realRepozo func(w *world, dir string, settled bool)

func TestKilledAnywhereNothingIsLost(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-kill.seed=%d -kill.rounds=%d", *seed, *rounds)
	bin := filepath.Join(t.TempDir(), "zodbrepl")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "zodbrepl/cmd/zodbrepl").CombinedOutput()
	require.NoError(t, err, string(out))

	n := &tally{}
	began := time.Now()
	t.Run("rounds", func(t *testing.T) {
		for i := range worlds {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				rng := rand.New(rand.NewPCG(*seed, uint64(i)))
				for left := (*rounds + worlds - 1) / worlds; left > 0; left -= roundsOfWorld {
					t.Run("world", func(t *testing.T) {
						w := newWorld(t, bin, rng, n)
						for range min(left, roundsOfWorld) {
							w.round()
						}
						w.settle()
					})
					if t.Failed() {
						return
					}
				}
			})
		}
	})
	t.Logf("%d rounds in %s, %d worlds: killed %d runs of zodbrepl and %d writers; %d runs ended before",
		n.rounds.Load(), time.Since(began).Round(time.Second), n.worlds.Load(), n.killed.Load(), n.writers.Load(), n.ended.Load())
}

// round runs some commands at once and kills each at a random moment, then looks at what they left.
func (w *world) round() {
	w.tally.rounds.Add(1)
	if w.writer == nil {
		w.startWriter()
	}
	recovered := w.content("recovered.fs")
	var victims []*victim
	for _, args := range [][]string{w.backupArgs(), w.shipArgs(), w.watchArgs(w.rng.IntN(2) == 0), w.recoverArgs()} {
		if w.rng.IntN(5) > 0 {
			victims = append(victims, w.start(args...))
		}
	}
	done := make(chan struct{}, len(victims))
	for _, v := range victims {
		delay := time.Duration(w.rng.Int64N(int64(w.delay(v.name))))
		go func() {
			defer func() { done <- struct{}{} }()
			select {
			case <-v.done:
			case <-time.After(delay):
				_ = v.cmd.Process.Kill() // it may have ended
				<-v.done
			}
		}()
	}
	if w.rng.IntN(4) == 0 {
		time.Sleep(time.Duration(w.rng.Int64N(int64(w.delay("backup")))))
		w.killWriter()
		w.tally.writers.Add(1)
	}
	for range victims {
		<-done
	}
	for _, v := range victims {
		w.ended(v)
	}
	w.afterKill(recovered)
	if w.rng.IntN(4) == 0 {
		w.settle()
	}
}

// delay is the time in which a command is killed: what it usually takes and a little more.
func (w *world) delay(name string) time.Duration {
	return max(w.usual[name]*6/5, 5*time.Millisecond)
}

// ended requires of a run that came before its kill that it did what it should.
func (w *world) ended(v *victim) {
	code := v.cmd.ProcessState.ExitCode()
	if code == -1 {
		w.tally.killed.Add(1)
		return
	}
	w.tally.ended.Add(1)
	allowed := []int{0}
	switch {
	case v.name == "backup" && w.content("master/Data.fs") == nil:
		allowed = append(allowed, 1) // the writer died in a pack
	case v.name == "backup" && slices.Contains(v.cmd.Args, "--ship"):
		allowed = append(allowed, 75) // the other ship is at it
	case v.name == "backup":
	case v.name == "ship":
		allowed = append(allowed, 6, 75) // nothing there yet, or a backup died before its manifest; the other ship is at it
	default:
		allowed = append(allowed, 6) // nothing there yet
	}
	require.Contains(w.t, allowed, code, "%v:\n%s", v.cmd.Args, v.out.String())
	w.learn(v)
}

// afterKill looks at everything that is on disk, while the writer goes on.
func (w *world) afterKill(before []byte) {
	t := w.t
	for _, dir := range []string{"repo", "shared"} {
		raw, ok, err := asRepozo(w.path(dir))
		require.NoError(t, err, "%s, as repozo reads it", dir)
		if ok {
			require.NoError(t, w.history().explain(dir+", as repozo reads it,", raw))
		}
		if w.published(dir) {
			w.run([]int{0}, "verify", "-r", w.path(dir))
		}
		if ok && realRepozo != nil && w.codecs[0] != "zstd" {
			realRepozo(w, dir, false)
		}
	}

	recovered := w.content("recovered.fs")
	switch {
	case bytes.Equal(recovered, before):
	case len(before) > 0 && bytes.HasPrefix(recovered, before):
		// An earlier recovery is appended to in place: the old file, then a part of the new one, perhaps not to the end of
		// a transaction. FileStorage cuts that off, and so does the next recovery.
		require.True(t, w.history().begins(recovered), "what was recovered, %d bytes where %d were before, is a part of nothing", len(recovered), len(before))
	default:
		require.NoError(t, w.history().explain("what was recovered", recovered))
	}
	w.checkIndex("recovered.fs")

	// Up to the position of its state the standby is good at once, the rest it puts right itself.
	standby := w.content("standby/Data.fs")
	if st, ok := w.standbyState(); ok && st.Applied.Position > 0 {
		swapped := st.Next != nil && st.Next.Whole && int64(len(standby)) == st.Next.Position
		if !swapped {
			require.GreaterOrEqual(t, int64(len(standby)), st.Applied.Position, "the standby is shorter than its state says")
			standby = standby[:st.Applied.Position]
		}
	} else {
		require.True(t, len(standby) == 0 || st.Next != nil, "a standby of %d bytes has no state", len(standby))
	}
	if len(standby) > 0 {
		require.NoError(t, w.history().explain("the standby", standby))
	}
	codes := []int{0}
	if !w.published("shared") {
		codes = []int{6}
	}
	w.run(codes, w.watchArgs(true)...)
	if standby = w.content("standby/Data.fs"); standby != nil {
		require.NoError(t, w.history().explain("the standby after watch --once", standby))
	}
	w.checkIndex("standby/Data.fs")
}

// settle runs everything to its end: what the master had committed before is everywhere then.
func (w *world) settle() {
	t := w.t
	if w.writer == nil {
		w.startWriter()
	}
	inode, committed := w.master()
	w.run([]int{0}, w.backupArgs()...)
	w.run([]int{0}, w.shipArgs()...)
	w.run([]int{0}, w.watchArgs(true)...)
	w.run([]int{0}, w.recoverArgs()...)

	repo, _, err := asRepozo(w.path("repo"))
	require.NoError(t, err)
	require.NoError(t, w.history().explain("repo", repo))
	if now, _ := w.master(); now == inode { // not packed meanwhile
		require.GreaterOrEqual(t, int64(len(repo)), committed, "a transaction that was committed before the backup is not in it")
	}
	shared, _, err := asRepozo(w.path("shared"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(repo, shared), "the shared directory has %d bytes of Data.fs, the repository %d", len(shared), len(repo))
	for _, name := range []string{"standby/Data.fs", "recovered.fs"} {
		got := w.content(name)
		require.True(t, bytes.Equal(repo, got), "%s has %d bytes, the repository %d", name, len(got), len(repo))
		w.checkIndex(name)
	}
	for _, dir := range []string{"repo", "shared"} {
		w.run([]int{0}, "verify", "-r", w.path(dir))
		w.nothingLeft(dir)
		if realRepozo != nil && w.codecs[0] != "zstd" {
			realRepozo(w, dir, true)
		}
	}
	w.nothingLeft("standby")
}

// master returns the inode of the master's file and a position up to which it is committed, 0 when it is not known.
func (w *world) master() (ino uint64, committed int64) {
	before, err1 := os.Stat(w.path("master/Data.fs"))
	committed = w.committed.Load()
	after, err2 := os.Stat(w.path("master/Data.fs"))
	if err1 != nil || err2 != nil || !os.SameFile(before, after) || committed > after.Size() {
		return 0, 0 // in a pack
	}
	return inode(after), committed
}

// nothingLeft requires that no temporary file of a killed run outlives the runs after it.
func (w *world) nothingLeft(dir string) {
	for _, pattern := range []string{"*.tmp", "*.unpublished", "*-full"} {
		names, err := filepath.Glob(filepath.Join(w.path(dir), pattern))
		require.NoError(w.t, err)
		require.Empty(w.t, names, "left behind")
	}
}
