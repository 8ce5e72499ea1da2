package transport

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"zodbrepl/internal/sshtest"
)

// witness looks at every state that the target is in, before each request that follows, and keeps what it saw wrong: a
// file under its final name that is not, byte for byte, what the repository has; a .dat that lists what is not there; a
// manifest before its data.
type witness struct {
	want map[string]string // of the repository
	dir  string

	mu    sync.Mutex
	seen  int // states
	wrong []string
}

func (w *witness) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen++
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		w.wrong = append(w.wrong, err.Error())
	}
	there := make(map[string]bool)
	for _, e := range entries {
		there[e.Name()] = true
	}
	for name := range there {
		if strings.HasSuffix(name, ".tmp") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(w.dir, name))
		if os.IsNotExist(err) {
			continue // it was renamed since
		}
		want := w.want[name]
		switch got := string(b); {
		case strings.HasSuffix(name, ".dat"):
			// As far as it goes it is that of the repository, and what it lists is there.
			if !strings.HasPrefix(want, got) || !strings.HasSuffix(got, "\n") {
				w.wrong = append(w.wrong, name+" is not a part of what it should be")
			}
			for line := range strings.Lines(got) {
				if !there[strings.Fields(line)[0]] {
					w.wrong = append(w.wrong, name+" lists what is not there")
				}
			}
		case got != want:
			w.wrong = append(w.wrong, name+" holds wrong bytes")
		case strings.HasSuffix(name, ".manifest"):
			stamp := strings.TrimSuffix(name, ".manifest")
			if !there[stamp+".fs"] && !there[stamp+".deltafs"] && !there[stamp+".fsz"] && !there[stamp+".deltafsz"] {
				w.wrong = append(w.wrong, name+" is there before its data")
			}
		}
	}
}

// watching lets the witness look before each request but reads and writes, which change no published file: that writes
// do not is what it then sees.
func (w *witness) watching(rule sshtest.Rule) sshtest.Rule {
	return func(r sshtest.Request) sshtest.Verdict {
		if r.Op != "read" && (r.Op != "write" || !strings.HasSuffix(r.Path, ".tmp")) {
			w.look()
		}
		return rule(r)
	}
}

