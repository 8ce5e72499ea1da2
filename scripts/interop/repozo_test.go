//go:build interop

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// later is after every moment: the real repozo does not see what lies in the future.
const later = "2091-01-01-00-00-00"

// stage is a backup, and what Data.fs was then.
type stage struct {
	at   string
	data []byte
	tid  string // of the last transaction
}

// datesAround returns what an operator may give to -D for a stage.
func (s stage) dates() []string {
	return []string{s.at, s.at[:len("2090-03-01")], s.at[:len("2090-03-01-10")], s.at[:len("2090-03-01-10-20")]}
}

// at returns what a date means by repozo's rule, nil for nothing.
func at(stages []stage, date string) []byte {
	var data []byte
	for _, s := range stages {
		if s.at <= date {
			data = s.data
		}
	}
	return data
}

// moment gives each stage a time of its own, on several days, all after the transactions, which have the real time.
func moment(n int) string { return fmt.Sprintf("2090-03-%02d-10-%02d-%02d", 1+n/3, 10+n, 2*n) }

// recoverEverywhere recovers at every date with the real repozo and with ours. Both must give what Data.fs was.
func recoverEverywhere(t *testing.T, p *peer, repo string, stages []stage) {
	t.Helper()
	dir := t.TempDir()
	seen := make(map[string]bool)
	for _, s := range stages {
		for _, date := range s.dates() {
			if seen[date] {
				continue
			}
			seen[date] = true
			want := at(stages, date)
			theirs, ours := filepath.Join(dir, "theirs.fs"), filepath.Join(dir, "ours.fs")
			if want == nil {
				a := p.repozo(later, "-R", "-r", repo, "-D", date, "-o", filepath.Join(dir, "none"))
				require.Equal(t, 1, a.Code, date)
				r := tryAt(t, "", "repozo", "-R", "-r", repo, "-D", date, "-o", filepath.Join(dir, "none"))
				require.Equal(t, 1, r.code, date)
				continue
			}
			p.good(later, "-R", "-w", "-r", repo, "-D", date, "-o", theirs)
			sameBytes(t, want, theirs, "the real repozo at "+date)
			zodbrepl(t, "repozo", "-R", "-r", repo, "-D", date, "-o", ours)
			sameBytes(t, want, ours, "our repozo at "+date)
		}
		if s.tid != "" {
			out := filepath.Join(dir, "tid.fs")
			zodbrepl(t, "recover", "-r", repo, "--at", s.tid, "-o", out)
			sameBytes(t, s.data, out, "zodbrepl recover --at "+s.tid)
		}
	}
	last := stages[len(stages)-1].data
	out := filepath.Join(dir, "newest.fs")
	p.good(later, "-R", "-r", repo, "-o", out)
	sameBytes(t, last, out, "the real repozo")
	out = filepath.Join(dir, "our-newest.fs")
	zodbrepl(t, "recover", "-r", repo, "-o", out)
	sameBytes(t, last, out, "zodbrepl recover")
}

var plan = [][]string{
	{"plain", "plain"}, {"plain", "abort", "plain"}, {"undo"}, {"big", "plain"}, {"pack", "plain"}, {"empty"},
	{"delete", "plain"}, {"pack", "big", "undo"}, {"plain"},
}

