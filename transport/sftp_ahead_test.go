package transport

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/sshtest"
)

func TestManifestsAreFetchedBeforeTheyAreWanted(t *testing.T) {
	dir := t.TempDir()
	var names []string
	for i := range 100 {
		name := fmt.Sprintf("2024-03-01-10-00-%02d.manifest", i%60)
		if i >= 60 {
			name = fmt.Sprintf("2024-03-01-11-00-%02d.manifest", i%60)
		}
		names = append(names, name)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
	}
	server, home := sshtest.Start(t, sshtest.Options{Dir: dir}), sshtest.NewHome(t)
	home.Trust(server)
	home.AddKey("id_ed25519", server.Key)
	target, err := OpenTarget(t.Context(), server.URL(dir), TargetOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { target.Close() })
	read := func(name string) string {
		t.Helper()
		r, err := target.Open(t.Context(), name)
		require.NoError(t, err)
		defer r.Close()
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		return string(b)
	}
	opened := func() (n int) {
		for _, r := range server.Requests() {
			if r.Op == "open" {
				n++
			}
		}
		return n
	}
	for _, upwards := range []bool{true, false} {
		_, err := target.List(t.Context())
		require.NoError(t, err)
		server.Reset()
		for i, name := range names {
			require.Equal(t, name, read(name))
			if i < 2 {
				require.LessOrEqual(t, opened(), 3, "who looks at one or two fetches little else")
			}
			if i == 10 { // by now there is much under way
				require.Eventually(t, func() bool { return opened() >= 30 }, time.Minute, time.Millisecond)
			}
		}
		require.Equal(t, 100, opened(), "each once, upwards %v", upwards)
		slices.Reverse(names)
	}

	// What was fetched is forgotten by a listing, and what has changed since is read as it is.
	_, err = target.List(t.Context())
	require.NoError(t, err)
	slices.Sort(names)
	read(names[0])
	read(names[1])
	require.NoError(t, os.WriteFile(filepath.Join(dir, names[40]), []byte("another, longer one"), 0o644))
	for i, name := range names[2:] {
		want := name
		if i+2 == 40 {
			want = "another, longer one"
		}
		require.Equal(t, want, read(name))
	}
	require.NoError(t, os.Remove(filepath.Join(dir, names[41])))
	_, err = target.List(t.Context())
	require.NoError(t, err)
	_, err = target.Open(t.Context(), names[41])
	require.ErrorIs(t, err, os.ErrNotExist)
}
