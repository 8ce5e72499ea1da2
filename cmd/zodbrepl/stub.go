package main

import (
	"context"
	"io"

	"github.com/urfave/cli/v2"
)

func runRepozo(ctx context.Context, args []string, stdout, stderr io.Writer) int { return 1 }
func inspectCommand() *cli.Command                                              { return &cli.Command{Name: "inspect"} }
func checkFSCommand() *cli.Command                                              { return &cli.Command{Name: "check-fs"} }
func indexCommand() *cli.Command                                                { return &cli.Command{Name: "index"} }
func repozoCommand() *cli.Command                                               { return &cli.Command{Name: "repozo"} }
