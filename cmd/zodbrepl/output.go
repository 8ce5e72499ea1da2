package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
	"zodbrepl/internal/fault"
)

var (
	jsonFlag    = &cli.BoolFlag{Name: "json", Usage: "print the result as JSON"}
	levelFlag   = &cli.IntFlag{Name: "level", Usage: "the `LEVEL` of compression: gzip 1 (fastest) to 9 (smallest), zstd 1 to 4"}
	jobsFlag    = &cli.IntFlag{Name: "jobs", Aliases: []string{"j"}, Usage: "work on so many pieces at once, `N`; by default on as many as there are cores. Each takes some MiB of memory"}
	verboseFlag = &cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "tell what is done, also when all goes well"}
)

// logger writes to standard error: warnings and errors, and what is done when verbose.
func logger(c *cli.Context, verbose bool) *slog.Logger { return logTo(c.App.ErrWriter, verbose) }

func logTo(w io.Writer, verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// checkJobs refuses a number of jobs that is none.
func checkJobs(c *cli.Context) error {
	if n := c.Int("jobs"); n < 0 || n == 0 && c.IsSet("jobs") {
		return fault.New(fault.Usage, "%s: --jobs %d: give 1 or more", c.Command.Name, n).Keeping("nothing was done").
			Remedy("leave it out to use all cores")
	}
	return nil
}

// isTerminal says whether w is a terminal: a person looks at it.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// report prints a result as JSON when asked for, else through text.
func report(c *cli.Context, result any, text func(w io.Writer)) error {
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		enc.SetIndent("", "  ")
		return enc.Encode(result)
	}
	text(c.App.Writer)
	return nil
}

// quietly is report for what cron runs: text is printed only for a person or when verbose.
func quietly(c *cli.Context, result any, text func(w io.Writer)) error {
	return report(c, result, func(w io.Writer) {
		if c.Bool("verbose") || isTerminal(w) {
			text(w)
		}
	})
}

// bytesText returns a size for people.
func bytesText(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339Nano)
}
