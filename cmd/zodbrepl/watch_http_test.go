package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestARunningWatchAnswersOverHTTP(t *testing.T) {
	dir := t.TempDir()
	master, standby, repo := filepath.Join(dir, "master.fs"), filepath.Join(dir, "standby.fs"), filepath.Join(dir, "repo")
	require.NoError(t, os.Mkdir(repo, 0o755))
	require.NoError(t, grow(master, true, 5, 300, "", false))
	zodbrepl(t, "backup", "-f", master, "-r", repo)

	p := start(t, "watch", "--from", repo, "--data", standby, "--http", ":0")
	var address string
	until(t, "the address", func() bool {
		m := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(p.stderr.String())
		if m != nil {
			address = m[1]
		}
		return m != nil
	})
	host, _, err := net.SplitHostPort(address)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1", host, "for this host alone when nothing else was said")
	get := func(path string) (code int, body string) {
		r, err := http.Get("http://" + address + path)
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		return r.StatusCode, string(b)
	}
	until(t, "healthy", func() bool { code, body := get("/healthz"); return code == 200 && len(body) > 0 })
	code, body := get("/role?is=standby")
	require.Equal(t, 200, code)
	require.Equal(t, "standby\n", body)
	code, _ = get("/metrics")
	require.Equal(t, 404, code)

	// A port in use is an error at the start, and nothing was done.
	other := filepath.Join(dir, "other.fs")
	q := start(t, "watch", "--from", repo, "--data", other, "--http", address)
	<-q.ended
	require.Equal(t, 1, q.ProcessState.ExitCode())
	require.Contains(t, q.stderr.String(), "address already in use\n  untouched: watch was not started\n  next: ")
	require.NoFileExists(t, other+".lock")

	// A promotion ends the watch, and the answers with it.
	zodbrepl(t, "promote", "--data", standby)
	<-p.ended
	require.Equal(t, 3, p.ProcessState.ExitCode())
	code, _ = get("/healthz")
	require.Zero(t, code, "nothing listens any more")
}

func TestWrongHealthFlagsAreRefused(t *testing.T) {
	for _, c := range []struct {
		name, says string
		args       []string
	}{
		{"no port", "is not HOST:PORT", []string{"--http", "localhost"}},
		{"a port by name", "the port is a number", []string{"--http", ":http"}},
		{"a port too high", "the port is a number", []string{"--http", ":65536"}},
		{"a lag shorter than the interval", "unhealthy between two looks", []string{"--http", ":0", "--interval", "10m"}},
		{"no lag at all", "lengths of time", []string{"--max-lag", "0"}},
		{"an age below nothing", "lengths of time", []string{"--max-age", "-1s"}},
		{"a watch that ends", "--once ends it", []string{"--http", ":0", "--once"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, stdout, stderr := runHere(t, append([]string{"watch", "--from=missing", "--data=missing.fs"}, c.args...)...)
			require.Equal(t, 2, code, fmt.Sprint(stdout, stderr))
			require.Contains(t, stderr, c.says)
		})
	}
}
