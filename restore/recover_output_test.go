package restore

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// recovery of three increments, to an output that is something else or an earlier recovery.
type recoveries struct {
	*vault
	all []moment
	out string
}

func newRecoveries(t *testing.T) *recoveries {
	v := newVault(t)
	for range 3 {
		v.commit(3)
		v.backup()
	}
	return &recoveries{v, moments(t, v.bytes()), filepath.Join(t.TempDir(), "Data.fs")}
}

func (r *recoveries) recover(change ...func(*RecoverOptions)) (RecoverResult, error) {
	o := RecoverOptions{Source: r.repo, Output: r.out}
	for _, c := range change {
		c(&o)
	}
	return Recover(r.t.Context(), o)
}

// before makes the output what it is before the recovery that is tested: how are "none", "other" and "earlier".
func (r *recoveries) before(how string) map[string]string {
	r.t.Helper()
	for _, ext := range []string{"", ".index", durable.TempSuffix, ".index" + durable.TempSuffix} {
		require.NoError(r.t, durable.Remove(r.out+ext))
	}
	switch how {
	case "other":
		require.NoError(r.t, os.WriteFile(r.out, []byte("FS30, another database"), 0o640))
		require.NoError(r.t, os.WriteFile(r.out+".index", []byte("its index"), 0o640))
	case "earlier": // in the middle of the second increment
		_, err := r.recover(func(o *RecoverOptions) { o.At = momentAt(r.all[4].tid) })
		require.NoError(r.t, err)
	}
	return tree(r.t, filepath.Dir(r.out))
}

// whole requires that the output is now the newest state.
func (r *recoveries) whole() {
	r.t.Helper()
	requireSame(r.t, r.all[len(r.all)-1].raw, read(r.t, r.out))
	requireIndexed(r.t, r.out)
	requireClean(r.t, r.out)
}

// requireUnchanged allows for the lock file, which is never removed.
func requireUnchanged(t *testing.T, before map[string]string, dir string) {
	t.Helper()
	after := tree(t, dir)
	for name := range before {
		if filepath.Ext(name) == ".lock" {
			delete(before, name)
		}
	}
	for name := range after {
		if filepath.Ext(name) == ".lock" {
			delete(after, name)
		}
	}
	require.Equal(t, before, after)
}

var outputs = []string{"none", "other", "earlier"}

func TestTheOutputIsReplacedOrAppendedTo(t *testing.T) {
	r := newRecoveries(t)
	size := func(i int) int64 { return int64(len(r.all[i].raw)) }
	for _, c := range []struct {
		name, before string
		at, appended int64
	}{
		{"a new one is made", "none", 8, 0},
		{"another file is replaced", "other", 8, 0},
		{"an earlier recovery is appended to", "earlier", 8, size(8) - size(4)},
		{"an earlier recovery is appended to up to a moment in the same increment", "earlier", 5, size(5) - size(4)},
		{"an earlier recovery up to the same moment gets nothing", "earlier", 4, 0},
		{"an earlier recovery that is longer than wanted is made anew", "earlier", 3, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.t = t
			r.before(c.before)
			var inode uint64
			if fi, err := os.Stat(r.out); err == nil {
				inode = fi.Sys().(*syscall.Stat_t).Ino
			}
			res, err := r.recover(func(o *RecoverOptions) { o.At = momentAt(r.all[c.at].tid) })
			require.NoError(t, err)
			require.Equal(t, c.appended, res.Appended)
			require.Equal(t, size(int(c.at)), res.Size)
			requireSame(t, r.all[c.at].raw, read(t, r.out))
			requireIndexed(t, r.out)
			requireClean(t, r.out)
			fi, err := os.Stat(r.out)
			require.NoError(t, err)
			if c.before == "earlier" && c.at >= 4 {
				require.Equal(t, inode, fi.Sys().(*syscall.Stat_t).Ino, "it was written anew")
			}
			if c.before == "other" {
				require.Equal(t, os.FileMode(0o640), fi.Mode().Perm(), "the mode of the file that it replaces")
			}
		})
	}
}

