package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"zodbrepl/incremental"
	"zodbrepl/restore"
	"zodbrepl/transport"
)

func rejoinCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "rejoin",
		Usage: "make a former master a standby of the new one",
		Flags: withPlace(
			&cli.StringFlag{Name: "data", Usage: "the former master's `DATA.FS`"},
			&cli.StringFlag{Name: "from", Usage: "the `PLACE` that the new master backs up into: a directory, or sftp://user@host/path"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only tell what would be done"},
			&cli.BoolFlag{Name: "give-up", Usage: "this node was promoted too, to the same epoch as the other: give that up"},
			jsonFlag, verboseFlag,
		),
		Action: rejoinAction,
	}, nil, `Finds the last transaction that both have, keeps what only this node has in a file beside Data.fs,
DATA.FS.diverged-TID (TID is the last common transaction), lists it in DATA.FS.diverged-TID.txt, and only then cuts Data.fs
back to the end of an increment. watch goes on from there with deltas. Nothing is thrown away; the file can be looked at with
inspect and compared with diff. What is common is not read.

When the new master was packed since, its Data.fs differs nearly everywhere: then the whole old Data.fs gets that name, and
watch builds a new one from the full. A dry run tells that, and the space that is needed.

The ZEO server must be stopped. A standby whose Data.fs has left the history that it follows rejoins in the same way. After a
crash, run it again.

It ends with 3 while no other host was promoted after this one, as far as the place tells, or a server has the Data.fs; with 5 when
both were promoted to the same epoch (two masters: a person decides, see --give-up), and with another code when one was promoted,
or may have been, and cannot be followed yet.`,
		"zodbrepl rejoin --data /srv/zeo/Data.fs --from /mnt/zodb --dry-run", 3, 4, 5, 6, 75)
}

func rejoinAction(c *cli.Context) error {
	if err := need(c, "data", "from"); err != nil {
		return err
	}
	source, err := openSource(c, c.String("from"))
	if err != nil {
		return err
	}
	defer source.Close()
	res, err := restore.Rejoin(c.Context, restore.RejoinOptions{Data: c.String("data"), Source: source,
		DryRun: c.Bool("dry-run"), GiveUp: c.Bool("give-up"),
		Tell: func(ctx context.Context, a incremental.Answer) error { return transport.SendAnswer(ctx, source, a) }, Log: logger(c, c.Bool("verbose"))})
	if err != nil {
		return err
	}
	return report(c, res, func(w io.Writer) { printRejoin(w, res) })
}

func printRejoin(w io.Writer, r restore.RejoinResult) {
	if r.Way == restore.RejoinNothing {
		fmt.Fprintf(w, "%s is a standby of this history already, at position %d: there is nothing to do; watch goes on\n", r.Data, r.Common.Position)
		printWatch(w, r)
		return
	}
	is, were := "is a standby of", "was"
	if r.DryRun {
		is, were = "would become a standby of", "would be"
	}
	fmt.Fprintf(w, "%s %s %s (epoch %d, written by %s, up to transaction %s)\n", r.Data, is, r.Source, r.Epoch, r.Host, r.Newest.LastTID)
	if r.Common.LastTID == 0 {
		fmt.Fprintln(w, "last common transaction: none")
	} else {
		fmt.Fprintf(w, "last common transaction: %s (%s), position %d\n", r.Common.LastTID, timeText(r.Common.LastTime), r.Common.Position)
	}
	printOnly(w, r)
	if r.Saved != "" {
		what := "what only this node has"
		if r.Way == restore.RejoinFull {
			what = "the whole Data.fs"
		}
		fmt.Fprintf(w, "%s %s kept in %s, and listed in %s.txt\n", what, were, r.Saved, r.Saved)
	}
	switch {
	case r.Applied != nil:
		fmt.Fprintf(w, "Data.fs %s cut to position %d, where increment %s ends", were, r.Applied.Position, r.Applied.Stamp)
		if r.Again > 0 {
			fmt.Fprintf(w, "; %s that are common come again with the next one", bytesText(r.Again))
		}
		fmt.Fprintln(w)
	default:
		fmt.Fprintf(w, "no increment's end is in Data.fs (the new master was packed, or has made a full): watch builds it from the full, which needs %s; %s are free\n",
			bytesText(r.Needed), bytesText(r.Free))
		if r.Needed > r.Free {
			fmt.Fprintln(w, "THAT IS TOO LITTLE: make space first")
		}
	}
	if r.DryRun {
		fmt.Fprintln(w, "nothing was changed")
		return
	}
	printWatch(w, r)
}

func printOnly(w io.Writer, r restore.RejoinResult) {
	o := r.Only
	if o.Transactions == 0 && o.InFlight == 0 {
		fmt.Fprintln(w, "only here: nothing")
		return
	}
	fmt.Fprintf(w, "only here: %d transactions, %s", o.Transactions, bytesText(o.Bytes))
	if o.InFlight > 0 {
		fmt.Fprintf(w, ", and %d bytes behind the last commit", o.InFlight)
	}
	fmt.Fprintln(w)
	if o.Packed {
		fmt.Fprintln(w, "the new master was packed: some of these may have been common, and removed by the pack")
	}
	for _, c := range r.Shown {
		_ = c.Print(w)
	}
	if more := o.Transactions - int64(len(r.Shown)); more > 0 {
		fmt.Fprintf(w, "and %d more\n", more)
	}
}

func printWatch(w io.Writer, r restore.RejoinResult) {
	fmt.Fprintf(w, "next: zodbrepl watch --from %s --data %s\n", r.Source, r.Data)
}