// spoil is what a power failure leaves of temporary files: any block that was not made durable may be zeros, or gone.
func spoil(t *rapid.T, dir string, durable map[string]int64) {
	found, _ := filepath.Glob(filepath.Join(dir, "*.tmp"))
	for _, path := range found {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		at := int(min(durable[path], int64(len(b))))
		rest := len(b) - at
		if rest == 0 {
			continue
		}
		switch rapid.IntRange(0, 2).Draw(t, "what the power failure takes") {
		case 0:
			i := at + rapid.IntRange(0, rest-1).Draw(t, "from")
			clear(b[i:min(len(b), i+rapid.IntRange(1, 200_000).Draw(t, "bytes"))])
		case 1:
			b = b[:at+rapid.IntRange(0, rest-1).Draw(t, "size")]
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// disk keeps up to where temporary files are durable.
type disk struct {
	mu     sync.Mutex
	synced map[string]int64
}

func (d *disk) note(r sshtest.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch r.Op {
	case "fsync":
		if fi, err := os.Stat(r.Path); err == nil && r.Verdict == sshtest.Pass {
			d.synced[r.Path] = fi.Size()
		}
	case "posix-rename", "rename", "remove":
		delete(d.synced, r.Path)
		delete(d.synced, r.NewPath)
	}
}

// Writes that are done in another order, in part, or not at all; requests that fail; cuts; servers that lose what was not
// durable: in whatever order these come, at no moment does a published file hold a wrong byte, and at last everything is
// there.
func TestWrongBytesAreNeverPublished(t *testing.T) {
	m := newMaster(t)
	m.backup()
	m.backupMuch(250_000)
	want := tree(t, string(m.repo))
	states, faults := 0, 0
	h := newOtherHost(t, sshtest.Options{})
	fewerChecks(t, "30")
	rapid.Check(t, func(rt *rapid.T) {
		emptied(t, h.Dir)
		w := &witness{want: want, dir: h.Dir}
		d := &disk{synced: make(map[string]int64)}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		var mu sync.Mutex
		left := rapid.IntRange(1, 12).Draw(rt, "faults")
		often := rapid.IntRange(2, 60).Draw(rt, "one in")
		reorder := rapid.IntRange(1, 9).Draw(rt, "reordered")
		order := sshtest.Reordered(reorder)
		power := rapid.Bool().Draw(rt, "power failures")
		rule := func(r sshtest.Request) (v sshtest.Verdict) {
			mu.Lock()
			defer mu.Unlock()
			v = order(r)
			if left > 0 && r.Op != "init" && rng.IntN(often) == 0 {
				left--
				faults++
				switch n := rng.IntN(6); {
				case n == 0:
					v = sshtest.CutBefore
				case n == 1:
					v = sshtest.CutAfter
				case r.Op == "write" && n < 4:
					v = sshtest.Short(rng.IntN(r.Length + 1))
				default:
					v = sshtest.Fail(sshtest.Failure)
				}
			}
			r.Verdict = v
			d.note(r)
			return v
		}
		h.SetRule(w.watching(rule))
		patience := impatient
		if rapid.Bool().Draw(rt, "patient") {
			patience = 0
		}
		for runs := 0; ; runs++ {
			_, err := m.shipTo(h, patience)
			if err == nil {
				break
			}
			if runs > 30 {
				rt.Fatalf("no progress: %v", err)
			}
			h.CutAll()
			for h.Connections() > 0 { // what is still under way there has ended
			}
			if power {
				d.mu.Lock()
				spoil(rt, h.Dir, d.synced)
				d.mu.Unlock()
			}
		}
		h.SetRule(nil)
		w.look()
		if len(w.wrong) > 0 {
			rt.Fatalf("%v", w.wrong)
		}
		states += w.seen
		for name, content := range tree(t, h.Dir) {
			if content != want[name] {
				rt.Fatalf("%s is not what it should be at the end", name)
			}
		}
		if n := len(tree(t, h.Dir)); n != len(want) {
			rt.Fatalf("%d files, want %d", n, len(want))
		}
	})
	t.Logf("%d faults; %d states were looked at, none with a wrong byte under a final name", faults, states)
	require.Greater(t, faults, 20)
	require.Greater(t, states, 500)
}

// fewerChecks is for a property that takes long to check; -rapid.checks=1000 has the last word.
func fewerChecks(t *testing.T, n string) {
	f := flag.Lookup("rapid.checks")
	if before := f.Value.String(); before == f.DefValue {
		require.NoError(t, f.Value.Set(n))
		t.Cleanup(func() { f.Value.Set(before) })
	}
}

// The witness is worth something: it sees what it should.
func TestAWitnessSeesWrongBytes(t *testing.T) {
	for _, c := range []struct {
		name, file, content string
	}{
		{"a data file that is short", "2024-03-01-10-00-00.fsz", "dat"},
		{"a data file with other bytes", "2024-03-01-10-00-00.fsz", "dota"},
		{"a manifest before its data", "2024-03-01-10-00-00.manifest", "{}"},
		{"a .dat that lists what is not there", "2024-03-01-10-00-00.dat", "2024-03-01-10-00-00.fsz 0 4 x\n"},
		{"half a .dat", "2024-03-01-10-00-00.dat", "2024-03-01-10-00-00.fsz 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &witness{dir: t.TempDir(), want: map[string]string{"2024-03-01-10-00-00.fsz": "data",
				"2024-03-01-10-00-00.dat": "2024-03-01-10-00-00.fsz 0 4 x\n", "2024-03-01-10-00-00.manifest": "{}"}}
			w.look()
			require.Empty(t, w.wrong)
			require.NoError(t, os.WriteFile(filepath.Join(w.dir, c.file), []byte(c.content), 0o644))
			w.look()
			require.NotEmpty(t, w.wrong)
		})
	}
}

// A put that was cut goes on. The server may have lost its power in between, and with it whatever it had not made durable:
// what was written to it, and what was there before and was read back.
func TestAPutDoesNotTrustWhatAServerMayHaveLost(t *testing.T) {
	for _, c := range []struct {
		name    string
		without []string
		cuts    int
	}{
		{"what was just written", nil, 1},
		{"what was just written, to a server that cannot make it durable", []string{"fsync@openssh.com"}, 1},
		{"what was read back", nil, 2},
		{"what was read back, from a server that cannot make it durable", []string{"fsync@openssh.com"}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newOtherHost(t, sshtest.Options{Without: c.without})
			content := bytes.Repeat([]byte("not zeros "), 300_000)
			path := filepath.Join(h.Dir, "file.tmp")
			opened, writes, lost := 0, 0, false
			h.SetRule(func(r sshtest.Request) sshtest.Verdict {
				switch r.Op {
				case "open":
					if opened, writes = opened+1, 0; opened == c.cuts+1 {
						b, err := os.ReadFile(path)
						lost = err == nil && len(b) > 500_000
						clear(b[min(100_000, len(b)):min(400_000, len(b))])
						if err := os.WriteFile(path, b, 0o644); err != nil {
							t.Error(err)
						}
					}
				case "write":
					if writes++; opened <= c.cuts && writes == 30 {
						return sshtest.CutBefore
					}
				}
				return sshtest.Pass
			})
			target, err := OpenTarget(t.Context(), h.URL(h.Dir), TargetOptions{timing: &hurried})
			require.NoError(t, err)
			_, err = target.Put(t.Context(), "file", bytes.NewReader(content), int64(len(content)), nil)
			require.NoError(t, err)
			require.True(t, lost, "hardly anything had arrived")
			require.NoError(t, target.Publish(t.Context(), "file"))
			require.NoError(t, target.Close())
			got, err := os.ReadFile(filepath.Join(h.Dir, "file"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(content, got), "zeros were published")
		})
	}
}
