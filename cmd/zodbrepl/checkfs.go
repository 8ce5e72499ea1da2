package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"zodbrepl/filestorage"
)

func checkFSCommand() *cli.Command {
	return command(&cli.Command{
		Name:   "check-fs",
		Usage:  "check the structure of a Data.fs",
		Flags:  []cli.Flag{jsonFlag},
		Action: checkFSAction,
	}, []string{"FILE"}, `Reads every header and holds it to the rules of ZODB's own fstest, and to more: lengths, positions, the order of the
tids, and that back pointers lead to records of the same object. It prints the first fault with its offset and tid, and
a summary. Data is not read: for that, make a backup and run zodbrepl verify.

It takes no lock and changes nothing: a server may be writing. A transaction that is being written at the end is
no fault; other bytes there are, such as a crash of the host leaves. Records whose previous record is not where it
should be are a warning, since packs leave such.`,
		"zodbrepl check-fs /srv/zeo/Data.fs", 4)
}

func checkFSAction(c *cli.Context) error {
	f, closer, err := filestorage.Open(c.Args().First())
	if err != nil {
		return unreadable(err)
	}
	defer closer.Close()
	tell, done := progress(c, "check-fs")
	h, err := f.CheckFile(c.Context, tell)
	done()
	if c.Context.Err() != nil {
		return err
	}
	if rerr := report(c, h, func(w io.Writer) { printHealth(w, h) }); err == nil {
		err = rerr
	}
	return unreadable(err)
}

func printHealth(w io.Writer, h filestorage.Health) {
	good := "good"
	if !h.OK {
		good = "BAD"
	}
	fmt.Fprintf(w, "%s: %s, magic %s, %s; checked up to position %d\n", h.File, good, h.Magic, bytesText(h.Size), h.End)
	fmt.Fprintf(w, "%d transactions (%d packed), %d records (%d back pointers, %d deletions), %d objects\n",
		h.Transactions, h.Packed, h.Records, h.BackPointers, h.Deletions, h.Objects)
	if h.Transactions > 0 {
		fmt.Fprintf(w, "from %s (%s)\nto   %s (%s)\n", h.FirstTID, timeText(h.FirstTID.Time()), h.LastTID, timeText(h.LastTID.Time()))
	}
	printTail(w, h.End, h.InFlight, h.Tail, h.TailReason)
	if h.Magic == "FS21" {
		fmt.Fprintln(w, "warning: written by Python 2; ZODB 6 and later do not open it")
	}
	if h.Reversed > 0 {
		fmt.Fprintf(w, "fault: %d transactions have a tid that is not greater than the one before; such a file cannot be packed\n", h.Reversed)
	}
	if h.PrevMismatches > 0 {
		fmt.Fprintf(w, "warning: %d records have a previous record that is not the last one of the object; packs leave such, and undo may fail on them\n", h.PrevMismatches)
	}
}
