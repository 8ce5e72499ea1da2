package main

import (
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"zodbrepl/incremental"
)

func verifyCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "verify",
		Usage: "check every increment of a repository",
		Flags: withPlace(
			&cli.StringFlag{Name: "repository", Aliases: []string{"r"}, Usage: "the `PLACE` that holds the backups: a directory, or sftp://user@host/path"},
			&cli.BoolFlag{Name: "quick", Usage: "stored sizes and SHA-256 only, without unpacking"},
			jobsFlag, jsonFlag, verboseFlag,
		),
		Action: verifyAction,
	}, nil, `Unpacks every increment of every chain and checks its hashes, positions, transactions and structure, and that nothing
is missing between. What could not be checked is said. It changes nothing and works on any copy of a repository.`,
		"zodbrepl verify -r /var/backups/zodb", 4, 5, 6)
}

func verifyAction(c *cli.Context) error {
	if err := need(c, "repository"); err != nil {
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
	tell, done := progress(c, "verify")
	res, err := incremental.Verify(c.Context, source, incremental.VerifyOptions{Quick: c.Bool("quick"), Jobs: c.Int("jobs"), Progress: tell})
	done()
	if rerr := report(c, res, func(w io.Writer) { printVerification(w, res, c.Bool("verbose") || isTerminal(w)) }); err == nil {
		err = rerr
	}
	return keeping(err, "everything; files were only read")
}

func printVerification(w io.Writer, r incremental.VerifyResult, verbose bool) {
	n := 0
	for _, chain := range r.Chains {
		for _, inc := range chain.Increments {
			n++
			if inc.Problem != "" {
				fmt.Fprintf(w, "BAD  %s\n     %s\n", inc.File, inc.Problem)
			} else if verbose && inc.Checked {
				fmt.Fprintf(w, "good %s\n", inc.File)
			}
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "BAD  %s\n", p)
	}
	for _, p := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", p)
	}
	for _, p := range r.NotChecked {
		fmt.Fprintf(w, "not checked: %s\n", p)
	}
	for _, p := range r.Unpublished {
		fmt.Fprintf(w, "not published: %s (a run died or is under way; it counts for nothing)\n", p)
	}
	if verbose && r.OK {
		how := ""
		if r.Quick {
			how = ", stored sizes and hashes only"
		}
		fmt.Fprintf(w, "all good: %d chains, %d increments%s\n", len(r.Chains), n, how)
	}
}
