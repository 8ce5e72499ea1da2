// Package built gives the tests of a package the real command, built once as it is released.
package built

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Main builds zodbrepl, sets binary to its path, runs the tests of the package and ends the process. root is the path of
// the checkout. When ready, if given, or the build fails, no test is run.
func Main(m *testing.M, root string, binary *string, ready ...func() error) {
	code, err := run(m, root, binary, ready)
	if err != nil {
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M, root string, binary *string, ready []func() error) (int, error) {
	for _, check := range ready {
		if err := check(); err != nil {
			return 0, err
		}
	}
	dir, err := os.MkdirTemp("", "built")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	*binary = filepath.Join(dir, "zodbrepl")
	build := exec.Command("go", "build", "-tags", "urfave_cli_no_docs", "-ldflags", "-s -w", "-o", *binary, "./cmd/zodbrepl")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building zodbrepl: %w\n%s", err, out)
	}
	return m.Run(), nil
}
