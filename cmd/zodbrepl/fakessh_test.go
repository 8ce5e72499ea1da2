package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/pkg/sftp"
)

// fakeSSH stands for the system's ssh: it serves SFTP on its pipes, and writes down how it was called. With FAKESSH set
// it says that and fails, as ssh does.
func fakeSSH() {
	if err := os.WriteFile(os.Getenv("FAKESSH_LOG"), []byte(strings.Join(os.Args[1:], "\n")+"\n"), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if says := os.Getenv("FAKESSH"); says != "" {
		fmt.Fprintln(os.Stderr, says)
		os.Exit(255)
	}
	server, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{os.Stdin, os.Stdout})
	if err == nil {
		err = server.Serve()
	}
	if err != nil && err != io.EOF {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
