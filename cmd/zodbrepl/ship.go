package main

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"

	"github.com/urfave/cli/v2"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
	"zodbrepl/transport"
)

func shipCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "ship",
		Usage: "bring targets up to date with a repository",
		Flags: withPlace(
			&cli.StringFlag{Name: "repository", Aliases: []string{"r"}, Usage: "the `DIR` that holds the backups"},
			&cli.StringSliceFlag{Name: "to", Usage: "`TARGET` to carry them to: a directory as a path or file:///path, or sftp://user@host/path; may be repeated"},
			jsonFlag, verboseFlag,
		),
		Action: func(c *cli.Context) error {
			if err := need(c, "repository"); err != nil {
				return err
			}
			targets := c.StringSlice("to")
			if len(targets) == 0 {
				return fault.New(fault.Usage, "ship: --to is required").Keeping("nothing was done").Remedy("zodbrepl ship --help")
			}
			if err := checkTargets(targets); err != nil {
				return err
			}
			o, err := targetOptions(c)
			if err != nil {
				return err
			}
			results, err := ship(c, c.String("repository"), targets, o)
			if results != nil {
				if rerr := quietly(c, results, func(w io.Writer) { printShip(w, results) }); err == nil {
					err = rerr
				}
			}
			return err
		},
	}, nil, `Sends every increment that a target lacks, oldest first, manifest last, so that what is visible there is always
complete. Half a file is gone on with. Targets are served at once; one that is slow or dead holds back no other. The
answers of the standbys that read a target are shown; when one was promoted, this repository is closed for backups.

sftp:// needs an ordinary OpenSSH server at the other side. ~/.ssh/config is honoured; keys come from the agent and from files, there are
no passwords; the host's key must be in known_hosts. A line that is cut is tried again for a while; the next run goes on.`,
		"zodbrepl ship -r /var/backups/zodb --to sftp://zodbship@bms2/increments --to /mnt/vault/zodb", 3, 4, 5, 6, 75)
}

func checkTargets(targets []string) error {
	for _, t := range targets {
		if err := transport.CheckTarget(t); err != nil {
			return err
		}
	}
	return nil
}

func ship(c *cli.Context, repository string, targets []string, o transport.TargetOptions) ([]transport.TargetResult, error) {
	bars := newBars(c)
	so := transport.ShipOptions{Repository: incremental.Dir(repository), Targets: targets, Options: o,
		Log: logTo(bars.logWriter(c), c.Bool("verbose"))}
	if bars != nil {
		each := make(map[string]*bar)
		for _, t := range targets {
			if each[t] == nil {
				each[t] = bars.add(t)
			}
		}
		so.Progress = func(p transport.ShipProgress) {
			each[p.Target].set(p.RunDone, p.RunTotal, func() string {
				return fmt.Sprintf("%s %s of %s, files left: %d", p.File, bytesText(p.Done), bytesText(p.Total), p.Files)
			})
		}
		defer bars.end(slices.Collect(maps.Values(each))...)
	}
	results, err := transport.Ship(c.Context, so)
	return results, keeping(err, "the repository, and what the targets have already")
}

func printShip(w io.Writer, results []transport.TargetResult) {
	for _, r := range results {
		switch {
		case r.Error != "":
			fmt.Fprintf(w, "%s: failed after %d increments\n", r.Target, len(r.Increments))
		case len(r.Increments) == 0:
			fmt.Fprintf(w, "%s: up to date\n", r.Target)
		default:
			fmt.Fprintf(w, "%s: %d increments, %s sent\n", r.Target, len(r.Increments), bytesText(r.Sent))
		}
		for _, a := range r.Standbys {
			fmt.Fprintf(w, "  %s on %s: %s, has applied %s (%s)%s\n", a.Role, a.Host, a.Condition, a.LastTID, timeText(a.LastTID.Time()), lagText(r.Lags, a))
		}
	}
}

// lagText says how far a standby was behind when the run began.
func lagText(lags []transport.Lag, a incremental.Answer) string {
	for _, l := range lags {
		if l.Host == a.Host && l.Data == a.Data {
			return fmt.Sprintf("; %d increments behind, the oldest made at %s", l.Increments, timeText(l.Since))
		}
	}
	return ""
}

// tellFull logs a full that nobody asked for: cron's mail should say it.
func tellFull(log *slog.Logger, r incremental.BackupResult) {
	if r.Action == string(incremental.Full) && r.Unasked {
		log.Warn("a new full was made", "increment", r.File, "cause", r.Reason)
	}
}
