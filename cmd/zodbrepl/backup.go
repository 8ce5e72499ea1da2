package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
	"zodbrepl/internal/nice"
	"zodbrepl/restore"
)

func backupCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "backup",
		Usage: "write what was committed since the last backup into a repository",
		Flags: withPlace(
			&cli.StringFlag{Name: "file", Aliases: []string{"f"}, Usage: "the live `DATA.FS`"},
			&cli.StringFlag{Name: "repository", Aliases: []string{"r"}, Usage: "the `DIR` that holds the backups; it must exist"},
			&cli.BoolFlag{Name: "full", Aliases: []string{"F"}, Usage: "make a full, and so begin a new chain"},
			&cli.BoolFlag{Name: "deep", Usage: "compare all that is backed up with Data.fs first, not only its end"},
			&cli.StringFlag{Name: "codec", Usage: "the `CODEC` that increments are stored with: gzip, none, or zstd, which repozo does not read; by default gzip, and zstd in a repository of zstd"},
			levelFlag, jobsFlag,
			&cli.StringFlag{Name: "nice", Usage: "how far to stand back behind the server: `HOW` is low (nice 10, lowest usual I/O priority), idle (only what nobody else wants) or none", Value: string(nice.Low)},
			&cli.StringSliceFlag{Name: "require-address", Usage: "refuse unless this host has the master's `ADDRESS`, an IP address or a name; may be repeated"},
			&cli.StringSliceFlag{Name: "ship", Usage: "carry the increments to `TARGET` afterwards, as ship does; may be repeated"},
			jsonFlag, verboseFlag,
		),
		Action: backupAction,
	}, nil, `Reads the transaction log of a live Data.fs, up to the last commit, and writes a delta that continues the
newest chain in the repository; or a full, when there is none or Data.fs was packed. When nothing was committed,
nothing is written. It needs no lock and no ZEO: a server may be writing. The real repozo reads the result, unless the
codec is zstd: that is smaller, and faster both ways. A repository is of zstd, or of gzip and none; never of both.

Quiet when all goes well and nobody looks on; a full that was not asked for is told on standard error.`,
		"zodbrepl backup -f /srv/zeo/Data.fs -r /var/backups/zodb --ship /mnt/bms2/zodb", 3, 4, 5, 6, 75)
}

func backupAction(c *cli.Context) error {
	if err := need(c, "file", "repository"); err != nil {
		return err
	}
	if err := checkTargets(c.StringSlice("ship")); err != nil {
		return err
	}
	if err := checkJobs(c); err != nil {
		return err
	}
	level, err := nice.Parse(c.String("nice"))
	if err != nil {
		return fault.New(fault.Usage, "backup: --nice").Because(err).Keeping("nothing was done").Remedy("zodbrepl backup --help")
	}
	to, err := targetOptions(c)
	if err != nil {
		return err
	}
	if err := restore.RequireAddresses(c.Context, c.StringSlice("require-address")); err != nil {
		return err
	}
	tell, done := progress(c, "backup")
	log := logger(c, c.Bool("verbose"))
	if err := nice.Apply(level); err != nil {
		log.Info("the priority could not be lowered", "cause", err)
	}
	res, err := restore.Backup(c.Context, incremental.BackupOptions{
		Data: c.String("file"), Repository: incremental.Dir(c.String("repository")), Full: c.Bool("full"), Deep: c.Bool("deep"),
		Codec: c.String("codec"), Effort: incremental.Effort{Level: c.Int("level"), Jobs: c.Int("jobs")}, Version: version, Log: log, Progress: tell,
	})
	done()
	if err != nil {
		return keeping(err, "Data.fs, and what was backed up before")
	}
	tellFull(log, res)
	out := struct {
		incremental.BackupResult
		Ship any `json:"ship,omitempty"`
	}{BackupResult: res}
	var shipErr error
	if targets := c.StringSlice("ship"); len(targets) > 0 {
		out.Ship, shipErr = ship(c, c.String("repository"), targets, to)
	}
	err = quietly(c, out, func(w io.Writer) { printBackup(w, res) })
	if shipErr != nil {
		return shipErr
	}
	return err
}

func printBackup(w io.Writer, r incremental.BackupResult) {
	if r.Action == "none" {
		fmt.Fprintf(w, "nothing was committed since the last backup (position %d, last transaction %s)\n", r.End, r.LastTID)
		return
	}
	fmt.Fprintf(w, "%s %s: %d transactions up to %s (%s), %s of Data.fs in %s\n", r.Action, r.File, r.Transactions, r.LastTID,
		timeText(r.LastTID.Time()), bytesText(r.End-r.Start), bytesText(r.StoredSize))
	if r.Reason != "" {
		fmt.Fprintf(w, "a full, because: %s\n", r.Reason)
	}
}
