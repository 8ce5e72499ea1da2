package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/urfave/cli/v2"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
	"zodbrepl/restore"
)

// repozoCommand is repozo's entry in the list of commands. run takes its command line before cli sees it, because
// getopt's rules are not cli's.
func repozoCommand() *cli.Command {
	return &cli.Command{
		Name:            "repozo",
		Usage:           "what ZODB's repozo does, with its options and exit codes",
		ArgsUsage:       "-B|-R|-V [repozo's options]",
		Description:     repozoHelp + "\n\nExample:\n   " + repozoExample + "\n\n" + repozoExits,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			if runRepozo(c.Context, c.Args().Slice(), c.App.Writer, c.App.ErrWriter) != 0 {
				return &toldError{errors.New("repozo failed")}
			}
			return nil
		},
	}
}

// runRepozo is repozo: it returns 0 or, with the message on stderr, 1. repozo knows no other exit code.
func runRepozo(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseRepozo(args)
	if err == nil && o.help {
		_, err = fmt.Fprintf(stdout, "%s\n\nExample:\n   %s\n\n%s\n", repozoHelp, repozoExample, repozoExits)
	} else if err == nil {
		err = newRepozo(o, stdout, stderr).run(ctx)
	}
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("stopped by a signal")
	}
	fmt.Fprintf(stderr, "repozo: %s\n", fault.Explain(err))
	return 1
}

// repozo is one run of it.
type repozo struct {
	repozoOptions
	dir    incremental.Dir
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger
}

func newRepozo(o repozoOptions, stdout, stderr io.Writer) *repozo {
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelInfo
	}
	return &repozo{repozoOptions: o, dir: incremental.Dir(o.repository), stdout: stdout, stderr: stderr,
		log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))}
}

func (r *repozo) run(ctx context.Context) error {
	for _, i := range r.ignored {
		r.tell("%s", i)
	}
	switch r.mode {
	case repozoBackup:
		return r.backup(ctx)
	case repozoRecover:
		return r.recover(ctx)
	}
	return r.verify(ctx)
}

// tell tells on standard error what is done: the standard output may be the Data.fs.
func (r *repozo) tell(format string, args ...any) {
	if r.verbose {
		fmt.Fprintf(r.stderr, format+"\n", args...)
	}
}

func (r *repozo) backup(ctx context.Context) error {
	o := incremental.BackupOptions{
		Data: r.file, Repository: r.dir, Full: r.full, Deep: !r.quick, Codec: "none", KillOld: r.killOld, Version: version, Log: r.log,
	}
	if r.gzip {
		o.Codec = "gzip"
	}
	damaged := error(nil)
	if !r.full && !r.quick {
		// Without -Q repozo reads the repository too, and makes a full when it does not hold what Data.fs holds.
		if damaged = r.newestChainIsGood(ctx); damaged != nil && !newFullHelps(damaged) {
			return damaged
		}
		o.Full = damaged != nil
	}
	res, err := restore.Backup(ctx, o)
	if err != nil && !o.Full && newFullHelps(err) && !r.isAboutData(err) {
		// A cron line cannot ask for a full; without one there would be no backup any more.
		damaged, o.Full = err, true
		if res, err = restore.Backup(ctx, o); err != nil {
			return errors.Join(damaged, err)
		}
	}
	if err != nil {
		return err
	}
	switch {
	case damaged != nil:
		r.log.Warn("a new full was made, because the newest chain cannot be used", "increment", res.File, "cause", damaged)
	default:
		tellFull(r.log, res)
	}
	if r.verbose {
		printBackup(r.stderr, res)
	}
	return nil
}

// newFullHelps says whether err is about what is stored, so that there would be no backup without a new full.
func newFullHelps(err error) bool {
	if errors.Is(err, fault.Refused) || errors.Is(err, fault.Diverged) || errors.Is(err, fault.Busy) || errors.Is(err, context.Canceled) {
		return false
	}
	return errors.Is(err, fault.Unverified) || errors.Is(err, fault.Gap)
}

// isAboutData says whether err is about what Data.fs holds.
func (r *repozo) isAboutData(err error) bool {
	var corrupt *filestorage.CorruptError
	return errors.As(err, &corrupt) && corrupt.File == r.file
}

// newestChainIsGood reads what is stored of the newest chain. What has a manifest need not be unpacked for that.
func (r *repozo) newestChainIsGood(ctx context.Context) error {
	repo, err := incremental.Open(ctx, r.dir)
	if err != nil {
		return err
	}
	chains, _, err := repo.Chains(ctx)
	if err != nil || len(chains) == 0 {
		return err
	}
	newest := chains[len(chains)-1]
	for _, p := range newest.Problems {
		if newFullHelps(p) {
			return p
		}
	}
	for _, inc := range newest.Increments {
		if err := checkStored(ctx, repo, inc); err != nil {
			return err
		}
	}
	return nil
}

// checkStored reads a stored increment: by its SHA-256 when a manifest tells it, else by unpacking it.
func checkStored(ctx context.Context, repo *incremental.Repository, inc incremental.Increment) error {
	if inc.Manifest == nil {
		return repo.Copy(ctx, inc, io.Discard)
	}
	_, err := repo.VerifyStored(ctx, inc)
	return err
}

func (r *repozo) recover(ctx context.Context) error {
	o := restore.RecoverOptions{Source: r.dir, Until: incremental.Stamp(r.date), Log: r.log}
	switch {
	case r.output != nil:
		o.Output = *r.output
	case isTerminal(r.stdout):
		return repozoUsage("the standard output is a terminal, and a Data.fs is no text: redirect it, or use --output")
	default:
		o.Stdout = r.stdout
	}
	res, err := restore.Recover(ctx, o)
	if err != nil {
		return err
	}
	for _, s := range res.Increments {
		r.tell("took increment %s", s)
	}
	if r.verbose {
		printRecovery(r.stderr, res)
	}
	return nil
}

func (r *repozo) verify(ctx context.Context) error {
	res, err := incremental.Verify(ctx, r.dir, incremental.VerifyOptions{Quick: r.quick})
	if r.quick {
		// What has no manifest has no hash to be quick with.
		err = errors.Join(err, r.unpackUnknown(ctx))
		res.NotChecked = nil
	}
	if err != nil || r.verbose {
		printVerification(r.stderr, res, r.verbose)
	}
	return err
}

// unpackUnknown checks the increments that quick verification cannot.
func (r *repozo) unpackUnknown(ctx context.Context) error {
	repo, err := incremental.Open(ctx, r.dir)
	if err != nil {
		return nil //nolint:nilerr // Verify has told
	}
	chains, _, err := repo.Chains(ctx)
	if err != nil {
		return nil //nolint:nilerr // Verify has told
	}
	var errs []error
	for _, c := range chains {
		for _, inc := range c.Increments {
			if inc.Manifest == nil {
				errs = append(errs, checkStored(ctx, repo, inc))
			}
		}
	}
	return errors.Join(errs...)
}