// TestTheRealRepozoReadsWhatWeWrite also with full backups after real packs.
func TestTheRealRepozoReadsWhatWeWrite(t *testing.T) {
	t.Parallel()
	codecs := map[string]func(n int) string{
		"gzip":  func(int) string { return "gzip" },
		"none":  func(int) string { return "none" },
		"mixed": func(n int) string { return []string{"none", "gzip"}[n%2] },
	}
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		data := filepath.Join(dir, "Data.fs")
		var stages []stage
		for name := range codecs {
			mkdir(t, dir, name)
		}
		for n, steps := range plan {
			s := stage{at: moment(n), data: p.grow(data, steps...), tid: p.do("load", call{"data": data}).Last}
			stages = append(stages, s)
			for name, codec := range codecs {
				repo := filepath.Join(dir, name)
				zodbreplAt(t, s.at, "backup", "-f", data, "-r", repo, "--codec", codec(n), "--jobs", []string{"1", "3", "7"}[n%3])
				p.good(later, "-V", "-r", repo)
				p.good(later, "-VQ", "-r", repo)
			}
		}
		for name := range codecs {
			repo := filepath.Join(dir, name)
			zodbrepl(t, "verify", "-r", repo)
			zodbrepl(t, "repozo", "-V", "-r", repo)
			zodbrepl(t, "repozo", "-VQ", "-r", repo)
			recoverEverywhere(t, p, repo, stages)
			fulls, err := filepath.Glob(filepath.Join(repo, "*.fs*"))
			require.NoError(t, err)
			require.Len(t, fulls, 3, "one at the start and one after each pack")
		}
	})
}

// TestInTurn lets the real repozo and zodbrepl write to one repository in turn.
func TestInTurn(t *testing.T) {
	t.Parallel()
	type tool func(t *testing.T, p *peer, at, repo, data string, gzip bool)
	flags := func(flags string, gzip bool) string {
		if gzip {
			flags += "z"
		}
		return flags
	}
	real := func(options string) tool {
		return func(t *testing.T, p *peer, at, repo, data string, gzip bool) {
			p.good(at, flags(options, gzip), "-r", repo, "-f", data)
		}
	}
	backup := func(t *testing.T, _ *peer, at, repo, data string, gzip bool) {
		codec := "none"
		if gzip {
			codec = "gzip"
		}
		zodbreplAt(t, at, "backup", "-f", data, "-r", repo, "--codec", codec)
	}
	repozo := func(options string) tool {
		return func(t *testing.T, _ *peer, at, repo, data string, gzip bool) {
			zodbreplAt(t, at, "repozo", flags(options, gzip), "-r", repo, "-f", data)
		}
	}
	turns := []struct {
		tool  tool
		steps []string
	}{
		{real("-B"), []string{"plain", "plain"}}, {real("-BQ"), []string{"undo"}}, {backup, []string{"big"}},
		{real("-BQ"), []string{"plain"}}, {repozo("-B"), []string{"plain", "abort", "empty"}}, {real("-B"), []string{"delete"}},
		{real("-BQ"), []string{"pack", "plain"}}, {backup, []string{"plain"}}, {real("-BQ"), []string{"undo"}},
		{repozo("-BQ"), []string{"pack", "plain"}}, {real("-BQ"), []string{"plain"}}, {real("-BF"), []string{"plain"}},
		{repozo("-BQ"), []string{"plain"}}, {real("-BQ"), []string{"plain"}}, {backup, []string{"plain"}},
	}
	for name, gzip := range map[string]bool{"gzip": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, p *peer) {
				dir := t.TempDir()
				repo, data := mkdir(t, dir, "repo"), filepath.Join(dir, "Data.fs")
				var stages []stage
				for n, turn := range turns {
					s := stage{at: moment(n), data: p.grow(data, turn.steps...)}
					stages = append(stages, s)
					turn.tool(t, p, s.at, repo, data, gzip)
					p.good(later, "-V", "-r", repo)
					zodbrepl(t, "verify", "-r", repo)
					files, err := filepath.Glob(filepath.Join(repo, s.at+".*fs*"))
					require.NoError(t, err)
					require.Len(t, files, 1, "turn %d wrote an increment", n)
				}
				var fulls []string
				for _, pattern := range []string{"*.fs", "*.fsz"} {
					files, err := filepath.Glob(filepath.Join(repo, pattern))
					require.NoError(t, err)
					fulls = append(fulls, files...)
				}
				sort.Strings(fulls)
				require.Len(t, fulls, 4, "a full at the start, after each pack, and where it was asked for: %v", fulls)
				recoverEverywhere(t, p, repo, stages)
			})
		})
	}
}

