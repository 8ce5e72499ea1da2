package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"zodbrepl/incremental"
)

func listCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "list",
		Usage: "list the chains and increments of a repository",
		Flags: withPlace(
			&cli.StringFlag{Name: "repository", Aliases: []string{"r"}, Usage: "the `PLACE` that holds the backups: a directory, or sftp://user@host/path"},
			jsonFlag,
		),
		Action: listAction,
	}, nil, `Lists every chain, oldest first, with the last transaction of each increment: the moments that recover can give, and
all that lie between. It reads manifests and .dat files only.`,
		"zodbrepl list -r /var/backups/zodb", 4)
}

func listAction(c *cli.Context) error {
	if err := need(c, "repository"); err != nil {
		return err
	}
	source, err := openSource(c, c.String("repository"))
	if err != nil {
		return err
	}
	defer source.Close()
	listing, err := incremental.List(c.Context, source)
	if err != nil {
		return keeping(err, "everything; files were only read")
	}
	return report(c, listing, func(w io.Writer) { printListing(w, listing) })
}

func printListing(w io.Writer, l incremental.Listing) {
	for _, chain := range l.Chains {
		fmt.Fprintf(w, "chain %s, lineage %s\n", chain.Chain, orDash(chain.Lineage))
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "  FILE\tEPOCH\tEND\tRAW\tSTORED\tTRANSACTIONS\tLAST TID\tLAST TIME")
		for _, i := range chain.Increments {
			if !i.Manifest {
				fmt.Fprintf(t, "  %s\t-\t%d\t%s\t-\t-\t-\tmade by repozo\n", i.File, i.End, bytesText(i.End-i.Start))
				continue
			}
			fmt.Fprintf(t, "  %s\t%d\t%d\t%s\t%s\t%d\t%s\t%s\n", i.File, i.Epoch, i.End, bytesText(i.End-i.Start), bytesText(i.StoredSize),
				i.Transactions, i.LastTID, timeText(i.LastTID.Time()))
		}
		t.Flush()
	}
	for _, p := range l.Problems {
		fmt.Fprintf(w, "problem: %s\n", p)
	}
	if len(l.Chains) == 0 {
		fmt.Fprintln(w, "no increment")
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
