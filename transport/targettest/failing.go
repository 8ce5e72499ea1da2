package targettest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// ReadOnly is what a target must do on which nothing may be changed: it can be read, every change is refused with the
// remedy, and everything there is as it was. It holds files already: one as Seed leaves it.
func ReadOnly(t *testing.T, p Place) {
	before := snapshot(t, p.Dir)
	sameBytes(t, text(1, 100_000), get(t, p, file))
	size, exists, err := p.Stat(t.Context(), file)
	require.NoError(t, err)
	require.True(t, exists)
	require.EqualValues(t, 100_000, size)
	require.Equal(t, []string{file}, names(t, p))

	for _, name := range []string{file, "other"} {
		sent, err := p.Put(t.Context(), name, bytes.NewReader(text(2, 70_000)), 70_000, nil)
		require.ErrorContains(t, err, "cannot be written", name)
		require.NotEmpty(t, fault.Next(err))
		require.Zero(t, sent)
	}
	for what, err := range map[string]error{
		"publish": p.Publish(t.Context(), file),
		"rename":  p.Rename(t.Context(), file, "other"),
		"remove":  p.Remove(t.Context(), file),
	} {
		require.ErrorContains(t, err, "cannot be written", what)
		require.NotEmpty(t, fault.Next(err), what)
	}
	require.Equal(t, before, snapshot(t, p.Dir))
}

// Seed leaves the files in dir that ReadOnly looks for: a published one and its successor's temporary file.
func Seed(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(dir, file), text(1, 100_000), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, file+durable.TempSuffix), text(1, 50_000), 0o644))
}

// Full is what a target must do whose disk is full: it says so, what is published stays, and when there is room, only
// the rest travels. The disk must have room for less than size bytes; makeRoom makes more.
func Full(t *testing.T, p Place, size int, makeRoom func()) {
	mustPublish(t, p, "published", text(3, 1000))
	content := text(4, size)
	first, err := p.Put(t.Context(), file, bytes.NewReader(content), int64(size), nil)
	require.ErrorContains(t, err, "is full")
	require.NotEmpty(t, fault.Next(err))
	require.NotEmpty(t, fault.Kept(err))
	sameBytes(t, text(3, 1000), get(t, p, "published"))
	_, exists, err := p.Stat(t.Context(), file)
	require.NoError(t, err)
	require.False(t, exists)
	half, err := os.Stat(p.temp(file))
	require.NoError(t, err)
	require.Positive(t, half.Size())

	makeRoom()
	second := mustPut(t, p, file, content)
	t.Logf("%d bytes, of which %d travelled twice", size, max(0, first+second-int64(size)))
	require.Less(t, second, int64(size), "what is there is not sent again")
	require.NoError(t, p.Publish(t.Context(), file))
	sameBytes(t, content, get(t, p, file))
}

// snapshot is the names, contents and times of the files in dir.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		fi, err := e.Info()
		require.NoError(t, err)
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		all[e.Name()] = fi.ModTime().String() + string(b)
	}
	return all
}
