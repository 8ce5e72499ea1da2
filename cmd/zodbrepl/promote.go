package main

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"zodbrepl/internal/fault"
	"zodbrepl/restore"
	"zodbrepl/transport"
)

func promoteCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "promote",
		Usage: "make a standby the master",
		Flags: withPlace(
			&cli.StringFlag{Name: "data", Usage: "the standby's `DATA.FS`"},
			&cli.StringFlag{Name: "from", Usage: "the `PLACE` to drain first, as watch takes it; by default the one that watch followed"},
			&cli.BoolFlag{Name: "no-drain", Usage: "take the standby as it is, without looking at the directory"},
			&cli.StringFlag{Name: "exec", Usage: "shell `COMMAND` that starts the ZEO server, run at the end"},
			&cli.DurationFlag{Name: "wait", Usage: "the `TIME` to wait for a running watch to step aside", Value: restore.DefaultWait},
			jsonFlag, verboseFlag,
		),
		Action: promoteAction,
	}, nil, `Applies everything complete that has arrived, writes Data.fs.index, raises the epoch and records the role, gives back
the lock and runs COMMAND. A running watch steps aside by itself and ends. From then on watch refuses here, and what a
stale master writes is rejected. To run it again changes nothing (COMMAND runs again).

It prints the last transaction and what is known to be missing. A ZEO client whose cache is newer than that refuses to
connect until its cache file is removed.`,
		"zodbrepl promote --data /srv/zeo/Data.fs --exec 'systemctl start zeo'", 3, 4, 5, 6, 75)
}

func promoteAction(c *cli.Context) error {
	if err := need(c, "data"); err != nil {
		return err
	}
	data, err := filepath.Abs(c.String("data"))
	if err != nil {
		return err
	}
	o := restore.PromoteOptions{Data: data, Exec: c.String("exec"), Wait: c.Duration("wait"), Log: logger(c, c.Bool("verbose"))}
	from := c.String("from")
	if from == "" {
		st, _, err := restore.ReadState(o.Data)
		if err != nil {
			return err
		}
		from = st.Source
	}
	if from != "" {
		if err := transport.CheckTarget(from); err != nil {
			return err
		}
		to, err := targetOptions(c)
		if err != nil {
			return err
		}
		to.Patience = shortPatience
		source := newLazySource(from, to)
		defer source.Close()
		o.Tell = source.tell
		if !c.Bool("no-drain") {
			o.Source = source
		}
	}
	res, err := restore.Promote(c.Context, o)
	if res.Epoch > 0 {
		if rerr := report(c, res, func(w io.Writer) { printPromotion(w, res) }); err == nil {
			err = rerr
		}
	}
	return err
}

func printPromotion(w io.Writer, r restore.PromoteResult) {
	how := "promoted"
	if r.Already {
		how = "was promoted before"
	}
	fmt.Fprintf(w, "%s %s: master of lineage %s in epoch %d\n", r.Data, how, r.Lineage, r.Epoch)
	fmt.Fprintf(w, "last transaction: %s (%s), position %d; %d increments applied just now\n", r.LastTID, timeText(r.LastTime), r.Position, r.Applied)
	if r.Newest != nil {
		fmt.Fprintf(w, "the old master's last known backup: %s, made %s, %s before the promotion; what it committed later is not known here\n",
			r.Newest.Increment, timeText(r.Newest.Created), time.Duration(r.Newest.Age*float64(time.Second)))
	}
	if len(r.Missing) == 0 {
		fmt.Fprintln(w, "known to be missing: nothing; what the old master committed after its last backup is not known here")
	} else {
		printMissing(w, r)
	}
	if !r.Handover {
		fmt.Fprintf(w, "clients: a ZEO client that has seen a transaction after %s refuses to connect; stop it, remove its cache (*.zec), start it again\n", r.LastTID)
	}
}

// shownTIDs is how many tids of an increment are printed; all are in the JSON and in the state.
const shownTIDs = 20

func printMissing(w io.Writer, r restore.PromoteResult) {
	fmt.Fprintf(w, "known to be missing: %d increments could not be applied", r.Unapplied)
	if r.Lag > 0 {
		fmt.Fprintf(w, "; the last transaction here is %s behind the last that is known", time.Duration(r.Lag*float64(time.Second)).Round(time.Millisecond))
	}
	fmt.Fprintln(w)
	for _, m := range r.Missing {
		if m.Increment == "" {
			fmt.Fprintf(w, "  because: %s\n", m.Why)
			continue
		}
		fmt.Fprintf(w, "  %s up to %s, %d transactions: %s\n", m.Increment, m.LastTID, m.Transactions, m.Why)
		for i, tid := range m.TIDs {
			if i == shownTIDs {
				fmt.Fprintf(w, "    and %d more: zodbrepl status --json\n", len(m.TIDs)-i)
				break
			}
			fmt.Fprintf(w, "    %s (%s)\n", tid, timeText(tid.Time()))
		}
	}
}

func statusCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "status",
		Usage: "show how a node stands",
		Flags: withPlace(
			&cli.StringFlag{Name: "data", Usage: "the node's `DATA.FS`"},
			&cli.StringFlag{Name: "from", Usage: "the `PLACE` that it follows, as watch takes it; by default the one that watch followed"},
			&cli.BoolFlag{Name: "local", Usage: "look at this host alone: at once, also when the other one is not to be reached"},
			jsonFlag,
		),
		Action: statusAction,
	}, nil, `Shows role, epoch, position, last transaction, condition and what is still to be applied. It takes no lock and changes
nothing. A condition other than "current" and "behind" comes with what to do.

With --from it also sees whether another host is the master: give it the place that the other one backs up into.`,
		"zodbrepl status --data /srv/zeo/Data.fs --from /srv/increments")
}

func statusAction(c *cli.Context) error {
	if err := need(c, "data"); err != nil {
		return err
	}
	o := restore.StatusOptions{Data: c.String("data")}
	from, local := c.String("from"), c.Bool("local")
	if local && from != "" {
		return fault.New(fault.Usage, "status: --local looks at no other place, --from at %s", from).Keeping("nothing was done").Remedy("give one of the two")
	}
	if from == "" && !local {
		if st, ok, err := restore.ReadState(o.Data); err == nil && ok {
			from = st.Source
		}
	}
	if from != "" {
		to, err := targetOptions(c)
		if err != nil {
			return err
		}
		to.Patience = shortPatience
		source := newLazySource(from, to)
		defer source.Close()
		o.Source = source
	}
	s, err := restore.ReadStatus(c.Context, o)
	if err != nil {
		return err
	}
	return report(c, s, func(w io.Writer) { printStatus(w, s) })
}

func printStatus(w io.Writer, s restore.Status) {
	fmt.Fprintf(w, "data       %s, %s\nrole       %s\n", s.Data, bytesText(s.Size), s.Role)
	if s.Role != "none" {
		fmt.Fprintf(w, "lineage    %s, epoch %d\n", s.Lineage, s.Epoch)
		fmt.Fprintf(w, "position   %d, transaction %s (%s), increment %s\n", s.Position, s.LastTID, timeText(s.LastTime), s.Stamp)
		fmt.Fprintf(w, "applied    %s\n", timeText(s.Applied))
	}
	if s.LockedBy != 0 {
		fmt.Fprintf(w, "lock       held by process %d\n", s.LockedBy)
	} else {
		fmt.Fprintln(w, "lock       free: nothing has this Data.fs open for writing")
	}
	if s.Pending > 0 {
		fmt.Fprintf(w, "pending    %d increments, %s; newest transaction %s\n", s.Pending, bytesText(s.PendingBytes), s.NewestTID)
	}
	for _, o := range s.Others {
		fmt.Fprintf(w, "other      %s: host %s, epoch %d, up to transaction %s (%s); common up to %s (%s), position %d\n", o.Relation, o.Host, o.Epoch,
			o.LastTID, timeText(o.LastTID.Time()), o.CommonTID, timeText(o.CommonTID.Time()), o.CommonPosition)
	}
	fmt.Fprintf(w, "condition  %s", s.Condition.Name)
	if !s.Condition.Since.IsZero() {
		fmt.Fprintf(w, " since %s", s.Condition.Since.Format(time.RFC3339))
	}
	fmt.Fprintln(w)
	if s.Condition.Message != "" {
		fmt.Fprintf(w, "           %s\n", s.Condition.Message)
	}
	if s.Condition.Next != "" {
		fmt.Fprintf(w, "next       %s\n", s.Condition.Next)
	}
	if p := s.Promotion; p != nil {
		fmt.Fprintf(w, "promoted   %s on %s, after transaction %s\n", timeText(p.Time), p.Host, p.LastTID)
		for _, m := range p.Missing {
			fmt.Fprintf(w, "missing    %s up to %s: %s\n", m.Increment, m.LastTID, m.Why)
		}
	}
}