func TestAnEarlierRecoveryThatWasChangedIsMadeAnew(t *testing.T) {
	r := newRecoveries(t)
	for _, at := range []int{0, 5, len(r.all[1].raw), len(r.all[4].raw) - 1} {
		r.before("earlier")
		b := read(t, r.out)
		b[at] ^= 1
		require.NoError(t, os.WriteFile(r.out, b, 0o644))
		res, err := r.recover()
		require.NoError(t, err)
		require.Zero(t, res.Appended)
		r.whole()
	}
	// Cut in the middle of a transaction it is still a beginning.
	r.before("earlier")
	require.NoError(t, os.Truncate(r.out, int64(len(r.all[4].raw)-7)))
	res, err := r.recover()
	require.NoError(t, err)
	require.EqualValues(t, len(r.all[8].raw)-len(r.all[4].raw)+7, res.Appended)
	r.whole()
}

// TestWeakness_ARecoveryThatFailsLeavesTheOldFile: repozo deletes the output before it has read anything.
func TestWeakness_ARecoveryThatFailsLeavesTheOldFile(t *testing.T) {
	r := newRecoveries(t)
	failure := errors.New("read error")
	for _, how := range outputs {
		for i, m := range r.manifests() {
			for _, after := range []int64{0, 1, m.StoredSize / 2, m.StoredSize - 1} {
				t.Run(fmt.Sprintf("output %s, increment %d fails after %d bytes", how, i, after), func(t *testing.T) {
					r.t = t
					before := r.before(how)
					_, err := r.recover(func(o *RecoverOptions) {
						o.Source = &flaky{Dir: r.repo, file: m.File, after: after, from: 1, err: failure}
					})
					require.ErrorIs(t, err, failure)
					requireUnchanged(t, before, filepath.Dir(r.out))
				})
			}
		}
		r.t = t
		_, err := r.recover()
		require.NoError(t, err)
		r.whole()
	}
}

// The increments are read once to verify and compare, and again to append: what fails then is taken back.
func TestAnAppendThatFailsIsTakenBack(t *testing.T) {
	r := newRecoveries(t)
	failure := errors.New("read error")
	for i, m := range r.manifests()[1:] {
		for _, after := range []int64{0, m.StoredSize / 2, m.StoredSize - 1} {
			before := r.before("earlier")
			_, err := r.recover(func(o *RecoverOptions) {
				o.Source = &flaky{Dir: r.repo, file: m.File, after: after, from: 2, err: failure}
			})
			require.ErrorIs(t, err, failure, "increment %d", i)
			requireUnchanged(t, before, filepath.Dir(r.out))
		}
	}
	_, err := r.recover()
	require.NoError(t, err)
	r.whole()
}

// TestWeakness_ATruncatedGzipIsAClearError, and so is any other damage; nothing is changed by it.
func TestWeakness_ATruncatedGzipIsAClearError(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		codec  string
	}{
		{"a gzip that was cut", func(b []byte) []byte { return b[:len(b)-9] }, "gzip"},
		{"a gzip that was cut to its header", func(b []byte) []byte { return b[:10] }, "gzip"},
		{"a gzip that was emptied", func([]byte) []byte { return nil }, "gzip"},
		{"a gzip with a flipped bit", func(b []byte) []byte { b[len(b)/2] ^= 4; return b }, "gzip"},
		{"a gzip with a flipped bit in its check sum", func(b []byte) []byte { b[len(b)-6] ^= 4; return b }, "gzip"},
		{"a gzip with something behind it", func(b []byte) []byte { return append(b, "more"...) }, "gzip"},
		{"a plain file that was cut", func(b []byte) []byte { return b[:len(b)-9] }, "none"},
		{"a plain file with a flipped bit in the data", func(b []byte) []byte { b[len(b)-20] ^= 4; return b }, "none"},
		{"a plain file with a flipped bit in a header", func(b []byte) []byte { b[4+16+1] ^= 4; return b }, "none"},
		{"a zstd that was cut", func(b []byte) []byte { return b[:len(b)-9] }, "zstd"},
		{"a zstd that was cut before its table", func(b []byte) []byte { return b[:len(b)-25] }, "zstd"},
		{"a zstd with a flipped bit", func(b []byte) []byte { b[len(b)/2] ^= 4; return b }, "zstd"},
		{"a zstd with a flipped bit in its table", func(b []byte) []byte { b[len(b)-12] ^= 4; return b }, "zstd"},
		{"a zstd with something behind it", func(b []byte) []byte { return append(b, "more"...) }, "zstd"},
		{"a plain file that is longer", func(b []byte) []byte { return append(b, 0) }, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVault(t)
			codec := func(o *incremental.BackupOptions) { o.Codec = c.codec }
			for range 3 {
				v.commit(3)
				v.backup(codec)
			}
			r := &recoveries{v, moments(t, v.bytes()), filepath.Join(t.TempDir(), "Data.fs")}
			for _, m := range r.manifests() {
				path := r.repo.Path(m.File)
				good := read(t, path)
				for _, how := range outputs {
					before := r.before(how)
					require.NoError(t, os.WriteFile(path, c.damage(append([]byte{}, good...)), 0o644))
					_, err := r.recover()
					require.ErrorIs(t, err, fault.Unverified)
					require.ErrorContains(t, err, m.File)
					require.NotEmpty(t, fault.Next(err))
					requireUnchanged(t, before, filepath.Dir(r.out))
					require.NoError(t, os.WriteFile(path, good, 0o644))
				}
			}
		})
	}
}

