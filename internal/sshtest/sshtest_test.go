package sshtest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// dial logs in with keys and opens the sftp subsystem.
func dial(t *testing.T, addr string, signers ...ssh.Signer) (*sftp.Client, error) {
	t.Helper()
	conn, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{User: User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey()})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	return sftp.NewClient(conn, sftp.UseConcurrentWrites(true), sftp.MaxPacketUnchecked(32<<10))
}

func start(t *testing.T, o Options) (*Server, *sftp.Client) {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s := Start(t, o)
	c, err := dial(t, s.Addr, s.Key.Signer)
	require.NoError(t, err)
	return s, c
}

// put writes content and returns the first error.
func put(c *sftp.Client, path string, content []byte) error {
	f, err := c.OpenFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	_, err = f.ReadFrom(bytes.NewReader(content))
	return errors.Join(err, f.Close())
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * i >> 7)
	}
	return b
}

func TestItServesADirectory(t *testing.T) {
	for _, chroot := range []bool{false, true} {
		s, c := start(t, Options{Chroot: chroot})
		want := content(1 << 20)
		require.NoError(t, put(c, "a", want))
		got, err := os.ReadFile(filepath.Join(s.Dir, "a"))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		wd, err := c.RealPath(".")
		require.NoError(t, err)
		require.Equal(t, map[bool]string{false: s.Dir, true: "/"}[chroot], wd)
		names, err := c.ReadDir(wd)
		require.NoError(t, err)
		require.Len(t, names, 1)
		fi, err := c.Stat(wd + "/a")
		require.NoError(t, err)
		require.EqualValues(t, len(want), fi.Size())
		f, err := c.Open("a")
		require.NoError(t, err)
		back, err := io.ReadAll(f)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, back))
		require.EqualValues(t, len(want), s.Written())
		require.Greater(t, s.Received(), int64(len(want)))
		require.Greater(t, s.Sent(), int64(len(want)))
		require.Equal(t, []string{User}, s.Users())
		_, err = c.Stat("missing")
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

func TestItRenamesAsOpenSSHDoes(t *testing.T) {
	_, c := start(t, Options{})
	require.NoError(t, put(c, "a", []byte("a")))
	require.NoError(t, put(c, "b", []byte("b")))
	require.ErrorContains(t, c.Rename("a", "b"), `"Failure"`)
	require.NoError(t, c.PosixRename("a", "b"))
	require.NoError(t, c.Rename("b", "c"))
}

func TestExtensionsAreThereUnlessTheyAreWithheld(t *testing.T) {
	const fsync, rename, statvfs = "fsync@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com"
	for _, without := range [][]string{nil, {fsync}, {rename, statvfs}, {fsync, rename, statvfs, "hardlink@openssh.com"}} {
		s, c := start(t, Options{Without: without})
		for _, e := range []string{fsync, rename, statvfs} {
			_, has := c.HasExtension(e)
			require.Equal(t, !slices.Contains(without, e), has, e)
		}
		f, err := c.Create("x")
		require.NoError(t, err)
		require.Equal(t, slices.Contains(without, fsync), f.Sync() != nil)
		_, err = c.StatVFS("x")
		require.Equal(t, slices.Contains(without, statvfs), err != nil)
		require.Equal(t, slices.Contains(without, rename), c.PosixRename("x", "y") != nil)
		require.Equal(t, slices.Contains(without, rename), exists(s, "x"), "what is not there is not done")
	}
}

func exists(s *Server, name string) bool {
	_, err := os.Lstat(filepath.Join(s.Dir, name))
	return err == nil
}

func TestReadOnlyRefusesEveryChange(t *testing.T) {
	s, c := start(t, Options{ReadOnly: true})
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "a"), []byte("a"), 0o644))
	for _, err := range []error{put(c, "b", nil), c.Remove("a"), c.Rename("a", "b"), c.PosixRename("a", "b"), c.Mkdir("d")} {
		require.ErrorIs(t, err, os.ErrPermission)
	}
	require.True(t, exists(s, "a"))
}

