package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

func indexCommand() *cli.Command {
	return command(&cli.Command{
		Name:   "index",
		Usage:  "write a fresh Data.fs.index",
		Flags:  []cli.Flag{jsonFlag},
		Action: indexAction,
	}, []string{"FILE"}, `Reads the Data.fs up to the last commit and writes FILE.index, so that a server which opens it starts at once. It holds
the lock of the Data.fs meanwhile, and refuses while a server, or watch, has it. The old index stays until the new one
takes its place; Data.fs is only read.`,
		"zodbrepl index /srv/zeo/Data.fs", 4, 75)
}

func indexAction(c *cli.Context) error {
	path := c.Args().First()
	tell, done := progress(c, "index")
	x, ext, err := filestorage.Reindex(c.Context, path, tell)
	done()
	var locked *filestorage.LockedError
	switch {
	case errors.As(err, &locked):
		return fault.New(fault.Busy, "%s is locked by process %d: a server, or watch, is running on it and keeps the index itself", path, locked.PID).
			Keeping("Data.fs and its index").Remedy("stop that process first; do not remove the lock file")
	case err != nil:
		return unreadable(fault.New(nil, "").Because(err).Keeping("Data.fs, and the index that was there"))
	}
	res := struct {
		File         string          `json:"file"`
		Index        string          `json:"index"`
		Position     int64           `json:"position"`
		Objects      int             `json:"objects"`
		Transactions int64           `json:"transactions"`
		LastTID      filestorage.TID `json:"last_tid"`
		InFlight     int64           `json:"in_flight"`
	}{path, path + ".index", ext.End, x.Len(), ext.Transactions, ext.Last, ext.InFlight}
	return report(c, res, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %d objects, up to position %d (transaction %s)\n", res.Index, res.Objects, res.Position, res.LastTID)
		printTail(w, ext.End, ext.InFlight, ext.Tail.String(), ext.Reason)
	})
}
