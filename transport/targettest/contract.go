// Package targettest is the suite that every transport.Target must pass, for the tests of the package and for those
// that reach a target through a real server.
package targettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/durable"
	"zodbrepl/transport"
)

// Place is an empty target and the local directory behind it, in which the suite looks and meddles.
type Place struct {
	transport.Target
	Dir string
}

func (p Place) path(name string) string { return filepath.Join(p.Dir, name) }
func (p Place) temp(name string) string { return p.path(name) + durable.TempSuffix }

// Contract is what every Target must do. fresh makes an empty one.
func Contract(t *testing.T, fresh func(t *testing.T) Place) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(t *testing.T, p Place)
	}{
		{"a file that was put exists for nobody until it is published", contractPublish},
		{"publishing replaces a file in one step", contractReplace},
		{"publishing what was not put fails and changes nothing", contractPublishNothing},
		{"empty content makes an empty file", contractEmpty},
		{"half a file is gone on with, and only the rest travels", contractResume},
		{"a temporary file that differs is not trusted", contractDiffers},
		{"a temporary file that is longer is cut", contractLonger},
		{"content that ends early is an error and published files stay", contractShort},
		{"content that fails is an error with its cause", contractFails},
		{"a cancelled context stops every call", contractCancelled},
		{"a context cancelled in the middle stops a put, which can be gone on with", contractCancelledPut},
		{"a symbolic link in the place of the temporary file is not followed", contractTempLink},
		{"what is no file in the place of the temporary file is not touched", contractTempDirectory},
		{"a symbolic link in the place of the file is replaced, not followed", contractLink},
		{"a symbolic link has no size and is not read", contractReadLink},
		{"a missing file has no size and cannot be opened", contractMissing},
		{"a file that is renamed has the new name only, and replaces what had it", contractRename},
		{"renaming what is not there fails and changes nothing", contractRenameNothing},
		{"of many that rename one file at once, only one succeeds", contractRenameOnce},
		{"removing is idempotent and takes the temporary file too", contractRemove},
		{"puts of different names at once do not disturb each other", contractConcurrent},
		{"progress grows to the size and may be nil", contractProgress},
		{"the list is sorted and names the files only as they are", contractList},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := fresh(t)
			t.Cleanup(func() { p.Close() })
			c.test(t, p)
		})
	}
}

const file = "2024-03-01-10-00-00.fsz"

