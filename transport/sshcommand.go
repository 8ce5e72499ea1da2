package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"zodbrepl/internal/fault"
)

// openCommand runs ssh, or what the operator prefers, and speaks SFTP over its pipes.
func openCommand(ctx context.Context, r remote, o TargetOptions, t timing) (*session, error) {
	args := []string{"-oBatchMode=yes", fmt.Sprintf("-oConnectTimeout=%d", max(1, int(t.dial.Seconds()))),
		fmt.Sprintf("-oServerAliveInterval=%d", max(1, int(t.alive.Seconds()))), "-oServerAliveCountMax=2"}
	if o.AcceptNew {
		args = append(args, "-oStrictHostKeyChecking=accept-new")
	}
	if r.port != "" {
		args = append(args, "-p", r.port)
	}
	if r.user != "" {
		args = append(args, "-l", r.user)
	}
	args = append(args, "-s", "--", r.host, "sftp")
	// The shell takes the operator's words apart, with their quotes, and puts ours behind.
	cmd := exec.Command("/bin/sh", append([]string{"-c", "exec " + o.SSHCommand + ` "$@"`, "sh"}, args...)...)
	// A group of its own: Ctrl-C at the terminal is for us, and what ssh starts ends with it.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	stderr := &tail{}
	cmd.Stderr = stderr
	// When ssh is gone, so that nobody can write any more, a child that it left does not keep us waiting.
	cmd.WaitDelay = time.Second
	w, err1 := cmd.StdinPipe()
	out, outW, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	cmd.Stdout = outW
	err := cmd.Start()
	outW.Close()
	if err != nil {
		out.Close()
		return nil, fault.New(nil, "--ssh-command cannot be run").Because(err).Keeping("nothing was sent").Remedy("check it: %s", o.SSHCommand)
	}
	ended := make(chan struct{})
	var once sync.Once
	s := newSession(t, o.LimitRate, func() {
		once.Do(func() {
			go func() {
				select {
				case <-ended:
				case <-time.After(t.grace):
				}
				_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
			}()
			w.Close()
			out.Close()
		})
	})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	timer := time.AfterFunc(t.dial+t.handshake, func() { s.kill(fmt.Errorf("SFTP did not start within %s", t.dial+t.handshake)) })
	defer timer.Stop()
	defer context.AfterFunc(ctx, func() { s.kill(ctx.Err()) })()
	if err := s.start(out, w); err != nil {
		cause := s.failed("starting SFTP", err)
		select {
		case <-ended:
		case <-time.After(t.grace):
		}
		return nil, explainCommand(ctx, cause, cmd, stderr.String(), o.SSHCommand)
	}
	return s, nil
}

// explainCommand tells what ssh said: a text is all that it leaves of the reason.
func explainCommand(ctx context.Context, cause error, cmd *exec.Cmd, said, command string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	code := -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	}
	lower := strings.ToLower(said)
	for _, k := range []struct{ text, remedy string }{
		{"host identification has changed", "somebody may stand in between; what ssh says above tells the line of known_hosts"},
		{"host key verification failed", "compare the host's key, then run this once with --accept-new"},
		{"permission denied", "put the public key into authorized_keys there, or load it into the agent: ssh-add"},
		{"could not resolve hostname", "check the name of the host"},
		{"subsystem request failed", "sshd_config there needs: Subsystem sftp internal-sftp"},
		{"bad configuration", "correct ssh's configuration"},
	} {
		if strings.Contains(lower, k.text) {
			return fault.New(nil, "ssh could not connect").Because(errors.New(said)).Keeping("nothing was sent").Remedy("%s", k.remedy)
		}
	}
	if code == 126 || code == 127 {
		return fault.New(nil, "--ssh-command cannot be run").Because(errors.New(said)).Keeping("nothing was sent").Remedy("check it: %s", command)
	}
	if said != "" {
		return &lineError{fmt.Errorf("%w: %s", plain(errors.Unwrap(cause)), said)}
	}
	return cause
}

// tail keeps the end of what is written.
type tail struct {
	sync.Mutex
	b []byte
}

const tailSize = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.Lock()
	defer t.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-tailSize):]
	return len(p), nil
}

// String returns it on one line.
func (t *tail) String() string {
	t.Lock()
	defer t.Unlock()
	return string(bytes.Join(bytes.Fields(t.b), []byte(" ")))
}

var _ io.Writer = (*tail)(nil)
