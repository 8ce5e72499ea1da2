// Command zodbrepl replicates a ZODB Data.fs: incremental backups into a repository that repozo reads, a standby that
// can be promoted, and recovery of any moment.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"zodbrepl/internal/fault"
)

func main() {
	if os.Getenv("GOGC") == "" {
		collectLater()
	}
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// gcPercent is how much of what is in use may be garbage beside it. What is in use are large buffers that are used again,
// so a low number costs little time, and it keeps every command under 100 MiB with any number of cores.
const gcPercent = 25

// startPercent is the same before the first collection, which so comes at 32 MiB: the runtime begins at 4 MiB with 100.
// Small increments are made without any; their buffers would be looked at half a dozen times while they grow.
const startPercent = 800

// collectLater sets the collector to these.
func collectLater() {
	debug.SetGCPercent(startPercent)
	runtime.AddCleanup(new([64]byte), func(int) { debug.SetGCPercent(gcPercent) }, 0) // which the first collection finds
}

// run returns the exit code: the only place where errors become one.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Called through a link named repozo, it is repozo.
	if filepath.Base(args[0]) == "repozo" {
		return runRepozo(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 1 && args[1] == "repozo" {
		return runRepozo(ctx, args[2:], stdout, stderr)
	}
	err := newApp(stdout, stderr).RunContext(ctx, args)
	var told *toldError
	if err != nil && !errors.As(err, &told) {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = fault.New(nil, "stopped by a signal").Keeping("%s", fault.Kept(err))
		}
		fmt.Fprintf(stderr, "zodbrepl: %s\n", fault.Explain(err))
	}
	return fault.ExitCode(err)
}

// toldError is an error that the user has been told already.
type toldError struct{ error }

func (e *toldError) Unwrap() error { return e.error }

func newApp(stdout, stderr io.Writer) *cli.App {
	return &cli.App{
		Name:      "zodbrepl",
		Usage:     "a second, promotable copy of a ZODB Data.fs, and every moment of its past",
		UsageText: "zodbrepl COMMAND [options]\n\nzodbrepl COMMAND --help tells the options, an example and the exit codes of a command.",
		Writer:    stdout, ErrWriter: stderr,
		HideVersion:               true,
		DisableSliceFlagSeparator: true, // paths may hold commas
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usageError,
		Commands: []*cli.Command{
			backupCommand(), shipCommand(), watchCommand(), promoteCommand(), handoverCommand(), rejoinCommand(), statusCommand(),
			recoverCommand(), verifyCommand(), listCommand(),
			inspectCommand(), diffCommand(), checkFSCommand(), indexCommand(), repozoCommand(), versionCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return fault.New(fault.Usage, "unknown command %q", c.Args().First()).Keeping("nothing was done").Remedy("zodbrepl --help lists the commands")
			}
			if err := cli.ShowAppHelp(c); err != nil {
				return err
			}
			return &toldError{fault.Usage}
		},
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	help := "zodbrepl --help"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "zodbrepl" {
		help = "zodbrepl " + c.Command.Name + " --help"
	}
	return fault.New(fault.Usage, "command line").Because(err).Keeping("nothing was done").Remedy("%s tells the options", help)
}

// command completes a command: it takes exactly the named arguments and no others, and its help has an example and
// the exit codes.
func command(cmd *cli.Command, arguments []string, text, example string, codes ...int) *cli.Command {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nExample:\n   %s\n\nExit codes:", text, strings.ReplaceAll(example, "\n", "\n   "))
	for _, code := range append([]int{0, 1, 2}, codes...) {
		fmt.Fprintf(&b, "\n   %2d  %s", code, exitCodes[code])
	}
	cmd.Description = b.String()
	cmd.OnUsageError = usageError
	cmd.ArgsUsage = " "
	if len(arguments) > 0 {
		cmd.ArgsUsage = strings.Join(arguments, " ")
	}
	action := cmd.Action
	cmd.Action = func(c *cli.Context) error {
		if n := len(arguments); c.NArg() != n {
			want := "no argument"
			if n > 0 {
				want = strings.Join(arguments, " ")
			}
			e := fault.New(fault.Usage, "%s takes %s, got %q", c.Command.Name, want, c.Args().Slice()).Keeping("nothing was done")
			if c.NArg() > n {
				return e.Remedy("options come before arguments; zodbrepl %s --help tells them", c.Command.Name)
			}
			return e.Remedy("zodbrepl %s --help", c.Command.Name)
		}
		return action(c)
	}
	return cmd
}

var exitCodes = map[int]string{
	0:  "done",
	1:  "failed",
	2:  "usage: the command line is wrong, nothing was done",
	3:  "refused: this node's role forbids it",
	4:  "verification failed: stored bytes are not what they should be",
	5:  "divergence: two histories",
	6:  "gap: a piece is missing or incomplete",
	75: "busy: another run holds the lock, try again later",
}

// keeping adds to the failure of a command what it leaves untouched, where the error does not say so itself.
func keeping(err error, what string) error {
	if err == nil || fault.Kept(err) != "" {
		return err
	}
	return fault.New(nil, "").Because(err).Keeping("%s", what)
}

// need fails when a required option is missing.
func need(c *cli.Context, names ...string) error {
	for _, n := range names {
		if c.String(n) == "" {
			return fault.New(fault.Usage, "%s: --%s is required", c.Command.Name, n).Keeping("nothing was done").
				Remedy("zodbrepl %s --help", c.Command.Name)
		}
	}
	return nil
}
