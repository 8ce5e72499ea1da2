package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
	"zodbrepl/restore"
	"zodbrepl/transport"
)

func handoverCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "handover",
		Usage: "make a standby the master, and this master a standby (planned exchange)",
		Flags: withPlace(
			&cli.StringFlag{Name: "data", Usage: "the master's `DATA.FS`; its ZEO server must be stopped"},
			&cli.StringFlag{Name: "repository", Aliases: []string{"r"}, Usage: "the `DIR` that it is backed up into"},
			&cli.StringFlag{Name: "to", Usage: "the `TARGET` that the standby follows, as ship takes it; by default the repository itself"},
			&cli.StringFlag{Name: "standby", Usage: "the `HOST` that is to take over, when several would"},
			&cli.DurationFlag{Name: "wait", Usage: "the `TIME` to wait for the standby; then the handover is taken back", Value: restore.DefaultHandoverWait},
			&cli.BoolFlag{Name: "cancel", Usage: "take back a handover that is under way, as long as the standby has not taken over"},
			&cli.BoolFlag{Name: "dry-run", Usage: "tell what would be done, and change nothing"},
			jsonFlag, verboseFlag,
		),
		Action: handoverAction,
	}, nil, `On the standby, watch must run with --accept-handover. Then, here: stop ZEO; run handover; start the ZEO clients' new server there
(--exec of watch does it). handover takes ZODB's lock, makes the last backup, ships it, offers the role, and waits until the
standby, which has exactly that, has taken it. Then this node is a standby at the same position: backup refuses here,
and watch follows the new master by deltas. Nothing is lost and nothing is copied whole.

When nobody takes over in time the offer is taken back, and this host is the master as before. Should the line break just
then, neither can be known: it says so, and ZEO must not be started here until another run has settled it. To run it again
is always safe.`,
		"zodbrepl handover --data /srv/zeo/Data.fs -r /var/backups/zodb --to /mnt/zodb", 3, 4, 5, 6, 75)
}

func handoverAction(c *cli.Context) error {
	if err := need(c, "data", "repository"); err != nil {
		return err
	}
	if c.Bool("cancel") && c.Bool("dry-run") {
		return fault.New(fault.Usage, "handover: --cancel and --dry-run exclude each other").Keeping("nothing was done").Remedy("zodbrepl handover --help")
	}
	repo, err := filepath.Abs(c.String("repository"))
	if err != nil {
		return err
	}
	where := c.String("to")
	if where == "" {
		where = repo
	}
	if err := transport.CheckTarget(where); err != nil {
		return err
	}
	to, err := targetOptions(c)
	if err != nil {
		return err
	}
	place := newLazySource(where, to)
	defer place.Close()
	log := logger(c, c.Bool("verbose"))
	o := restore.HandoverOptions{Data: c.String("data"), Repository: incremental.Dir(repo), Place: place, Standby: c.String("standby"),
		Wait: c.Duration("wait"), DryRun: c.Bool("dry-run"), Version: version, Log: log}
	if !sameDir(repo, where) {
		o.Ship = func(ctx context.Context) error {
			_, err := transport.Ship(ctx, transport.ShipOptions{Repository: incremental.Dir(repo), Targets: []string{where}, Options: to, Log: log})
			return keeping(err, "the repository; nothing was handed over")
		}
	}
	do := restore.HandOver
	if c.Bool("cancel") {
		do = restore.CancelHandover
	}
	res, err := do(c.Context, o)
	if err != nil {
		return err
	}
	return report(c, res, func(w io.Writer) { printHandover(w, res) })
}

func sameDir(repo, where string) bool {
	a, err1 := os.Stat(repo)
	b, err2 := os.Stat(transport.LocalDir(where))
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

func printHandover(w io.Writer, r restore.HandoverResult) {
	switch r.State {
	case restore.HandoverPossible:
		fmt.Fprintf(w, "%s would be handed over to %s in epoch %d, after transaction %s (%s)\n", r.Data, r.Successor, r.Epoch, r.LastTID, timeText(r.LastTime))
		return
	case restore.HandoverNone:
		fmt.Fprintf(w, "%s: no handover is under way, there is nothing to take back\n", r.Data)
		return
	case restore.HandoverBack:
		fmt.Fprintf(w, "%s: the handover to %s was taken back; this host is the master as before, start ZEO again\n", r.Data, r.Successor)
		return
	}
	how := "handed over"
	if r.Already {
		how = "was handed over before"
	}
	fmt.Fprintf(w, "%s %s to %s: it is the master in epoch %d, after transaction %s (%s), position %d\n", r.Data, how, r.Successor, r.Epoch, r.LastTID, timeText(r.LastTime), r.Position)
	if !r.Promoted {
		fmt.Fprintln(w, "it has taken over, but has not told yet that it is ready: see zodbrepl status there")
	}
	fmt.Fprintf(w, "next: do not start ZEO here; disable its service, and this host's backups; then follow:\n  zodbrepl watch --data %s --from PLACE   (where %s backs up or ships to)\n", r.Data, r.Successor)
}
