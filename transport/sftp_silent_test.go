package transport

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/internal/fault"
	"zodbrepl/internal/sshtest"
)

// shortOfTime gives a silent peer up after a moment. What must succeed with it needs the usual patience: a busy machine is
// silent for as long.
var shortOfTime = timing{dial: 20 * time.Second, handshake: 20 * time.Second, stall: 250 * time.Millisecond,
	flush: 250 * time.Millisecond, alive: 125 * time.Millisecond, grace: 50 * time.Millisecond, pause: time.Millisecond, maxPause: time.Millisecond}

// mute takes connections and says nothing, or only its first words.
func mute(t *testing.T, words string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			io.WriteString(c, words)
		}
	}()
	return l.Addr().String()
}

// A peer that falls silent at any point ends in an error that says so, whatever is asked of it.
func TestASilentPeerEndsInAnError(t *testing.T) {
	ends := func(t *testing.T, call func() error) {
		t.Helper()
		begun := time.Now()
		done := make(chan error, 1)
		go func() { done <- call() }()
		select {
		case err := <-done:
			require.ErrorContains(t, err, "cannot be reached")
			require.NotEmpty(t, fault.Next(err))
			require.NotEmpty(t, fault.Kept(err))
			t.Logf("after %s: %v", time.Since(begun).Round(time.Millisecond), err)
		case <-time.After(30 * time.Second):
			t.Fatal("it hangs")
		}
	}
	quick := shortOfTime
	quick.handshake = 200 * time.Millisecond
	o := TargetOptions{timing: &quick, Patience: impatient}
	t.Run("before it has said a word", func(t *testing.T) {
		sshtest.NewHome(t)
		addr := mute(t, "")
		ends(t, func() error { _, err := OpenTarget(t.Context(), "sftp://zope@"+addr+"/srv", o); return err })
	})
	t.Run("after its first words", func(t *testing.T) {
		sshtest.NewHome(t)
		addr := mute(t, "SSH-2.0-OpenSSH_9.2\r\n")
		ends(t, func() error { _, err := OpenTarget(t.Context(), "sftp://zope@"+addr+"/srv", o); return err })
	})
	for _, bytes := range []int64{100, 1500, 2500} {
		t.Run(fmt.Sprintf("after %d bytes of the handshake", bytes), func(t *testing.T) {
			h := newOtherHost(t, sshtest.Options{})
			p := sshtest.NewProxy(t, h.Addr)
			h.home.TrustAt(p.Addr, h.Server)
			p.SilentAfter(bytes)
			ends(t, func() error { _, err := OpenTarget(t.Context(), "sftp://zope@"+p.Addr+h.Dir, o); return err })
		})
	}
	for _, op := range []string{"init", "stat"} {
		t.Run("when it is opened, at "+op, func(t *testing.T) {
			h := newOtherHost(t, sshtest.Options{Rule: sshtest.When(sshtest.Hang, op)})
			ends(t, func() error { _, err := OpenTarget(t.Context(), h.URL(h.Dir), o); return err })
		})
	}
	put := func(ctx context.Context, target Target) error {
		content := make([]byte, 3<<20)
		_, err := target.Put(ctx, "file", bytes.NewReader(content), int64(len(content)), nil)
		return err
	}
	for _, c := range []struct {
		op   string
		call func(ctx context.Context, target Target) error
	}{
		{"readdir", func(ctx context.Context, target Target) error { _, err := target.List(ctx); return err }},
		{"read", func(ctx context.Context, target Target) error {
			r, err := target.Open(ctx, "there")
			if err == nil {
				_, err = io.ReadAll(r)
			}
			return err
		}},
		{"open", put}, {"write", put}, {"fsync", put}, {"close", put},
		{"posix-rename", func(ctx context.Context, target Target) error { return target.Publish(ctx, "there") }},
	} {
		for _, drop := range []bool{false, true} {
			name, verdict := "everything", sshtest.Hang
			if drop {
				name, verdict = "that request alone is never answered", sshtest.Drop
			}
			t.Run("at "+c.op+", "+name, func(t *testing.T) {
				h := newOtherHost(t, sshtest.Options{})
				for _, name := range []string{"there", "there.tmp"} {
					require.NoError(t, os.WriteFile(filepath.Join(h.Dir, name), make([]byte, 1<<20), 0o644))
				}
				target, err := OpenTarget(t.Context(), h.URL(h.Dir), TargetOptions{timing: &shortOfTime})
				require.NoError(t, err)
				defer target.Close()
				target.(*sftpTarget).Patience = impatient
				h.SetRule(sshtest.When(verdict, c.op))
				ends(t, func() error { return c.call(t.Context(), target) })
				require.NoFileExists(t, filepath.Join(h.Dir, "file"))
				require.FileExists(t, filepath.Join(h.Dir, "there"))
			})
		}
	}
}

// A server that takes long to make a file durable, but lives, is waited for.
func TestAServerThatIsSlowToMakeFilesDurableIsWaitedFor(t *testing.T) {
	m := newMaster(t)
	m.backup()
	slow := hurried
	slow.stall, slow.alive = 2*time.Second, time.Second
	h := newOtherHost(t, sshtest.Options{Rule: sshtest.Once(1, func(r sshtest.Request) sshtest.Verdict {
		if r.Op == "fsync" {
			return sshtest.Late(slow.stall + slow.stall/2)
		}
		return sshtest.Pass
	})})
	_, err := Ship(t.Context(), ShipOptions{Repository: m.repo, Targets: []string{h.URL(h.Dir)}, Options: TargetOptions{timing: &slow}})
	require.NoError(t, err)
	m.same(h.Dir)
	require.Len(t, slices.DeleteFunc(h.Requests(), func(r sshtest.Request) bool { return r.Op != "init" }), 1, "it was given up once")
}

// The usual limits keep the promise: within a minute, with everything that is tried again.
func TestTheUsualTimeOutsEndWithinAMinute(t *testing.T) {
	u := usualTiming
	require.Less(t, u.dial+u.handshake, time.Minute/2)
	// The line falls silent just after something came forward. The last attempt begins when patience is nearly over.
	require.LessOrEqual(t, DefaultPatience+max(u.dial, u.handshake)+u.grace, time.Minute)
	require.LessOrEqual(t, u.stall+u.grace, DefaultPatience)
	require.LessOrEqual(t, 2*u.alive, time.Minute)
}