func TestRulesAreFaults(t *testing.T) {
	want := content(1 << 20)
	for _, c := range []struct {
		name string
		rule Rule
		says string // "": no error
		size int64  // of the file afterwards; -1: anything
	}{
		{"a full disk", Full(100_000), "Failure", -1},
		{"a cut before a write", AfterBytes(500_000, CutBefore), "connection lost", -1},
		{"a cut after a write", Once(3, When(CutAfter, "write")), "connection lost", -1},
		{"a refused open", Refuse(PermissionDenied, "open"), "permission", -1},
		{"a short write", Once(4, When(Short(10), "write")), "Failure", -1},
		{"a lie about the last write", On("a", func(r Request) Verdict {
			if r.Op == "write" && r.Offset+int64(r.Length) == int64(len(want)) {
				return Lie(5)
			}
			return Pass
		}), "", 1<<20 - 32<<10 + 5},
		{"writes in another order", Reordered(4), "", 1 << 20},
		{"another file is not concerned", On("b", Refuse(Failure, "write")), "", 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, client := start(t, Options{Rule: c.rule})
			err := put(client, "a", want)
			if c.says == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.says)
			}
			got, _ := os.ReadFile(filepath.Join(s.Dir, "a"))
			if c.size >= 0 {
				require.Len(t, got, int(c.size))
				require.True(t, bytes.Equal(want[:c.size], got))
			}
			require.LessOrEqual(t, len(got), len(want))
		})
	}
}

func TestReorderedWritesArriveInAnotherOrderButAreRecordedAsAsked(t *testing.T) {
	s, c := start(t, Options{Rule: First(AfterBytes(700_000, CutBefore), Reordered(8))})
	require.Error(t, put(c, "a", content(1<<20)))
	require.Eventually(t, func() bool { return s.Connections() == 0 }, 10*time.Second, time.Millisecond)
	require.NotEmpty(t, s.Requests())
	last := int64(-1)
	for _, r := range s.Requests() {
		if r.Op == "write" {
			require.Equal(t, filepath.Join(s.Dir, "a"), r.Path)
			require.Greater(t, r.Offset, last)
			last = r.Offset
		}
	}
}

func TestAHungServerIsSilentUntilItIsClosed(t *testing.T) {
	s, c := start(t, Options{Rule: When(Hang, "stat")})
	failed := make(chan error, 1)
	go func() {
		_, err := c.Stat("x")
		failed <- err
	}()
	require.Eventually(t, func() bool { return len(s.Requests()) == 2 }, 10*time.Second, time.Millisecond)
	require.Empty(t, failed)
	s.CutAll()
	require.Error(t, <-failed)
}

func TestItStopsAndComesBack(t *testing.T) {
	s, c := start(t, Options{})
	s.Stop()
	_, err := c.Stat(".")
	require.Error(t, err)
	_, err = dial(t, s.Addr, s.Key.Signer)
	require.Error(t, err)
	s.Restart(t)
	c, err = dial(t, s.Addr, s.Key.Signer)
	require.NoError(t, err)
	require.NoError(t, put(c, "a", nil))
}

func TestWhoIsLetIn(t *testing.T) {
	ca, known, stranger := NewKey(t, "ed25519"), NewKey(t, "ecdsa"), NewKey(t, "rsa")
	s := Start(t, Options{Dir: t.TempDir(), Authorized: []ssh.PublicKey{known.Signer.PublicKey()}, UserCA: ca.Signer.PublicKey()})
	cert := func(by *Key, change func(*ssh.Certificate), names ...string) ssh.Signer {
		signer, err := ssh.NewCertSigner(by.Sign(t, ssh.UserCert, stranger, change, names...), stranger.Signer)
		require.NoError(t, err)
		return signer
	}
	for _, c := range []struct {
		name   string
		signer ssh.Signer
		in     bool
	}{
		{"an authorised key", known.Signer, true},
		{"another key", stranger.Signer, false},
		{"another key with a certificate", cert(ca, nil, User), true},
		{"a certificate of another authority", cert(known, nil, User), false},
		{"a certificate for another user", cert(ca, nil, "root"), false},
		{"a certificate that is over", cert(ca, func(c *ssh.Certificate) { c.ValidBefore = c.ValidAfter + 1 }, User), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := dial(t, s.Addr, c.signer)
			require.Equal(t, c.in, err == nil, "%v", err)
		})
	}
}