func TestAManifestThatLiesIsFoundOut(t *testing.T) {
	for name, lie := range map[string]func(m *incremental.Manifest){
		"about the first transaction":         func(m *incremental.Manifest) { m.FirstTID-- },
		"about the last transaction":          func(m *incremental.Manifest) { m.LastTID-- },
		"about the number of transactions":    func(m *incremental.Manifest) { m.Transactions++ },
		"about the raw bytes":                 func(m *incremental.Manifest) { m.MD5 = m.MD5[2:] + "00" },
		"about the stored bytes":              func(m *incremental.Manifest) { m.StoredSHA256 = m.StoredSHA256[2:] + "00" },
		"about the size of the stored file":   func(m *incremental.Manifest) { m.StoredSize++ },
		"about the position where it is done": func(m *incremental.Manifest) { m.End++; m.Tail.Size++ },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecoveries(t)
			before := r.before("earlier")
			m := r.manifests()[2]
			lie(m)
			require.NoError(t, os.WriteFile(r.repo.Path(incremental.ManifestName(m.Stamp)), document(t, m), 0o644))
			_, err := r.recover()
			require.ErrorIs(t, err, fault.Unverified)
			requireUnchanged(t, before, filepath.Dir(r.out))
		})
	}
}

// A crash between any two steps leaves the old output or the new one, whole, never with the other's index; and the
// next recovery completes it.
func TestARecoveryThatCrashesLeavesTheOldOutputOrTheNew(t *testing.T) {
	r := newRecoveries(t)
	for _, c := range []struct {
		point, before string
		isNew         bool
	}{
		{"built", "none", false}, {"built", "other", false},
		{"unindexed", "none", false}, {"unindexed", "other", false},
		{"renamed", "none", true}, {"renamed", "other", true},
		{"extended", "earlier", true},
	} {
		t.Run(fmt.Sprintf("at %q with output %s", c.point, c.before), func(t *testing.T) {
			r.t = t
			r.before(c.before)
			old, _ := os.ReadFile(r.out)
			oldIndex, _ := os.ReadFile(r.out + ".index")
			reached := false
			func() {
				defer func() { require.Equal(t, "crash", recover()) }()
				r.recover(func(o *RecoverOptions) {
					o.crash = func(point string) {
						if point == c.point {
							reached = true
							panic("crash")
						}
					}
				})
			}()
			require.True(t, reached)
			got, err := os.ReadFile(r.out)
			index, ierr := os.ReadFile(r.out + ".index")
			if c.isNew {
				require.NoError(t, err)
				requireSame(t, r.all[8].raw, got)
			} else {
				require.Equal(t, string(old), string(got))
				require.Equal(t, c.before != "none", err == nil)
			}
			switch {
			case c.before == "other" && c.point == "built":
				require.Equal(t, string(oldIndex), string(index))
			case c.point == "extended": // an older index of the same file
				require.Equal(t, oldIndex, index)
				f, closer, err := filestorage.Open(r.out)
				require.NoError(t, err)
				defer closer.Close()
				_, pos, err := f.LoadIndex(r.out + ".index")
				require.NoError(t, err)
				require.EqualValues(t, len(r.all[4].raw), pos)
			default:
				require.ErrorIs(t, ierr, os.ErrNotExist)
			}
			_, err = r.recover()
			require.NoError(t, err)
			r.whole()
		})
	}
}

