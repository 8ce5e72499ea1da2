//go:build interop

package sftp

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/internal/sshtest"
)

// BenchmarkShip ships one large increment to the real sshd, as a whole command, and lets the system's sftp put the same
// bytes, in turns: on loopback, and over a line of which a round trip takes 50 ms. "ratio" is how many times as fast ship
// is; the goals are 0.8 and 1. Both make the file durable there; ship has read and verified it before.
//
//	make bench-sftp
func BenchmarkShip(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
		rtt  time.Duration
	}{
		{"loopback", 256 << 20, 0},
		{"50ms", 256 << 20, 50 * time.Millisecond},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := startSSHD(b, sshdOptions{chroot: true})
			p := sshtest.NewProxy(b, s.Addr)
			p.Delay(c.rtt / 2)
			h := s.home(p.Addr)
			addr := s.Addr
			if c.rtt > 0 {
				addr = p.Addr // a proxy costs time of its own on loopback
			}
			repo := large(b, h, c.size)
			found, err := filepath.Glob(filepath.Join(repo, "*.fs"))
			require.NoError(b, err)
			require.Len(b, found, 1)
			_, port, _ := strings.Cut(addr, ":")
			put := func() time.Duration {
				cmd := exec.Command("sftp", "-q", "-b", "-", "-P", port, "-i", h.Path("id_ed25519"), "-F", "none",
					"-o", "UserKnownHostsFile="+h.Path("known_hosts"), sshdUser+"@127.0.0.1")
				cmd.Stdin = strings.NewReader("put -f " + found[0] + " /data/put\n")
				begun := time.Now()
				out, err := cmd.CombinedOutput()
				require.NoError(b, err, "%s", out)
				return time.Since(begun)
			}
			ship := func() time.Duration {
				begun := time.Now()
				good(b, h, "ship", "-r", repo, "--to", s.URLAt(addr))
				return time.Since(begun)
			}
			var puts, ships []time.Duration
			for b.Loop() {
				puts = append(puts, put())
				ships = append(ships, ship())
				require.True(b, sameFile(found[0], filepath.Join(s.Dir, filepath.Base(found[0]))))
				run(b, "sh", "-c", "rm -f "+s.Dir+"/*")
			}
			mib := float64(c.size) / (1 << 20)
			b.ReportMetric(mib/median(ships).Seconds(), "ship-MiB/s")
			b.ReportMetric(mib/median(puts).Seconds(), "sftp-MiB/s")
			b.ReportMetric(median(puts).Seconds()/median(ships).Seconds(), "ratio")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// large makes a repository with one increment of that size, and returns it.
func large(b *testing.B, h *sshtest.Home, size int) string {
	dir := b.TempDir()
	data, repo := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "repo")
	require.NoError(b, os.Mkdir(repo, 0o755))
	g, err := fixtures.Create(data, fixtures.Options{NoSync: true})
	require.NoError(b, err)
	rng := rand.NewChaCha8([32]byte{1})
	blob := make([]byte, 4<<20)
	for i := range size / len(blob) {
		rng.Read(blob)
		_, err := g.Commit("", fmt.Sprint(i), fixtures.Record{OID: filestorage.OID(i), Data: blob})
		require.NoError(b, err)
	}
	require.NoError(b, g.Close())
	good(b, h, "backup", "-f", data, "-r", repo, "--codec", "none")
	return repo
}
