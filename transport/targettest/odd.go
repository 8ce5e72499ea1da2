package targettest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// victim makes a file elsewhere that a symbolic link could lead to.
func victim(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	return path
}

func intact(t *testing.T, victim string) {
	t.Helper()
	b, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
}

func contractTempLink(t *testing.T, p Place) {
	v := victim(t)
	require.NoError(t, os.Symlink(v, p.temp(file)))
	_, err := p.Put(t.Context(), file, bytes.NewReader([]byte("new")), 3, nil)
	require.Error(t, err)
	intact(t, v)
	require.NoError(t, p.Remove(t.Context(), file))
	mustPublish(t, p, file, []byte("new"))
	intact(t, v)
}

func contractTempDirectory(t *testing.T, p Place) {
	require.NoError(t, os.Mkdir(p.temp(file), 0o755))
	_, err := p.Put(t.Context(), file, bytes.NewReader([]byte("new")), 3, nil)
	require.ErrorContains(t, err, "not a regular file")
	require.DirExists(t, p.temp(file))
}

func contractLink(t *testing.T, p Place) {
	v := victim(t)
	require.NoError(t, os.Symlink(v, p.path(file)))
	mustPublish(t, p, file, []byte("new"))
	intact(t, v)
	sameBytes(t, []byte("new"), get(t, p, file))
}

func contractReadLink(t *testing.T, p Place) {
	require.NoError(t, os.Symlink(victim(t), p.path(file)))
	_, err := p.Open(t.Context(), file)
	require.Error(t, err)
	_, _, err = p.Stat(t.Context(), file)
	require.Error(t, err)
}
