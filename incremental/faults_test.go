package incremental

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

var errBroken = errors.New("input/output error")

// failing fails for every read that touches the byte at bad.
type failing struct {
	filestorage.Reader
	bad int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.bad && f.bad < off+int64(len(p)) {
		n, _ := f.Reader.ReadAt(p[:f.bad-off], off)
		return n, errBroken
	}
	return f.Reader.ReadAt(p, off)
}

// short gives at most n bytes a read, as an io.ReaderAt must not, yet some file systems do.
type short struct {
	filestorage.Reader
	n int
}

func (s short) ReadAt(p []byte, off int64) (int, error) {
	return s.Reader.ReadAt(p[:min(len(p), s.n)], off)
}

// shrinking has only size bytes after so many reads.
type shrinking struct {
	filestorage.Reader
	reads *int
	size  int64
}

func (s shrinking) Size() (int64, error) {
	if *s.reads <= 0 {
		return s.size, nil
	}
	return s.Reader.Size()
}

func (s shrinking) ReadAt(p []byte, off int64) (int, error) {
	if *s.reads--; *s.reads >= 0 {
		return s.Reader.ReadAt(p, off)
	}
	return bytes.NewReader(make([]byte, s.size)).ReadAt(p, off)
}

func TestADataFsThatCannotBeReadAtOneByte(t *testing.T) {
	w := newWorld(t)
	w.grow(3)
	w.backup()
	w.grow(3)
	before := contents(t, w.repo)
	delta := manifestsOf(t, w.repo)[0].End
	for n := int64(0); n < w.g.Size(); n += 97 {
		_, err := w.try(deep, through(func(r filestorage.Reader) filestorage.Reader { return failing{r, n} }))
		require.ErrorIs(t, err, errBroken, "byte %d", n)
		require.Equal(t, 1, fault.ExitCode(err), "a disk that fails is no damage")
		require.ErrorContains(t, err, w.data)
		if n >= delta {
			require.Equal(t, "the repository is as it was", fault.Kept(err))
		}
		require.Equal(t, before, contents(t, w.repo))
	}
	require.Equal(t, "delta", w.backup().Action)
	w.whole()
}

func TestShortReadsOfDataFsAreFinished(t *testing.T) {
	for _, n := range []int{1, 7, 100} {
		w := newWorld(t)
		w.grow(3)
		stingy := through(func(r filestorage.Reader) filestorage.Reader { return short{r, n} })
		w.backup(stingy)
		w.grow(2)
		require.Equal(t, "delta", w.backup(stingy, deep).Action)
		require.Equal(t, "none", w.backup(stingy, deep).Action)
		w.whole()
	}
}

func TestADataFsThatShrinksWhileItIsRead(t *testing.T) {
	w := newWorld(t)
	w.grow(4)
	w.backup()
	w.grow(6)
	before := contents(t, w.repo)
	seen := 0
	for reads := 2; reads < 20; reads++ {
		for _, size := range []int64{0, 3, 300, w.g.Size() - 1} {
			left := reads
			dir := copyDir(t, w.repo)
			_, err := w.try(through(func(r filestorage.Reader) filestorage.Reader { return shrinking{r, &left, size} }),
				func(o *BackupOptions) { o.Repository = dir })
			if err == nil { // it had all it needed, or saw a shorter file from the start
				v, err := Verify(t.Context(), dir, VerifyOptions{})
				require.NoError(t, err)
				require.True(t, v.OK)
				continue
			}
			seen++
			require.Equal(t, before, contents(t, dir), "after %d reads: %v", reads, err)
		}
	}
	require.Greater(t, seen, 20)
}

func TestDamageInTheMiddleOfDataFs(t *testing.T) {
	for _, name := range []string{"bad-middle-length.fs", "bad-middle-checkpoint.fs", "bad-middle-status.fs", "bad-trailing.fs", "bad-tloc.fs"} {
		t.Run(name, func(t *testing.T) {
			dir := Dir(t.TempDir())
			data := realFile(t, name)
			_, err := Backup(t.Context(), BackupOptions{Data: data, Repository: dir})
			require.ErrorIs(t, err, fault.Unverified)
			var corrupt *filestorage.CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.Equal(t, data, corrupt.File)
			require.Positive(t, corrupt.Pos)
			require.NotZero(t, corrupt.TID)
			require.Equal(t, "the repository is as it was", fault.Kept(err))
			require.Contains(t, fault.Next(err), "zodbrepl check-fs "+data)
			require.Empty(t, contents(t, dir))
		})
	}
}

