// Package lint checks what no linter knows: that the packages of this module import each other one way only.
package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// allowed says which packages of the module a package may import besides its own parts. Tests are freer: one may drive
// a whole chain from below, but none imports a command.
var allowed = []struct{ from, to string }{
	{"zodbrepl/internal", "zodbrepl/internal"},
	{"zodbrepl/filestorage", "zodbrepl/internal"},
	{"zodbrepl/incremental", "zodbrepl/internal zodbrepl/filestorage"},
	{"zodbrepl/transport/targettest", "zodbrepl/internal zodbrepl/transport"},
	{"zodbrepl/transport", "zodbrepl/internal zodbrepl/filestorage zodbrepl/incremental"},
	{"zodbrepl/restore", "zodbrepl/internal zodbrepl/filestorage zodbrepl/incremental"},
	{"zodbrepl/cmd", "zodbrepl/internal zodbrepl/filestorage zodbrepl/incremental zodbrepl/transport zodbrepl/restore"},
	{"zodbrepl/fixtures", "zodbrepl/internal zodbrepl/filestorage zodbrepl/fixtures"},
	{"zodbrepl/scripts", "zodbrepl/internal zodbrepl/filestorage zodbrepl/incremental zodbrepl/transport zodbrepl/restore zodbrepl/fixtures"},
}

// goPackage is what go list tells of a package.
type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func within(path, parent string) bool { return path == parent || strings.HasPrefix(path, parent+"/") }

// forbidden returns why one package must not import the other, or "".
func forbidden(from, to string) string {
	if !within(to, "zodbrepl") {
		return ""
	}
	for _, rule := range allowed {
		if !within(from, rule.from) {
			continue
		}
		for target := range strings.FieldsSeq(rule.to) {
			if within(to, target) {
				return ""
			}
		}
		return from + " must not import " + to
	}
	return from + " is in no layer: give it a line in scripts/lint/imports_test.go"
}

func TestPackagesImportEachOtherOneWay(t *testing.T) {
	cmd := exec.Command("go", "list", "-tags", "interop", "-json=ImportPath,Imports,TestImports,XTestImports", "zodbrepl/...")
	out, err := cmd.Output()
	require.NoError(t, err)
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		for _, to := range p.Imports {
			require.Empty(t, forbidden(p.ImportPath, to))
		}
		for _, to := range append(p.TestImports, p.XTestImports...) {
			require.False(t, within(to, "zodbrepl/cmd") && !within(p.ImportPath, to), "the tests of %s import %s", p.ImportPath, to)
		}
	}
	require.Greater(t, seen, 8, "go list found hardly a package")
}

func TestTheRulesRefuseWhatTheyShould(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		allowed        bool
	}{
		{"a command uses the standby", "zodbrepl/cmd/zodbrepl", "zodbrepl/restore", true},
		{"the standby uses the repository", "zodbrepl/restore", "zodbrepl/incremental", true},
		{"other modules are free", "zodbrepl/filestorage", "github.com/google/uuid", true},
		{"the demo uses the fixtures", "zodbrepl/scripts/demo", "zodbrepl/fixtures", true},
		{"the format does not know the repository", "zodbrepl/filestorage", "zodbrepl/incremental", false},
		{"the repository does not know the transport", "zodbrepl/incremental", "zodbrepl/transport", false},
		{"the standby does not know the transport", "zodbrepl/restore", "zodbrepl/transport", false},
		{"the transport does not know the standby", "zodbrepl/transport", "zodbrepl/restore", false},
		{"nothing imports a command", "zodbrepl/scripts/demo", "zodbrepl/cmd/zodbrepl", false},
		{"the product has no fixtures in it", "zodbrepl/cmd/zodbrepl", "zodbrepl/fixtures", false},
		{"a new package needs a layer", "zodbrepl/stream", "zodbrepl/filestorage", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.allowed, forbidden(c.from, c.to) == "")
		})
	}
}