func TestOutputsThatAreRefused(t *testing.T) {
	r := newRecoveries(t)
	for _, c := range []struct {
		name string
		make func(t *testing.T, dir string) (output string)
		kind error
		says string
	}{
		{"one that a server has locked", func(t *testing.T, dir string) string {
			lock, err := filestorage.AcquireLock(filepath.Join(dir, "Data.fs"))
			require.NoError(t, err)
			t.Cleanup(func() { lock.Release() })
			return filepath.Join(dir, "Data.fs")
		}, fault.Busy, fmt.Sprint("process ", os.Getpid())},
		{"a directory", func(t *testing.T, dir string) string { return dir }, nil, "not a regular file"},
		{"a symbolic link", func(t *testing.T, dir string) string {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "real"), []byte("real"), 0o644))
			require.NoError(t, os.Symlink("real", filepath.Join(dir, "Data.fs")))
			return filepath.Join(dir, "Data.fs")
		}, nil, "not a regular file"},
		{"one in the repository itself", func(t *testing.T, dir string) string { return r.repo.Path("Data.fs") }, fault.Usage, "repository itself"},
		{"one in a directory that is missing", func(t *testing.T, dir string) string { return filepath.Join(dir, "x", "Data.fs") }, nil, "no such file"},
		{"a standby", func(t *testing.T, dir string) string {
			writeState(t, filepath.Join(dir, "Data.fs"), Standby)
			return filepath.Join(dir, "Data.fs")
		}, fault.Refused, "is a standby"},
		{"one whose temporary name is a directory", func(t *testing.T, dir string) string {
			require.NoError(t, os.Mkdir(filepath.Join(dir, "Data.fs.tmp"), 0o755))
			return filepath.Join(dir, "Data.fs")
		}, nil, "is a directory"},
		{"one whose temporary name is a symbolic link", func(t *testing.T, dir string) string {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "real"), []byte("real"), 0o644))
			require.NoError(t, os.Symlink("real", filepath.Join(dir, "Data.fs.tmp")))
			return filepath.Join(dir, "Data.fs")
		}, nil, "symbolic links"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			r.t, r.out = t, c.make(t, dir)
			before, repo := tree(t, dir), tree(t, string(r.repo))
			_, err := r.recover()
			require.ErrorContains(t, err, c.says)
			if c.kind != nil {
				require.ErrorIs(t, err, c.kind)
				require.NotEmpty(t, fault.Next(err))
			}
			require.NotEmpty(t, fault.Kept(err))
			requireUnchanged(t, before, dir)
			require.Equal(t, repo, tree(t, string(r.repo)))
		})
	}
}

func writeState(t *testing.T, data string, role Role) {
	t.Helper()
	proof, err := incremental.ProveTail(strings.NewReader("FS30"), 4)
	require.NoError(t, err)
	st := State{Lineage: "l", Epoch: 1, Role: role, Applied: Applied{Chain: "2024-03-01-10-00-00", Stamp: "2024-03-01-10-00-00", Position: 4, Tail: proof, Time: time.Now()}}
	require.NoError(t, st.write(data))
}

func TestAPromotedNodesDataFsMayBeRecoveredOver(t *testing.T) {
	r := newRecoveries(t)
	r.before("other")
	writeState(t, r.out, Promoted)
	_, err := r.recover()
	require.NoError(t, err)
	requireSame(t, r.all[8].raw, read(t, r.out))
}

const limitEnv = "ZODBREPL_TEST_FILE_SIZE_LIMIT"

// TestFullDiskChild is the process that recovers with a limit on the size of a file; alone it does nothing.
func TestFullDiskChild(t *testing.T) {
	limit, err := strconv.ParseUint(os.Getenv(limitEnv), 10, 64)
	if err != nil {
		t.Skip("a part of TestAFullDiskLeavesTheOldFile")
	}
	signal.Ignore(syscall.SIGXFSZ)
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}))
	_, err = Recover(t.Context(), RecoverOptions{Source: incremental.Dir(os.Getenv("REPO")), Output: os.Getenv("OUT")})
	fmt.Println("recovery:", err, "next:", fault.Next(err))
}

func TestAFullDiskLeavesTheOldFile(t *testing.T) {
	r := newRecoveries(t)
	for _, how := range outputs {
		for _, limit := range []int{64, len(r.all[4].raw) + 1, len(r.all[8].raw) - 1} {
			before := r.before(how)
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDiskChild$", "-test.v")
			cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", limitEnv, limit), "REPO="+string(r.repo), "OUT="+r.out)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), "file too large")
			require.Contains(t, string(out), "next: see to the disk")
			requireUnchanged(t, before, filepath.Dir(r.out))
		}
	}
	_, err := r.recover()
	require.NoError(t, err)
	r.whole()
}