// TestTheRealRepozoKillsOldChains leaves our manifests, for which there is no increment any more.
func TestTheRealRepozoKillsOldChains(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		repo, data := mkdir(t, dir, "repo"), filepath.Join(dir, "Data.fs")
		var last []byte
		for n, options := range []string{"", "", "-BFk", ""} {
			last = p.grow(data, "plain")
			if options != "" {
				p.good(moment(n), options, "-r", repo, "-f", data)
			} else {
				zodbreplAt(t, moment(n), "backup", "-f", data, "-r", repo)
			}
		}
		p.good(later, "-V", "-r", repo)
		out := filepath.Join(dir, "out.fs")
		zodbrepl(t, "recover", "-r", repo, "-o", out)
		sameBytes(t, last, out, "after repozo -k")
		// A full of ours with -k takes away what is left.
		zodbreplAt(t, moment(4), "repozo", "-BFk", "-r", repo, "-f", data)
		zodbrepl(t, "verify", "-r", repo)
		manifests, err := filepath.Glob(filepath.Join(repo, "*.manifest"))
		require.NoError(t, err)
		require.Len(t, manifests, 1)
	})
}

// TestWhatTheRealRepozoLeavesBehind: its weaknesses are not ours, and we go on after them.
func TestWhatTheRealRepozoLeavesBehind(t *testing.T) {
	t.Parallel()
	remove := func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }
	for name, test := range map[string]struct {
		// harm is done after two backups of the real repozo, the second at moment(1).
		harm func(t *testing.T, p *peer, repo, data string)
	}{
		"a delta of no bytes": {func(t *testing.T, p *peer, repo, data string) {
			f, err := os.OpenFile(data, os.O_RDWR|os.O_APPEND, 0)
			require.NoError(t, err)
			defer f.Close()
			_, err = f.Write(make([]byte, 11)) // the beginning of a transaction
			require.NoError(t, err)
			require.Zero(t, p.repozo(moment(2), "-BQ", "-r", repo, "-f", data).Code)
			fi, err := os.Stat(filepath.Join(repo, moment(2)+".deltafs"))
			require.NoError(t, err)
			require.Zero(t, fi.Size())
		}},
		"a crash between a delta and the .dat": {func(t *testing.T, p *peer, repo, data string) {
			dat := filepath.Join(repo, moment(0)+".dat")
			b, err := os.ReadFile(dat)
			require.NoError(t, err)
			first, _, _ := strings.Cut(string(b), "\n")
			require.NoError(t, os.WriteFile(dat, []byte(first+"\n"), 0o644))
		}},
		"a crash between a full and its .dat": {func(t *testing.T, p *peer, repo, data string) {
			p.grow(data, "plain")
			p.good(moment(2), "-BF", "-r", repo, "-f", data)
			remove(t, filepath.Join(repo, moment(2)+".dat"))
		}},
		"both at once": {func(t *testing.T, p *peer, repo, data string) {
			p.grow(data, "plain")
			elsewhere := filepath.Join(t.TempDir(), "repo")
			require.NoError(t, os.CopyFS(elsewhere, os.DirFS(repo)))
			p.good(moment(2), "-BQ", "-r", elsewhere, "-f", data)
			zodbreplAt(t, moment(3), "repozo", "-BQ", "-r", repo, "-f", data)
			// We replace the .dat, so the line of the other one is lost, and its delta is there twice.
			name := moment(2) + ".deltafs"
			require.NoError(t, os.Rename(filepath.Join(elsewhere, name), filepath.Join(repo, name)))
		}},
		"a crash while a delta is written": {func(t *testing.T, p *peer, repo, data string) {
			require.NoError(t, os.WriteFile(filepath.Join(repo, "tmp.tmp"), []byte("half"), 0o644))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, p *peer) {
				dir := t.TempDir()
				repo, data := mkdir(t, dir, "repo"), filepath.Join(dir, "Data.fs")
				var stages []stage
				for n := range 2 {
					stages = append(stages, stage{at: moment(n), data: p.grow(data, "plain", "plain")})
					p.good(moment(n), "-BQ", "-r", repo, "-f", data)
				}
				test.harm(t, p, repo, data)
				for n := 4; n < 8; n++ {
					s := stage{at: moment(n), data: p.grow(data, "plain")}
					stages = append(stages, s)
					if n%2 == 0 {
						zodbreplAt(t, s.at, "repozo", "-BQ", "-r", repo, "-f", data)
					} else {
						p.good(s.at, "-BQ", "-r", repo, "-f", data)
					}
					zodbrepl(t, "verify", "-r", repo)
					p.good(later, "-V", "-r", repo)
				}
				last := []stage{stages[0], stages[len(stages)-2], stages[len(stages)-1]}
				for _, s := range last {
					for _, tool := range []string{"ours", "theirs"} {
						out := filepath.Join(dir, tool)
						if tool == "ours" {
							zodbrepl(t, "repozo", "-R", "-r", repo, "-D", s.at, "-o", out)
						} else {
							p.good(later, "-R", "-r", repo, "-D", s.at, "-o", out)
						}
						sameBytes(t, s.data, out, tool+" at "+s.at)
					}
				}
			})
		})
	}
}

