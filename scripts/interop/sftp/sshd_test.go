//go:build interop

package sftp

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"zodbrepl/internal/sshtest"
)

// sshdUser is who logs in: an account that every Debian has, without a shell and a home directory. The machine's
// configuration is not touched.
const sshdUser = "nobody"

// sshdOptions says how a real sshd is set up.
type sshdOptions struct {
	internal string       // arguments of internal-sftp: "-R", "-P fsync"
	chroot   bool         // ChrootDirectory; the client sees the directory as /data
	small    string       // the directory is a file system of its own of that size: "4m"
	hostKeys []string     // types; default ed25519
	userCA   *sshtest.Key // lets in whom it has signed
	hostCA   *sshtest.Key // signs the host keys
	lines    []string     // more lines of sshd_config
}

// sshd is a real OpenSSH server on the loopback interface with a configuration and keys of its own.
type sshd struct {
	t       testing.TB
	o       sshdOptions
	base    string // everything of this server
	Dir     string // what the client may write to; on this host
	Path    string // the same as the client names it
	Addr    string
	Key     *sshtest.Key // lets sshdUser in
	keys    []*sshtest.Key
	log     string
	cmd     *exec.Cmd
	stopped sync.Once
}

// startSSHD starts one, which ends with the test.
func startSSHD(t testing.TB, o sshdOptions) *sshd {
	t.Helper()
	require.Zero(t, os.Getuid(), "sshd is started as root: it changes to the user who logs in")
	if len(o.hostKeys) == 0 {
		o.hostKeys = []string{"ed25519"}
	}
	// sshd wants every directory above a chroot to be writable by root alone, which those for temporary files are not.
	base, err := os.MkdirTemp("/var/lib", "zodbrepl-interop-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	require.NoError(t, os.Chmod(base, 0o755))
	s := &sshd{t: t, o: o, base: base, Dir: filepath.Join(base, "root", "data"), Key: sshtest.NewKey(t, "ed25519"), log: filepath.Join(base, "log")}
	require.NoError(t, os.MkdirAll(s.Dir, 0o755))
	if o.small != "" {
		run(t, "mount", "-t", "tmpfs", "-o", "size="+o.small, "interop", s.Dir)
		t.Cleanup(func() { exec.Command("umount", "-l", s.Dir).Run() })
	}
	s.give(s.Dir)
	s.Path = s.Dir
	if o.chroot {
		s.Path = "/data"
	}
	require.NoError(t, os.MkdirAll("/run/sshd", 0o755)) // sshd's own, made by its service where there is one
	s.Addr = freeAddr(t)
	s.write("authorized_keys", s.Key.Public())
	s.configure()
	s.Start()
	t.Cleanup(s.Kill)
	return s
}

// give makes a path the user's who logs in.
func (s *sshd) give(path string) {
	s.t.Helper()
	run(s.t, "chown", "-R", sshdUser, path)
}

func (s *sshd) write(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.base, name)
	require.NoError(s.t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

func (s *sshd) configure() {
	s.t.Helper()
	_, port, err := net.SplitHostPort(s.Addr)
	require.NoError(s.t, err)
	lines := []string{
		"ListenAddress 127.0.0.1", "Port " + port, "PidFile none", "UsePAM no", "StrictModes no", "PasswordAuthentication no",
		"KbdInteractiveAuthentication no", "MaxStartups 100", "LogLevel VERBOSE",
		"AuthorizedKeysFile " + filepath.Join(s.base, "authorized_keys"),
		"Subsystem sftp internal-sftp " + s.o.internal,
	}
	for i, kind := range s.o.hostKeys {
		k := sshtest.NewKey(s.t, kind)
		s.keys = append(s.keys, k)
		path := filepath.Join(s.base, fmt.Sprintf("host_key_%d", i))
		require.NoError(s.t, os.WriteFile(path, k.PEM(s.t, ""), 0o600))
		lines = append(lines, "HostKey "+path)
		if s.o.hostCA != nil {
			cert := s.o.hostCA.Sign(s.t, ssh.HostCert, k, nil, "127.0.0.1")
			lines = append(lines, "HostCertificate "+s.write(fmt.Sprintf("host_key_%d-cert.pub", i), string(ssh.MarshalAuthorizedKey(cert))))
		}
	}
	if s.o.userCA != nil {
		lines = append(lines, "TrustedUserCAKeys "+s.write("user_ca.pub", s.o.userCA.Public()))
	}
	lines = append(lines, s.o.lines...)
	if s.o.chroot {
		lines = append(lines, "Match User "+sshdUser, "  ChrootDirectory "+filepath.Join(s.base, "root"),
			"  ForceCommand internal-sftp "+s.o.internal)
	}
	s.write("sshd_config", strings.Join(lines, "\n")+"\n")
}

// Start starts the server, also again after a Kill.
func (s *sshd) Start() {
	s.t.Helper()
	path, err := exec.LookPath("sshd") // it insists on an absolute path
	require.NoError(s.t, err, "scripts/debian.sh sshd:openssh-server installs it")
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(s.t, err)
	defer log.Close()
	s.cmd = exec.Command(path, "-D", "-e", "-f", filepath.Join(s.base, "sshd_config"))
	s.cmd.Stderr = log
	require.NoError(s.t, s.cmd.Start())
	s.stopped = sync.Once{}
	until(s.t, "sshd listens", func() bool {
		c, err := net.Dial("tcp", s.Addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Kill kills the server and every process that serves a connection, with SIGKILL.
func (s *sshd) Kill() {
	s.stopped.Do(func() {
		pids := descendants(s.cmd.Process.Pid)
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		s.cmd.Process.Kill()
		s.cmd.Wait()
		if s.t.Failed() {
			log, _ := os.ReadFile(s.log)
			s.t.Logf("sshd:\n%s", log[max(0, len(log)-2000):])
		}
	})
}

// Freeze stops every process of the server without ending a connection, as a host that hangs; Thaw lets them go on.
func (s *sshd) Freeze() { s.signal(syscall.SIGSTOP) }
func (s *sshd) Thaw()   { s.signal(syscall.SIGCONT) }

func (s *sshd) signal(sig syscall.Signal) {
	for _, pid := range append([]int{s.cmd.Process.Pid}, descendants(s.cmd.Process.Pid)...) {
		syscall.Kill(pid, sig)
	}
}

// descendants returns the processes below one.
func descendants(of int) (pids []int) {
	parents := make(map[int][]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		// PID (NAME) STATE PPID; the name may hold anything
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		ppid, _ := strconv.Atoi(fields[1])
		parents[ppid] = append(parents[ppid], pid)
	}
	for next := []int{of}; len(next) > 0; next = next[1:] {
		pids = append(pids, parents[next[0]]...)
		next = append(next, parents[next[0]]...)
	}
	return pids
}

// URL names a path on the server; the directory that may be written to when there is none.
func (s *sshd) URL(path ...string) string { return s.URLAt(s.Addr, path...) }

// URLAt is URL through another address.
func (s *sshd) URLAt(addr string, path ...string) string {
	return fmt.Sprintf("sftp://%s@%s%s", sshdUser, addr, filepath.Join(append([]string{s.Path}, path...)...))
}

// trust adds the host keys to a known_hosts, for each address that the server is reached at.
func (s *sshd) trust(h *sshtest.Home, addrs ...string) {
	for _, addr := range append(addrs, s.Addr) {
		for _, k := range s.keys {
			h.Append("known_hosts", sshtest.KnownLine(addr, k.Signer.PublicKey()))
		}
	}
}

// home makes the home directory of somebody who knows the server and is let in.
func (s *sshd) home(addrs ...string) *sshtest.Home {
	s.t.Helper()
	h := sshtest.MakeHome(s.t)
	s.trust(h, addrs...)
	h.AddKey("id_ed25519", s.Key)
	return h
}

// logged returns what the server has said so far.
func (s *sshd) logged() string {
	b, err := os.ReadFile(s.log)
	require.NoError(s.t, err)
	return string(b)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", name, args, out)
	return string(out)
}

// freeAddr returns an address on loopback that nobody listens at.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// The helper itself: the system's own client can use the server, in every form.
func TestTheRealSSHDIsAsItIsMeantToBe(t *testing.T) {
	for _, c := range []struct {
		name   string
		o      sshdOptions
		writes bool
	}{
		{"as it comes", sshdOptions{}, true},
		{"with a chroot", sshdOptions{chroot: true}, true},
		{"read-only", sshdOptions{internal: "-R"}, false},
		{"read-only with a chroot", sshdOptions{chroot: true, internal: "-R"}, false},
		{"on a small disk", sshdOptions{small: "256k"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := startSSHD(t, c.o)
			h := s.home()
			file := filepath.Join(t.TempDir(), "file")
			require.NoError(t, os.WriteFile(file, make([]byte, 1<<20), 0o644))
			cmd := exec.Command("sftp", "-b", "-", "-P", s.Addr[strings.LastIndex(s.Addr, ":")+1:], "-i", h.Path("id_ed25519"),
				"-o", "UserKnownHostsFile="+h.Path("known_hosts"), sshdUser+"@127.0.0.1")
			cmd.Stdin = strings.NewReader("ls " + s.Path + "\nput " + file + " " + s.Path + "/file\n")
			out, err := cmd.CombinedOutput()
			require.Equal(t, c.writes, err == nil, "%s%s", out, s.logged())
			if c.writes {
				require.True(t, sameFile(file, filepath.Join(s.Dir, "file")))
			}
			s.Kill()
			require.Empty(t, descendants(s.cmd.Process.Pid))
			_, err = net.Dial("tcp", s.Addr)
			require.Error(t, err)
			s.Start()
		})
	}
}