func TestAProxyCountsCutsAndFallsSilent(t *testing.T) {
	s := Start(t, Options{Dir: t.TempDir()})
	p := NewProxy(t, s.Addr)
	c, err := dial(t, p.Addr, s.Key.Signer)
	require.NoError(t, err)
	p.CutAfter(500_000)
	before := p.Up()
	require.Error(t, put(c, "a", content(1<<20)))
	require.Equal(t, before+500_000, p.Up(), "to the byte")
	require.Eventually(t, func() bool { return s.Connections() == 0 }, 10*time.Second, time.Millisecond)

	c, err = dial(t, p.Addr, s.Key.Signer)
	require.NoError(t, err, "it is cut once only")
	require.NoError(t, put(c, "a", content(1<<20)))
	p.SilentAfter(500_000)
	failed := make(chan error, 1)
	go func() { failed <- put(c, "b", content(1<<20)) }()
	require.Eventually(t, func() bool { return s.Written() > 1<<20+400_000 }, 10*time.Second, time.Millisecond)
	require.Empty(t, failed)
	p.Cut()
	require.Error(t, <-failed)

	p.Refuse(true)
	_, err = dial(t, p.Addr, s.Key.Signer)
	require.Error(t, err)
	p.Refuse(false)
	p.Delay(30 * time.Millisecond)
	start := time.Now()
	_, err = dial(t, p.Addr, s.Key.Signer)
	require.NoError(t, err)
	require.Greater(t, time.Since(start), 120*time.Millisecond, "several round trips")
}

func TestAJumpHostForwards(t *testing.T) {
	s := Start(t, Options{Dir: t.TempDir()})
	for _, forwards := range []bool{true, false} {
		jump := Start(t, Options{Dir: t.TempDir(), Forward: forwards})
		conn, err := ssh.Dial("tcp", jump.Addr, &ssh.ClientConfig{User: User, Auth: []ssh.AuthMethod{ssh.PublicKeys(jump.Key.Signer)},
			HostKeyCallback: ssh.FixedHostKey(jump.HostKeys[0].PublicKey())})
		require.NoError(t, err)
		defer conn.Close()
		inner, err := conn.Dial("tcp", s.Addr)
		require.Equal(t, forwards, err == nil)
		if forwards {
			c, channels, requests, err := ssh.NewClientConn(inner, s.Addr, &ssh.ClientConfig{User: User,
				Auth: []ssh.AuthMethod{ssh.PublicKeys(s.Key.Signer)}, HostKeyCallback: ssh.FixedHostKey(s.HostKeys[0].PublicKey())})
			require.NoError(t, err)
			ssh.NewClient(c, channels, requests).Close()
		}
	}
}

func TestAHostCertificateIsShown(t *testing.T) {
	ca, host := NewKey(t, "ed25519"), NewKey(t, "ecdsa")
	s := Start(t, Options{Dir: t.TempDir(), HostKeys: []ssh.Signer{host.Signer},
		HostCert: ca.Sign(t, ssh.HostCert, host, nil, "127.0.0.1")})
	checker := &ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), ca.Signer.PublicKey().Marshal())
	}}
	conn, err := ssh.Dial("tcp", s.Addr, &ssh.ClientConfig{User: User, Auth: []ssh.AuthMethod{ssh.PublicKeys(s.Key.Signer)},
		HostKeyCallback: checker.CheckHostKey, HostKeyAlgorithms: []string{ssh.CertAlgoECDSA256v01}})
	require.NoError(t, err)
	conn.Close()
}

func TestAHome(t *testing.T) {
	s := Start(t, Options{Dir: t.TempDir()})
	h := NewHome(t)
	h.Trust(s)
	h.TrustAt("example.org:22", s)
	h.AddKey("id_ed25519", s.Key)
	dir, err := os.UserHomeDir()
	require.NoError(t, err)
	require.Equal(t, h.Dir, dir)
	lines, err := os.ReadFile(h.Path("known_hosts"))
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(s.Addr)
	require.NoError(t, err)
	require.Contains(t, string(lines), "["+host+"]:"+port+" ssh-ed25519 ")
	require.Contains(t, string(lines), "example.org ssh-ed25519 ")
	b, err := os.ReadFile(h.Path("id_ed25519"))
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(b)
	require.NoError(t, err)
	_, err = dial(t, s.Addr, signer)
	require.NoError(t, err)
	require.Contains(t, h.Env(), "HOME="+h.Dir)
}
