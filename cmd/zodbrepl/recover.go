package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"zodbrepl/internal/fault"
	"zodbrepl/restore"
)

func recoverCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "recover",
		Usage: "make a Data.fs of any moment, to the transaction",
		Flags: withPlace(
			&cli.StringFlag{Name: "repository", Aliases: []string{"r"}, Usage: "the `PLACE` that holds the backups: a directory, or sftp://user@host/path"},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "the `DATA.FS` to make; an existing one is replaced when all is good, or appended to when it is an earlier recovery"},
			&cli.StringFlag{Name: "at", Usage: "the `MOMENT`: a tid, an RFC 3339 time, or yyyy-mm-dd[-hh[-mm[-ss]]] in UTC; by default the newest"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only tell what would be recovered"},
			&cli.BoolFlag{Name: "stdout", Usage: "write the Data.fs to standard output"},
			jobsFlag, jsonFlag, verboseFlag,
		),
		Action: recoverAction,
	}, nil, `Takes every transaction up to the moment, included. A date that is not written out means the end of that day, hour,
minute or second. Everything is verified while it is written; the output gets its name, and its Data.fs.index, only when
all was good, and until then an existing one stays as it was. Repositories that repozo made can be recovered too.`,
		"zodbrepl recover -r /var/backups/zodb -o /srv/zeo/Data.fs --at 2024-03-01-10-30", 3, 4, 5, 6, 75)
}

func recoverAction(c *cli.Context) error {
	if err := need(c, "repository"); err != nil {
		return err
	}
	toStdout, dry := c.Bool("stdout"), c.Bool("dry-run")
	switch output := c.String("output"); {
	case output != "" && toStdout:
		return fault.New(fault.Usage, "recover: --output and --stdout exclude each other").Keeping("nothing was done").Remedy("zodbrepl recover --help")
	case output == "" && !toStdout && !dry:
		return fault.New(fault.Usage, "recover: --output or --stdout is required").Keeping("nothing was done").Remedy("zodbrepl recover --help")
	case toStdout && !dry && c.Bool("json"):
		return fault.New(fault.Usage, "recover: --json and --stdout both want the standard output").Keeping("nothing was done").
			Remedy("leave out --json: what was recovered is told on standard error")
	case toStdout && !dry && isTerminal(c.App.Writer):
		return fault.New(fault.Usage, "recover: the standard output is a terminal").Keeping("nothing was done").Remedy("redirect it, or use --output")
	}
	at, err := restore.ParseMoment(c.String("at"))
	if err != nil {
		return err
	}
	if err := checkJobs(c); err != nil {
		return err
	}
	source, err := openSource(c, c.String("repository"))
	if err != nil {
		return err
	}
	defer source.Close()
	tell, done := progress(c, "recover")
	o := restore.RecoverOptions{Source: source, Output: c.String("output"), At: at, DryRun: dry, Jobs: c.Int("jobs"),
		Log: logger(c, c.Bool("verbose")), Progress: tell}
	if toStdout {
		o.Stdout = c.App.Writer
	}
	res, err := restore.Recover(c.Context, o)
	done()
	if err != nil {
		return err
	}
	if toStdout && !dry {
		printRecovery(c.App.ErrWriter, res)
		return nil
	}
	return report(c, res, func(w io.Writer) { printRecovery(w, res) })
}

func printRecovery(w io.Writer, r restore.RecoverResult) {
	verb := "recovered"
	if r.DryRun {
		verb = "would recover"
	}
	fmt.Fprintf(w, "%s %s from chain %s, %d increments\n", verb, r.At, r.Chain, len(r.Increments))
	if r.LastTID != 0 {
		fmt.Fprintf(w, "last transaction: %s (%s)\n", r.LastTID, timeText(r.LastTime))
	}
	switch {
	case r.DryRun:
		fmt.Fprintf(w, "at most %s, %d transactions\n", bytesText(r.Size), r.Transactions)
	case r.Appended > 0:
		fmt.Fprintf(w, "%d bytes, %d transactions; %s were appended to an earlier recovery\n", r.Size, r.Transactions, bytesText(r.Appended))
	default:
		fmt.Fprintf(w, "%d bytes, %d transactions\n", r.Size, r.Transactions)
	}
}
