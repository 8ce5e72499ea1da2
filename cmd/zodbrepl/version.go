package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// version and commit are set by the linker (see the Makefile); without it, Go's build information tells the commit.
var (
	version = "dev"
	commit  = ""
)

func buildCommit() string {
	if commit != "" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

func versionCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "version",
		Usage: "print version and commit",
		Flags: []cli.Flag{jsonFlag},
		Action: func(c *cli.Context) error {
			v := struct {
				Version string `json:"version"`
				Commit  string `json:"commit"`
				Go      string `json:"go"`
			}{version, buildCommit(), runtime.Version()}
			return report(c, v, func(w io.Writer) { fmt.Fprintf(w, "zodbrepl %s, commit %s, %s\n", v.Version, v.Commit, v.Go) })
		},
	}, nil, "Prints what this binary was built from.", "zodbrepl version")
}