// TestTheProgramsThemselves runs repozo's own program and the link to ours side by side.
func TestTheProgramsThemselves(t *testing.T) {
	t.Parallel()
	eachVersion(t, func(t *testing.T, p *peer) {
		dir := t.TempDir()
		repo, data := mkdir(t, dir, "a directory"), filepath.Join(dir, "Data.fs")
		want := p.grow(data, "plain", "undo")
		theirs, err := filepath.Abs(filepath.Join(root, p.venv, "bin", "repozo"))
		require.NoError(t, err)
		ours := filepath.Join(dir, "repozo")
		require.NoError(t, os.Symlink(binary, ours))
		code := func(program string, args ...string) (int, string) {
			out, err := exec.Command(program, args...).Output()
			if _, exited := err.(*exec.ExitError); !exited {
				require.NoError(t, err)
				return 0, string(out)
			}
			return err.(*exec.ExitError).ExitCode(), string(out)
		}
		c, _ := code(ours, "-BzQr", repo, "-f", data)
		require.Zero(t, c)
		for name, args := range map[string][]string{
			"recovery to standard output": {"-Rr", repo},
			"shortened options":           {"--rec", "--rep=" + repo},
			"verification":                {"-V", "-r", repo},
			"nothing":                     {},
			"an unknown option":           {"-X"},
			"an ambiguous option":         {"--ver", "-r", repo},
			"two modes":                   {"-BR", "-r", repo},
			"no repository":               {"-V"},
			"no value":                    {"-R", "-r"},
			"an argument":                 {"-V", "-r", repo, "x"},
			"a value too many":            {"--verify=1", "-r", repo},
			"a repository of nothing":     {"-V", "-r", dir},
			"no such repository":          {"-V", "-r", dir + "/none"},
			"a date before":               {"-R", "-r", repo, "-D", "1999-01-01"},
			"a file that is not there":    {"-B", "-r", repo, "-f", dir + "/none"},
		} {
			if p.venv == ".venv58" && len(args) > 0 && (args[0] == "-Rr" || args[0] == "--rec") {
				continue // with Python 3 it writes bytes to a text stream, and fails
			}
			their, theirOut := code(theirs, args...)
			our, ourOut := code(ours, args...)
			require.Equal(t, their, our, "exit code with %s", name)
			require.True(t, theirOut == ourOut, name)
			if name == "recovery to standard output" {
				require.True(t, string(want) == theirOut)
			}
		}
	})
}
