package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
	"zodbrepl/fixtures/fixturetest"
)

// The test binary is also the programs that the scripts in testdata/script run: started as zodbrepl or repozo, it is
// the whole command; started as grow, it writes transactions to a Data.fs as a ZODB does; as fakessh, it is an ssh.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"zodbrepl": main, "repozo": main, "grow": growMain, "fakessh": fakeSSH})
}

// The scripts read like the operator's terminal. Commands of their own:
//
//	fixture NAME PATH          a copy of fixtures/data/NAME
//	treesum OUT PATH...        lists everything below PATH, with times and inodes, into OUT: to prove that nothing changed
//	contents OUT PATH...       the same with names and contents only, and without lock files, which stay for ever
//	cmpbytes A B               the same bytes
//	prefix A B                 the bytes of A are those that B begins with, and B has more
//	flip FILE OFFSET[+MORE]    turns one byte over; a negative OFFSET counts from the end
//	cut FILE SIZE              truncates; a negative SIZE cuts off so much
//	sub FILE REGEXP NEW        replaces in a text file; it must match
//	isjson FILE                one or more JSON values and nothing else
//	tids FILE                  sets TID1, TIME1, POS1, TID2, ... of the transactions, and END
//	lock FILE                  takes ZODB's lock on a Data.fs, as a running server has it, until the script ends
//	vote FILE                  leaves a transaction in flight
//	glob VAR PATTERN           sets VAR to the only match
//	waitfor DIR REGEXP         waits until a standby's answer in DIR matches
//	code N COMMAND...          the command ends with the exit code N
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("DATA", filepath.Dir(fixturetest.Path(t, "plain.fs")))
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fixture":  cmdFixture,
			"treesum":  func(ts *testscript.TestScript, _ bool, args []string) { cmdSum(ts, args, true) },
			"contents": func(ts *testscript.TestScript, _ bool, args []string) { cmdSum(ts, args, false) },
			"cmpbytes": cmdCompare, "prefix": cmdPrefix,
			"flip": cmdFlip, "cut": cmdCut, "sub": cmdSub,
			"isjson": cmdJSON, "tids": cmdTIDs, "lock": cmdLock, "vote": cmdVote, "glob": cmdGlob, "code": cmdCode, "waitfor": cmdWaitFor,
		},
	})
}

func want(ts *testscript.TestScript, neg, ok bool, usage string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", usage)
	}
}

func read(ts *testscript.TestScript, path string) []byte {
	return []byte(ts.ReadFile(path))
}

func cmdFixture(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 2, "fixture NAME PATH")
	from, to := filepath.Join(ts.Getenv("DATA"), args[0]), ts.MkAbs(args[1])
	fi, err := os.Stat(from)
	ts.Check(err)
	if fi.IsDir() {
		ts.Check(os.CopyFS(to, os.DirFS(from)))
		return
	}
	b, err := os.ReadFile(from)
	ts.Check(err)
	ts.Check(os.WriteFile(to, b, 0o644))
}

// cmdSum writes a line for each file and directory: whatever a command may change shows in one of them.
func cmdSum(ts *testscript.TestScript, args []string, times bool) {
	want(ts, false, len(args) >= 2, "treesum OUT PATH...")
	var out bytes.Buffer
	for _, root := range args[1:] {
		err := filepath.WalkDir(ts.MkAbs(root), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				fmt.Fprintf(&out, "%s missing\n", root)
				return nil
			}
			if err != nil {
				return err
			}
			if ext := filepath.Ext(path); !times && (ext == ".lock" || ext == ".zodbrepl-promote") {
				return nil
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "%s %s", path, fi.Mode())
			if times {
				fmt.Fprintf(&out, " %d %d", fi.ModTime().UnixNano(), fi.Sys().(*syscall.Stat_t).Ino)
			}
			switch {
			case fi.Mode().IsRegular():
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				fmt.Fprintf(&out, " %d %x", len(b), sha256.Sum256(b))
			case fi.Mode()&fs.ModeSymlink != 0:
				to, _ := os.Readlink(path)
				fmt.Fprintf(&out, " -> %s", to)
			}
			fmt.Fprintln(&out)
			return nil
		})
		ts.Check(err)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out.Bytes(), 0o644))
}

func cmdCompare(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: cmpbytes A B")
	}
	a, b := read(ts, args[0]), read(ts, args[1])
	if bytes.Equal(a, b) == neg {
		ts.Fatalf("%s (%d bytes) and %s (%d bytes): equal is %v", args[0], len(a), args[1], len(b), neg)
	}
}

func cmdPrefix(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 2, "prefix A B")
	a, b := read(ts, args[0]), read(ts, args[1])
	if len(a) >= len(b) || !bytes.HasPrefix(b, a) {
		ts.Fatalf("%s (%d bytes) is not what %s (%d bytes) begins with", args[0], len(a), args[1], len(b))
	}
}