func TestWhatIsNoDataFs(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "empty"), "")
	writeFile(t, filepath.Join(dir, "text"), "this is no Data.fs")
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	for name, want := range map[string]string{
		"empty": "the file is empty", "text": `begins with "this"`, "pipe": "is a pipe, not a regular file", ".": "is a directory",
		"missing": "no such file",
	} {
		t.Run(name, func(t *testing.T) {
			repo := Dir(t.TempDir())
			_, err := Backup(t.Context(), BackupOptions{Data: filepath.Join(dir, name), Repository: repo})
			require.ErrorContains(t, err, want)
			require.NotEmpty(t, fault.Next(err))
			require.Empty(t, contents(t, repo))
		})
	}
}

func TestABackupThatIsCancelled(t *testing.T) {
	w := newWorld(t)
	w.grow(3)
	before := contents(t, w.repo)
	for stop := 1; ; stop++ {
		n := 0
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Backup(ctx, w.options(through(func(r filestorage.Reader) filestorage.Reader {
			return onEveryRead{r, func() {
				if n++; n == stop {
					cancel()
				}
			}}
		})))
		cancel()
		if err == nil { // all was read by then
			require.Greater(t, stop, 4)
			break
		}
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, before, contents(t, w.repo))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Backup(ctx, w.options(full))
	require.ErrorIs(t, err, context.Canceled)
	w.whole()
	_, err = Verify(ctx, w.repo, VerifyOptions{})
	require.ErrorIs(t, err, context.Canceled)
}

type onEveryRead struct {
	filestorage.Reader
	do func()
}

func (r onEveryRead) ReadAt(p []byte, off int64) (int, error) {
	r.do()
	return r.Reader.ReadAt(p, off)
}

// limitedBackup makes a backup in a process of its own, in which the kernel lets no file grow beyond n bytes: writes
// end short, then fail with EFBIG.
func limitedBackup(t *testing.T, n uint64, o BackupOptions) (failed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestTheProcessOfALimitedBackup$")
	// The race detector sleeps for a second when a process ends, so that goroutines that run on can be caught. Here none does.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"), fmt.Sprintf("LIMITED_BACKUP=%d", n), "LIMITED_DATA="+o.Data, "LIMITED_REPOSITORY="+string(o.Repository),
		"LIMITED_CODEC="+o.Codec, "ZODBREPL_NOW="+o.Now().Format(time.RFC3339))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if bytes.Contains(out, []byte("went well")) {
		return false
	}
	require.Contains(t, string(out), "file too large")
	require.Contains(t, string(out), "writing to repository "+string(o.Repository))
	require.Contains(t, string(out), "untouched: every increment that was there is as it was")
	require.Contains(t, string(out), "next: ")
	return true
}

func TestTheProcessOfALimitedBackup(t *testing.T) {
	n, err := strconv.ParseUint(os.Getenv("LIMITED_BACKUP"), 10, 64)
	if err != nil {
		return // it is for limitedBackup
	}
	signal.Ignore(unix.SIGXFSZ)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: n, Max: n}))
	_, err = Backup(t.Context(), BackupOptions{Data: os.Getenv("LIMITED_DATA"), Repository: Dir(os.Getenv("LIMITED_REPOSITORY")),
		Codec: os.Getenv("LIMITED_CODEC")})
	if err == nil {
		fmt.Println("went well")
		return
	}
	require.ErrorIs(t, err, unix.EFBIG)
	fmt.Println(fault.Explain(err))
}

// The kernel refuses to write more than so many bytes to any file, which hits the increment, the .dat or the manifest.
func TestAFullDisk(t *testing.T) {
	for _, kind := range []string{"full", "delta"} {
		for _, codec := range []string{"gzip", "none"} {
			t.Run(kind+" "+codec, func(t *testing.T) {
				w := newWorld(t)
				with := func(o *BackupOptions) { o.Codec = codec }
				if kind == "delta" {
					for range 5 { // so that the .dat is larger than an increment, and the manifest larger than both
						w.growBy(20)
						w.backup(with)
					}
				}
				w.growBy(20)
				before := contents(t, w.repo)
				was := repozoRecovers(t, w.repo)
				failed := map[string]int{}
				for limit := uint64(10); limit < 2000; limit += 90 {
					dir := copyDir(t, w.repo)
					o := w.options(with)
					o.Repository = dir
					if !limitedBackup(t, limit, o) {
						failed["nothing"]++
						continue
					}
					require.Empty(t, names(t, dir, ".tmp"))
					now := contents(t, dir)
					if len(now) == len(before) {
						require.Equal(t, before, now, "limit %d", limit)
						same(t, was, repozoRecovers(t, dir))
						failed["increment or .dat"]++
					} else {
						same(t, w.committed(), repozoRecovers(t, dir))
						repozoVerifies(t, dir)
						repo, err := Open(t.Context(), dir)
						require.NoError(t, err)
						unlisted, err := repo.Unpublished(t.Context())
						require.NoError(t, err)
						require.Empty(t, unlisted, "what could not be listed is removed: the next run needs the room")
						failed["manifest"]++
					}
					_, err := Backup(t.Context(), o)
					require.NoError(t, err, "there is room again")
					same(t, w.committed(), lastChain(t, dir))
					same(t, w.committed(), repozoRecovers(t, dir))
					v, err := Verify(t.Context(), dir, VerifyOptions{})
					require.NoError(t, err)
					require.Empty(t, v.Unpublished)
					require.Empty(t, v.Warnings)
				}
				require.Len(t, failed, 3, "%v", failed)
			})
		}
	}
}

