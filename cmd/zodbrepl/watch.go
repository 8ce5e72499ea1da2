package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"zodbrepl/internal/fault"
	"zodbrepl/restore"
	"zodbrepl/transport"
)

func watchCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "watch",
		Usage: "follow a repository with a standby's Data.fs (daemon)",
		Flags: append(withPlace(
			&cli.StringFlag{Name: "from", Usage: "the `PLACE` that the increments arrive in: a directory, or sftp://user@host/path to pull them from another host"},
			&cli.StringFlag{Name: "data", Usage: "the standby's `DATA.FS`; it is made when missing"},
			&cli.BoolFlag{Name: "once", Usage: "apply what there is, then end"},
			&cli.DurationFlag{Name: "interval", Usage: "the `TIME` between two looks at the directory", Value: restore.DefaultInterval},
			&cli.StringSliceFlag{Name: "refuse-if-address", Usage: "refuse while this host has the master's `ADDRESS`, an IP address or a name, which is resolved at each look; may be repeated"},
			&cli.BoolFlag{Name: "accept-handover", Usage: "become the master when its master hands over to this standby"},
			&cli.StringFlag{Name: "exec", Usage: "shell `COMMAND` that starts the ZEO server then"},
			jsonFlag, verboseFlag,
		), healthFlags()...),
		Action: watchAction,
	}, nil, `Verifies each increment whole, then appends it to the standby's Data.fs; a new full is built beside it and swapped in.
Meanwhile it holds ZODB's lock, so that no ZEO server opens the file for writing; a read-only FileStorage may.

It refuses to start, and stops when running, if the node was promoted, if another process holds the lock, if Data.fs is
not what was applied, if this host has the master's address, or if a stale master is still writing. A gap or a damaged
increment does not stop it: zodbrepl status names it. SIGTERM ends it cleanly; it writes Data.fs.index then.

With --accept-handover it becomes the master when the master runs zodbrepl handover: on exactly the last increment it
records the role, gives back the lock, runs COMMAND and ends, with 3 as always when a node is promoted, or with 0 after --once.

With --http it answers GET /healthz: 200 when it had all that the directory has not longer than --max-lag ago, 503 and the
reason otherwise; and GET /role: the role, or with ?is=standby 200 or 503. Nothing answers any more once it has ended,
as it does when the node is promoted. As a service of systemd's Type=notify it tells when it follows, how it stands, and
the watchdog as long as it gets on.`,
		"zodbrepl watch --from /srv/increments --data /srv/zeo/Data.fs --refuse-if-address 10.0.0.5", 3, 4, 5, 6)
}

func watchAction(c *cli.Context) error {
	if err := need(c, "from", "data"); err != nil {
		return err
	}
	if err := transport.CheckTarget(c.String("from")); err != nil {
		return err
	}
	if c.String("exec") != "" && !c.Bool("accept-handover") {
		return fault.New(fault.Usage, "watch: --exec goes with --accept-handover").Keeping("nothing was done").Remedy("zodbrepl watch --help")
	}
	data, err := filepath.Abs(c.String("data"))
	if err != nil {
		return err
	}
	o, err := targetOptions(c)
	if err != nil {
		return err
	}
	// Opened at each look: a mount that is not there yet is a condition, not an end.
	source := newLazySource(c.String("from"), o)
	defer source.Close()
	once := c.Bool("once")
	health, address, err := healthOf(c)
	if err != nil {
		return err
	}
	log := logger(c, !once || c.Bool("verbose"))
	if address != "" {
		stop, err := serveHealth(c.Context, health, address, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	ended := notify(c.Context, health, log)
	res, err := restore.Watch(c.Context, restore.WatchOptions{
		Source: source, Data: data, Once: once, Interval: c.Duration("interval"),
		Hint: transport.LocalDir(c.String("from")), RefuseIfAddress: c.StringSlice("refuse-if-address"),
		AcceptHandover: c.Bool("accept-handover"), Exec: c.String("exec"),
		Tell: source.tell, Log: log, Health: health,
	})
	ended(err)
	if err != nil {
		return err
	}
	if !once && !c.Bool("json") {
		return nil
	}
	return quietly(c, res, func(w io.Writer) {
		fmt.Fprintf(w, "%d increments applied; at position %d, transaction %s (%s)\n", res.Increments,
			res.State.Applied.Position, res.State.Applied.LastTID, timeText(res.State.Applied.LastTID.Time()))
		if res.TookOver {
			fmt.Fprintf(w, "the master has handed over: this node is the master now, in epoch %d\n", res.State.Epoch)
		}
	})
}

// openSource opens a place to read increments from.
func openSource(c *cli.Context, where string) (transport.Target, error) {
	if err := transport.CheckTarget(where); err != nil {
		return nil, err
	}
	o, err := targetOptions(c)
	if err != nil {
		return nil, err
	}
	return transport.OpenTarget(c.Context, where, o)
}
