package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"
)

// required are the options that a command cannot do without, with values.
var required = map[string][]string{
	"backup":   {"--file=missing.fs", "--repository=missing"},
	"ship":     {"--repository=missing", "--to=missing-too"},
	"watch":    {"--from=missing", "--data=missing.fs"},
	"promote":  {"--data=missing.fs"},
	"handover": {"--data=missing.fs", "--repository=missing"},
	"rejoin":   {"--data=missing.fs", "--from=missing"},
	"status":   {"--data=missing.fs"},
	"recover":  {"--repository=missing", "--output=missing.fs"},
	"verify":   {"--repository=missing"},
	"list":     {"--repository=missing"},
}

// commands are those of zodbrepl's own; repozo has the options and the exit codes of repozo.
func commands() []*cli.Command {
	var own []*cli.Command
	for _, c := range newApp(nil, nil).Commands {
		if c.Name != "repozo" {
			own = append(own, c)
		}
	}
	return own
}

// runHere runs a command in an empty directory and returns what came of it. Help, and a command line that is refused,
// must leave nothing there.
func runHere(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Chdir(t.TempDir())
	var out, err bytes.Buffer
	code = run(append([]string{"zodbrepl"}, args...), &out, &err)
	if left, rerr := os.ReadDir("."); code == 0 || code == 2 {
		require.NoError(t, rerr)
		require.Empty(t, left, "a file was made")
	}
	return code, out.String(), err.String()
}

func TestHelpHasAnExampleAndTheExitCodes(t *testing.T) {
	for _, c := range commands() {
		t.Run(c.Name, func(t *testing.T) {
			code, stdout, stderr := runHere(t, c.Name, "--help")
			require.Zero(t, code)
			require.Empty(t, stderr)
			require.Contains(t, stdout, "Example:\n      zodbrepl "+c.Name)
			_, codes, ok := strings.Cut(stdout, "Exit codes:\n")
			require.True(t, ok)
			for _, want := range []string{"0  done", "1  failed", "2  usage"} {
				require.Contains(t, codes, want)
			}
			for _, line := range strings.Split(stdout, "\n") {
				require.LessOrEqual(t, len([]rune(line)), 220)
			}
			require.NotEmpty(t, c.Usage)
			require.NotRegexp(t, `\.$`, c.Usage)
			for _, f := range c.Flags {
				require.NotEmpty(t, f.(cli.DocGenerationFlag).GetUsage(), "%s", f.Names())
			}
		})
	}
}

// The example of a help text names options that there are, and passes as a command line.
func TestExamplesAreCommandLines(t *testing.T) {
	for _, c := range commands() {
		_, rest, _ := strings.Cut(c.Description, "Example:\n")
		examples, _, _ := strings.Cut(rest, "\n\nExit codes:")
		for _, line := range strings.Split(examples, "\n") {
			args := regexp.MustCompile(`'[^']*'|\S+`).FindAllString(strings.TrimSpace(line), -1)
			t.Run(strings.Join(args, " "), func(t *testing.T) {
				require.Equal(t, []string{"zodbrepl", c.Name}, args[:2])
				for i, a := range args {
					args[i] = strings.Trim(a, "'")
					if filepath.IsAbs(args[i]) {
						args[i] = "missing"
					}
				}
				if c.Name == "watch" { // which has no end of its own
					args = append(args, "--once")
				}
				code, _, stderr := runHere(t, args[1:]...)
				require.NotEqual(t, 2, code, stderr)
			})
		}
	}
}

func TestAWrongCommandLineIsRefusedBeforeAnythingIsDone(t *testing.T) {
	for _, c := range commands() {
		good := append([]string{c.Name}, required[c.Name]...)
		arguments := len(strings.Fields(c.ArgsUsage))
		for range arguments {
			good = append(good, "missing.fs")
		}
		refused := func(t *testing.T, says string, args ...string) {
			t.Helper()
			code, stdout, stderr := runHere(t, args...)
			require.Equal(t, 2, code, stderr)
			require.Empty(t, stdout)
			require.Contains(t, stderr, says)
			require.Contains(t, stderr, "\n  untouched: nothing was done\n")
			require.Contains(t, stderr, "\n  next: ")
		}
		t.Run(c.Name+" with arguments left over", func(t *testing.T) {
			refused(t, `"left-over"`, append(good, "left-over")...)
		})
		t.Run(c.Name+" with an option behind an argument", func(t *testing.T) {
			refused(t, "options come before arguments", append(good, "left-over", "--json")...)
		})
		t.Run(c.Name+" with an unknown option", func(t *testing.T) {
			refused(t, "zodbrepl "+c.Name+" --help", append([]string{c.Name, "--no-such-option"}, good[1:]...)...)
		})
		for i := 1; i < len(good); i++ {
			name, _, _ := strings.Cut(good[i], "=")
			t.Run(fmt.Sprintf("%s without %s", c.Name, name), func(t *testing.T) {
				says := name
				if arguments > 0 {
					says = "takes " + c.ArgsUsage
				} else if c.Name == "recover" && name == "--output" {
					says = "--output or --stdout is required"
				}
				refused(t, says, append(append([]string{}, good[:i]...), good[i+1:]...)...)
			})
		}
	}
}

func TestEveryResultCanBeJSON(t *testing.T) {
	for _, c := range commands() {
		names := []string{}
		for _, f := range c.Flags {
			names = append(names, f.Names()...)
		}
		require.Contains(t, names, "json", c.Name)
	}
}
