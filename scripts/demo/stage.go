package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"
)

// width is that of a common terminal, in columns.
const width = 96

// stage is where the demo plays: a temporary directory, the processes in it, and what the reader is shown. Its
// methods panic with a failure when something is not as told; play turns that into the exit code.
type stage struct {
	ctx    context.Context
	dir    string
	colour bool
	scene  int
	actors []*actor
}

type failure string

func (s *stage) failf(format string, args ...any) { panic(failure(fmt.Sprintf(format, args...))) }

// play builds the two programs in a temporary directory, runs the scenes there, and removes it all.
func play(ctx context.Context, scenes func(*stage)) (err error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "zodbrepl-demo-")
	if err != nil {
		return err
	}
	s := &stage{ctx: ctx, dir: dir, colour: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""}
	defer func() {
		for _, a := range s.actors {
			a.end(syscall.SIGKILL)
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	defer func() {
		switch r := recover().(type) {
		case nil:
			if err != nil {
				return
			}
			fmt.Printf("\n%s in %.0f seconds; %s is removed.\n", s.paint("1;32", "All as told"), time.Since(began).Seconds(), dir)
		case failure:
			if err = ctx.Err(); err == nil {
				err = errors.New(string(r))
			}
		default:
			panic(r)
		}
	}()
	fmt.Printf("Building zodbrepl, and grow, which writes to a Data.fs as a busy ZODB does, in %s\n", dir)
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "bin")+"/", "./cmd/zodbrepl", "./fixtures/cmd/grow")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build (run the demo at the top of the source): %w\n%s", err, out)
	}
	scenes(s)
	return nil
}

func (s *stage) paint(code, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// title begins a scene.
func (s *stage) title(text string) {
	s.scene++
	text = fmt.Sprintf("== %d. %s ", s.scene, text)
	fmt.Printf("\n%s\n\n", s.paint("1;36", text+strings.Repeat("=", max(0, width-len(text)))))
}

// tell explains what comes next.
func (s *stage) tell(text string) {
	for _, line := range wrap(text, width) {
		fmt.Println(line)
	}
	fmt.Println()
}

// see says that a check was good.
func (s *stage) see(format string, args ...any) {
	for i, line := range wrap(fmt.Sprintf(format, args...), width-5) {
		mark := "     "
		if i == 0 {
			mark = s.paint("1;32", "[ok] ")
		}
		fmt.Println(mark + line)
	}
}

// check fails the demo unless ok.
func (s *stage) check(ok bool, format string, args ...any) {
	if !ok {
		s.failf("not as told: "+format, args...)
	}
	s.see(format, args...)
}

func (s *stage) command(line string) *exec.Cmd {
	cmd := exec.CommandContext(s.ctx, "/bin/sh", "-c", line)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"))
	// A group of its own, so that the shell's children end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// run shows a command line and runs it, and shows and returns its output. It must end with that exit code.
func (s *stage) run(want int, line string) string {
	fmt.Println(s.paint("1", "$ "+line))
	out, code := s.quietly(line)
	s.output(out)
	if code != 0 {
		fmt.Printf("  (exit code %d)\n", code)
	}
	if code != want {
		s.failf("%s\nended with exit code %d, not %d", line, code, want)
	}
	return out
}

// quietly runs a command line without showing it.
func (s *stage) quietly(line string) (out string, code int) {
	cmd := s.command(line)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.failf("%s: %v", line, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func (s *stage) output(out string) {
	for line := range strings.Lines(out) {
		for _, part := range wrap(strings.TrimRight(strings.ReplaceAll(line, s.dir, "..."), "\n"), width-4) {
			fmt.Println(s.paint("2", "  | ") + part)
		}
	}
}

// actor is a process in the background.
type actor struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

// start shows a command line and runs it in the background. A single command replaces its shell.
func (s *stage) start(line string) *actor {
	fmt.Println(s.paint("1", "$ "+line+" &"))
	if !strings.HasPrefix(line, "while ") {
		line = "exec " + line
	}
	a := &actor{cmd: s.command(line), done: make(chan struct{})}
	a.cmd.Stdout, a.cmd.Stderr = a, a
	if err := a.cmd.Start(); err != nil {
		s.failf("%s: %v", line, err)
	}
	s.actors = append(s.actors, a)
	go func() {
		_ = a.cmd.Wait() // how it ended is asked of its ProcessState
		close(a.done)
	}()
	return a
}

// Write keeps what the process prints.
func (a *actor) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.Write(p)
}

// said returns what the process has printed.
func (a *actor) said() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.String()
}

// lines returns the whole lines of it.
func (a *actor) lines() (lines []string) {
	said := a.said()
	for sc := bufio.NewScanner(strings.NewReader(said[:strings.LastIndexByte(said, '\n')+1])); sc.Scan(); {
		lines = append(lines, sc.Text())
	}
	return lines
}

// end sends a signal, waits for the process and returns its exit code, -1 for a signal's.
func (a *actor) end(sig syscall.Signal) int {
	_ = syscall.Kill(-a.cmd.Process.Pid, sig) // it may have ended
	<-a.done
	return a.cmd.ProcessState.ExitCode()
}

// wait waits for the process to end by itself.
func (s *stage) wait(a *actor) int {
	select {
	case <-a.done:
		return a.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		s.failf("%s did not end:\n%s", a.cmd, a.said())
	}
	return -1
}

// until waits for something to become true.
func (s *stage) until(what string, ok func() bool) {
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if s.ctx.Err() != nil || time.Now().After(end) {
			s.failf("waited in vain: %s", what)
		}
		s.pause(50 * time.Millisecond)
	}
}

func (s *stage) pause(d time.Duration) {
	select {
	case <-s.ctx.Done():
	case <-time.After(d):
	}
}

// read returns a file of the stage.
func (s *stage) read(name string) []byte {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.failf("%v", err)
	}
	return b
}

// wrap breaks text into lines at spaces; what begins a line with spaces is indented in all its lines.
func wrap(text string, columns int) (lines []string) {
	indent := text[:len(text)-len(strings.TrimLeft(text, " "))]
	line := ""
	for _, word := range strings.SplitAfter(strings.TrimLeft(text, " "), " ") {
		if line != "" && len(indent)+len(line)+len(strings.TrimRight(word, " ")) > columns {
			lines = append(lines, indent+strings.TrimRight(line, " "))
			line = ""
		}
		line += word
	}
	return append(lines, indent+line)
}