func cmdFlip(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 2, "flip FILE OFFSET[+MORE]")
	b := read(ts, args[0])
	base, more, _ := strings.Cut(args[1], "+")
	i, err := strconv.Atoi(base)
	ts.Check(err)
	if i < 0 {
		i += len(b)
	}
	if more != "" {
		n, err := strconv.Atoi(more)
		ts.Check(err)
		i += n
	}
	b[i] ^= 0xff
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b, 0o644))
}

func cmdCut(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 2, "cut FILE SIZE")
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	if n < 0 {
		n += len(read(ts, args[0]))
	}
	ts.Check(os.Truncate(ts.MkAbs(args[0]), int64(n)))
}

func cmdSub(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 3, "sub FILE REGEXP NEW")
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	b := read(ts, args[0])
	if !re.Match(b) {
		ts.Fatalf("%s: %s matches nothing", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), re.ReplaceAll(b, []byte(args[2])), 0o644))
}

func cmdJSON(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 1, "isjson FILE")
	d := json.NewDecoder(bytes.NewReader(read(ts, args[0])))
	for n := 0; ; n++ {
		var v any
		err := d.Decode(&v)
		if err == io.EOF && n > 0 {
			return
		}
		if err != nil {
			ts.Fatalf("%s: value %d: %v", args[0], n, err)
		}
	}
}

func cmdTIDs(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 1, "tids FILE")
	f, closer, err := filestorage.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer closer.Close()
	n := 0
	for t, err := range f.Transactions(filestorage.MagicSize) {
		ts.Check(err)
		n++
		ts.Setenv(fmt.Sprintf("TID%d", n), t.TID.String())
		ts.Setenv(fmt.Sprintf("TIME%d", n), t.TID.Time().Format(time.RFC3339Nano))
		ts.Setenv(fmt.Sprintf("POS%d", n), strconv.FormatInt(t.Pos, 10))
		ts.Setenv("END", strconv.FormatInt(t.End(), 10))
	}
}

func cmdLock(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 1, "lock FILE")
	l, err := filestorage.AcquireLock(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { _ = l.Release() })
}

func cmdVote(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 1, "vote FILE")
	g, err := fixtures.Open(ts.MkAbs(args[0]), fixtures.Options{})
	ts.Check(err)
	defer g.Close()
	t := g.Begin("", "not committed", nil)
	t.Store(1, []byte("data"))
	ts.Check(t.Vote())
}

func cmdGlob(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 2, "glob VAR PATTERN")
	found, err := filepath.Glob(ts.MkAbs(args[1]))
	ts.Check(err)
	if len(found) != 1 {
		ts.Fatalf("%s matches %d files: %q", args[1], len(found), found)
	}
	ts.Setenv(args[0], found[0])
}

func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) >= 2, "code N COMMAND...")
	code, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit interface{ ExitCode() int }
	switch err := ts.Exec(args[1], args[2:]...); {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	default:
		ts.Check(err)
	}
	if got != code {
		ts.Fatalf("exit code %d, should be %d", got, code)
	}
}

func cmdWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	want(ts, neg, len(args) == 2, "waitfor DIR REGEXP")
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		found, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "*.standby"))
		ts.Check(err)
		for _, path := range found {
			if b, err := os.ReadFile(path); err == nil && re.Match(b) {
				return
			}
		}
	}
	ts.Fatalf("no answer in %s matches %s", args[0], args[1])
}

// growMain writes transactions to a Data.fs:
//
//	grow [-create] [-n COUNT] [-at TIME] [-pack] FILE
//
// They come half a second after TIME and every second after that (a tid is rounded down: on the full second, its time
// would be a second before); -pack packs at the end, up to the last one but one.
func growMain() {
	var (
		f      = flag.NewFlagSet("grow", flag.ExitOnError)
		create = f.Bool("create", false, "make a new file")
		count  = f.Int("n", 1, "transactions")
		size   = f.Int("size", 300, "bytes of an object")
		at     = f.String("at", "", "time of the first")
		pack   = f.Bool("pack", false, "pack at the end")
	)
	_ = f.Parse(os.Args[1:])
	if err := grow(f.Arg(0), *create, *count, *size, *at, *pack); err != nil {
		fmt.Fprintln(os.Stderr, "grow:", err)
		os.Exit(1)
	}
}

func grow(path string, create bool, count, size int, at string, pack bool) error {
	now := time.Now
	if at != "" {
		t, err := time.Parse(time.RFC3339, at)
		if err != nil {
			return err
		}
		t = t.Add(-time.Second / 2)
		now = func() time.Time { t = t.Add(time.Second); return t }
	}
	open := fixtures.Open
	if create {
		open = fixtures.Create
	}
	g, err := open(path, fixtures.Options{Now: now, NoSync: true})
	if err != nil {
		return err
	}
	defer g.Close()
	rng := rand.New(rand.NewPCG(uint64(g.Size()), 0))
	before := g.LastTID()
	for range count {
		before = g.LastTID()
		if _, err := g.CommitRandom(rng, 4, size); err != nil {
			return err
		}
	}
	if pack {
		return g.Pack(before)
	}
	return nil
}