// text is n bytes, larger than what a target moves at once when n is.
func text(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func mustPut(t *testing.T, p Place, name string, content []byte) (sent int64) {
	t.Helper()
	sent, err := p.Put(t.Context(), name, bytes.NewReader(content), int64(len(content)), nil)
	require.NoError(t, err)
	return sent
}

func mustPublish(t *testing.T, p Place, name string, content []byte) {
	t.Helper()
	mustPut(t, p, name, content)
	require.NoError(t, p.Publish(t.Context(), name))
}

func get(t *testing.T, p Place, name string) []byte {
	t.Helper()
	r, err := p.Open(t.Context(), name)
	require.NoError(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

func sameBytes(t *testing.T, want, got []byte) {
	t.Helper()
	require.True(t, bytes.Equal(want, got), "%d bytes, want %d, or others", len(got), len(want))
}

// names lists the published files.
func names(t *testing.T, p Place) (names []string) {
	t.Helper()
	entries, err := p.List(t.Context())
	require.NoError(t, err)
	for _, e := range entries {
		if filepath.Ext(e.Name()) != durable.TempSuffix {
			names = append(names, e.Name())
		}
	}
	return names
}

func contractPublish(t *testing.T, p Place) {
	content := text(1, 3<<20+17)
	require.EqualValues(t, len(content), mustPut(t, p, file, content))
	_, exists, err := p.Stat(t.Context(), file)
	require.NoError(t, err)
	require.False(t, exists)
	require.Empty(t, names(t, p))
	require.NoError(t, p.Publish(t.Context(), file))
	size, exists, err := p.Stat(t.Context(), file)
	require.NoError(t, err)
	require.True(t, exists)
	require.EqualValues(t, len(content), size)
	require.Equal(t, []string{file}, names(t, p))
	sameBytes(t, content, get(t, p, file))
	require.NoFileExists(t, p.temp(file))
}

func contractReplace(t *testing.T, p Place) {
	mustPublish(t, p, file, []byte("the old one, which is longer"))
	old, err := p.Open(t.Context(), file)
	require.NoError(t, err)
	defer old.Close()
	mustPut(t, p, file, []byte("the new one"))
	sameBytes(t, []byte("the old one, which is longer"), get(t, p, file))
	require.NoError(t, p.Publish(t.Context(), file))
	sameBytes(t, []byte("the new one"), get(t, p, file))
	b, err := io.ReadAll(old)
	require.NoError(t, err)
	require.Equal(t, "the old one, which is longer", string(b), "a reader saw the exchange: it was not a rename")
}

func contractPublishNothing(t *testing.T, p Place) {
	mustPublish(t, p, file, []byte("there"))
	require.ErrorIs(t, p.Publish(t.Context(), file), fs.ErrNotExist)
	require.ErrorIs(t, p.Publish(t.Context(), "never-put"), fs.ErrNotExist)
	sameBytes(t, []byte("there"), get(t, p, file))
}

func contractEmpty(t *testing.T, p Place) {
	require.Zero(t, mustPut(t, p, file, nil))
	require.NoError(t, p.Publish(t.Context(), file))
	require.Empty(t, get(t, p, file))
}

var errCut = errors.New("the line was cut")

// cutAt is content that fails at byte n.
type cutAt struct {
	content []byte
	n       int64
}

func (c cutAt) ReadAt(p []byte, off int64) (int, error) {
	if off >= c.n {
		return 0, errCut
	}
	n := copy(p[:min(int64(len(p)), c.n-off)], c.content[off:])
	if n < len(p) {
		return n, errCut
	}
	return n, nil
}

// halve leaves n bytes of content in the temporary file.
func halve(t *testing.T, p Place, content []byte, n int64) {
	t.Helper()
	sent, err := p.Put(t.Context(), file, cutAt{content, n}, int64(len(content)), nil)
	require.ErrorIs(t, err, errCut)
	require.EqualValues(t, n, sent)
}

func contractResume(t *testing.T, p Place) {
	content := text(2, 2<<20+3)
	for i, half := range []int64{1, 70_000, 1<<20 + 5, int64(len(content)) - 1} {
		require.NoError(t, p.Remove(t.Context(), file))
		halve(t, p, content, half)
		require.EqualValues(t, int64(len(content))-half, mustPut(t, p, file, content), "round %d", i)
		require.Zero(t, mustPut(t, p, file, content), "it is there whole")
		require.NoError(t, p.Publish(t.Context(), file))
		sameBytes(t, content, get(t, p, file))
	}
}

func contractDiffers(t *testing.T, p Place) {
	content := text(3, 300_000)
	for _, at := range []int{0, 1, 65_535, 65_536, 150_000} {
		other := bytes.Clone(content[:200_000])
		other[at] ^= 1
		mustPut(t, p, file, other)
		sent := mustPut(t, p, file, content)
		require.GreaterOrEqual(t, sent, int64(100_000), "what is missing must travel")
		require.LessOrEqual(t, sent, int64(len(content)))
		require.NoError(t, p.Publish(t.Context(), file))
		sameBytes(t, content, get(t, p, file))
	}
}

func contractLonger(t *testing.T, p Place) {
	content := text(4, 200_000)
	mustPut(t, p, file, content)
	require.Zero(t, mustPut(t, p, file, content[:70_001]))
	require.NoError(t, p.Publish(t.Context(), file))
	sameBytes(t, content[:70_001], get(t, p, file))
	mustPut(t, p, file, content)
	require.Zero(t, mustPut(t, p, file, nil))
	require.NoError(t, p.Publish(t.Context(), file))
	require.Empty(t, get(t, p, file))
}

func contractShort(t *testing.T, p Place) {
	mustPublish(t, p, file, []byte("old"))
	content := text(5, 100_000)
	for _, there := range []int{0, 30_000, 100_000} { // bytes that an earlier run left
		require.NoError(t, os.WriteFile(p.temp(file), content[:there], 0o600))
		require.NoError(t, os.Chmod(p.temp(file), 0o666)) // the server may be of another user
		_, err := p.Put(t.Context(), file, bytes.NewReader(content[:60_000]), 100_000, nil)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		sameBytes(t, []byte("old"), get(t, p, file))
	}
}

func contractFails(t *testing.T, p Place) {
	mustPublish(t, p, file, []byte("old"))
	content := text(6, 3<<20)
	halve(t, p, content, 2<<20+1)
	// Now the failure meets the comparison.
	sent, err := p.Put(t.Context(), file, cutAt{content, 100_000}, int64(len(content)), nil)
	require.ErrorIs(t, err, errCut)
	require.Zero(t, sent)
	sameBytes(t, []byte("old"), get(t, p, file))
	require.Less(t, mustPut(t, p, file, content), int64(1<<20), "what was there must not be lost by a failed comparison")
}

func contractCancelled(t *testing.T, p Place) {
	mustPublish(t, p, file, []byte("old"))
	mustPut(t, p, file, []byte("new"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.List(ctx)
	require.ErrorIs(t, err, context.Canceled)
	_, err = p.Open(ctx, file)
	require.ErrorIs(t, err, context.Canceled)
	_, _, err = p.Stat(ctx, file)
	require.ErrorIs(t, err, context.Canceled)
	_, err = p.Put(ctx, "other", bytes.NewReader(nil), 0, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, p.Publish(ctx, file), context.Canceled)
	require.ErrorIs(t, p.Rename(ctx, file, "other"), context.Canceled)
	require.ErrorIs(t, p.Remove(ctx, file), context.Canceled)
	sameBytes(t, []byte("old"), get(t, p, file))
	require.NoFileExists(t, p.temp("other"))
	require.FileExists(t, p.temp(file))
}

func contractCancelledPut(t *testing.T, p Place) {
	content := text(7, 6<<20)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sent, err := p.Put(ctx, file, bytes.NewReader(content), int64(len(content)), func(int64, int64) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	require.Positive(t, sent)
	require.Less(t, sent, int64(len(content)))
	require.EqualValues(t, int64(len(content))-sent, mustPut(t, p, file, content))
}

func contractMissing(t *testing.T, p Place) {
	size, exists, err := p.Stat(t.Context(), file)
	require.NoError(t, err)
	require.False(t, exists)
	require.Zero(t, size)
	_, err = p.Open(t.Context(), file)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func contractRemove(t *testing.T, p Place) {
	mustPublish(t, p, "stays", []byte("stays"))
	mustPublish(t, p, file, []byte("goes"))
	mustPut(t, p, file, []byte("goes too"))
	for range 3 {
		require.NoError(t, p.Remove(t.Context(), file))
		require.NoFileExists(t, p.path(file))
		require.NoFileExists(t, p.temp(file))
	}
	require.Equal(t, []string{"stays"}, names(t, p))
}

func contractConcurrent(t *testing.T, p Place) {
	const n = 8
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			name, content := fmt.Sprintf("file-%d", i), text(uint64(i), 400_000+i)
			for range 3 {
				if _, err := p.Put(t.Context(), name, bytes.NewReader(content), int64(len(content)), nil); err != nil {
					errs[i] = err
					return
				}
				if errs[i] = p.Publish(t.Context(), name); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	for i := range n {
		sameBytes(t, text(uint64(i), 400_000+i), get(t, p, fmt.Sprintf("file-%d", i)))
	}
	require.Len(t, names(t, p), n)
}

func contractProgress(t *testing.T, p Place) {
	content := text(8, 3<<20+1)
	var last int64
	_, err := p.Put(t.Context(), file, bytes.NewReader(content), int64(len(content)), func(done, total int64) {
		if total != int64(len(content)) || done <= last {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	require.NoError(t, err)
	require.EqualValues(t, len(content), last)
}

func contractList(t *testing.T, p Place) {
	for _, name := range []string{"b.manifest", "a.fsz", "Ä ö.standby", "c"} {
		mustPublish(t, p, name, []byte(name))
	}
	require.NoError(t, os.Mkdir(p.path("d"), 0o755))
	require.Equal(t, []string{"a.fsz", "b.manifest", "c", "d", "Ä ö.standby"}, names(t, p))
	entries, err := p.List(t.Context())
	require.NoError(t, err)
	for _, e := range entries {
		fi, err := e.Info()
		require.NoError(t, err)
		require.Equal(t, e.Name() != "d", fi.Mode().IsRegular(), e.Name())
		if e.Name() != "d" {
			require.EqualValues(t, len(e.Name()), fi.Size())
		}
	}
}