// asNobody runs do without root's right to write everywhere.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	if os.Getuid() != 0 {
		do()
		return
	}
	const nobody = 65534
	// The right belongs to the thread: another goroutine must not come to run on it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.Setfsuid(nobody))
	defer func() { require.NoError(t, unix.Setfsuid(0)) }()
	do()
}

func TestARepositoryThatMayNotBeWritten(t *testing.T) {
	for _, lock := range []bool{true, false} {
		t.Run(fmt.Sprintf("the lock is writable: %v", lock), func(t *testing.T) {
			w := newWorld(t)
			w.grow(2)
			w.backup()
			w.grow(1)
			if lock {
				require.NoError(t, os.Chmod(w.repo.Path(lockName), 0o666))
			} else {
				require.NoError(t, os.Remove(w.repo.Path(lockName)))
			}
			require.NoError(t, os.Chmod(string(w.repo), 0o555))
			t.Cleanup(func() { os.Chmod(string(w.repo), 0o755) })
			for dir := filepath.Dir(string(w.repo)); len(dir) > len(os.TempDir()); dir = filepath.Dir(dir) {
				require.NoError(t, os.Chmod(dir, 0o755))
			}
			before := contents(t, w.repo)
			asNobody(t, func() {
				_, err := w.try()
				require.ErrorIs(t, err, os.ErrPermission)
				require.Equal(t, 1, fault.ExitCode(err))
				require.Contains(t, fault.Next(err), "right to write")
				require.NotEmpty(t, fault.Kept(err))
			})
			require.Equal(t, before, contents(t, w.repo))
			asNobody(t, func() { w.verifies() })
		})
	}
}

func TestARepositoryThatIsNoDirectory(t *testing.T) {
	w := newWorld(t)
	w.grow(1)
	file := filepath.Join(t.TempDir(), "file")
	writeFile(t, file, "mine")
	missing := filepath.Join(t.TempDir(), "mount", "zodb")
	for _, tt := range []struct{ path, want, next string }{
		{file, "repository " + file + " is a file, not a directory", "give the directory"},
		{missing, "repository " + missing + " does not exist", "mkdir -p " + missing},
	} {
		_, err := w.try(func(o *BackupOptions) { o.Repository = Dir(tt.path) })
		require.EqualError(t, err, tt.want)
		require.Equal(t, 1, fault.ExitCode(err))
		require.NotEmpty(t, fault.Kept(err))
		require.Contains(t, fault.Next(err), tt.next)
		_, err = Verify(t.Context(), Dir(tt.path), VerifyOptions{})
		require.EqualError(t, err, tt.want)
		_, err = List(t.Context(), Dir(tt.path))
		require.EqualError(t, err, tt.want)
	}
	require.NoDirExists(t, filepath.Dir(missing), "an unmounted directory is not filled")
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "mine", string(b))
}

func TestAnUnknownCodec(t *testing.T) {
	w := newWorld(t)
	w.grow(1)
	_, err := w.try(func(o *BackupOptions) { o.Codec = "lzma" })
	require.ErrorIs(t, err, fault.Usage)
	require.ErrorContains(t, err, `unknown codec "lzma"; there are [gzip none zstd]`)
	require.Empty(t, names(t, w.repo, ""))
}

func TestAFileThatAppearsInThePlaceOfTheIncrement(t *testing.T) {
	w := newWorld(t)
	w.grow(1)
	w.now = w.now.Add(1)
	file := string(StampAt(w.now)) + ".fsz"
	_, err := w.try(func(o *BackupOptions) {
		o.crash = func(string) { _ = os.WriteFile(w.repo.Path(file), []byte("another's"), 0o644) }
	})
	require.ErrorContains(t, err, file+" appeared while it was made")
	require.Equal(t, []string{file, lockName}, names(t, w.repo, ""))
	b, err := os.ReadFile(w.repo.Path(file))
	require.NoError(t, err)
	require.Equal(t, "another's", string(b))
}
