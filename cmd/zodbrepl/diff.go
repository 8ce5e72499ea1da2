package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
	"zodbrepl/restore"
)

// diffCount is how many transactions of a side, and how many objects, are shown without -n.
const diffCount = 50

// errDifferent ends diff with code 1.
var errDifferent = errors.New("different")

func diffCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "diff",
		Usage: "compare two copies of a database, and tell where they have parted",
		Flags: withPlace(
			&cli.Int64Flag{Name: "count", Aliases: []string{"n"}, Usage: "show at most `N` transactions of a side, and N objects; 0 is all", Value: diffCount},
			&cli.BoolFlag{Name: "json", Usage: "print a JSON object a line: the transactions, the objects, then one of type \"summary\""},
		),
		Action: diffAction,
	}, []string{"A", "B"}, `A and B are each a Data.fs, a file that rejoin has kept (DATA.FS.diverged-TID), or a repository: a directory or
sftp://user@host/path, of which the newest chain counts.

Tells the last common transaction and its position, every transaction that only one has ("<" for A, ">" for B) with its
oids, and every object that was changed since, by A, by B or by both. Headers are compared; data is read only where
nothing else tells why the two differ. When one of the two was packed, positions say nothing: transactions are compared by
their tids, objects by their current revisions, and what the pack may have removed is marked with "?". What is in flight counts for nothing: a server may be writing.

The exit code is 1 when they differ, also when only a pack has made them differ. What cannot be compared ends with another
code, never with 1.`,
		"zodbrepl diff /srv/zeo/Data.fs.diverged-040d0bfa00000000 /srv/zeo/Data.fs", 4, 6)
}

func diffAction(c *cli.Context) error {
	if c.Int64("count") < 0 {
		return fault.New(fault.Usage, "diff: -n %d is less than 0", c.Int64("count")).Keeping("nothing was done").Remedy("zodbrepl diff --help")
	}
	d := &comparison{c: c, out: bufio.NewWriter(c.App.Writer), limit: c.Int64("count"), shown: map[string]int64{}}
	res, err := d.run()
	if err == nil {
		err = d.end(res)
	}
	if err = errors.Join(err, d.out.Flush()); err != nil {
		return incomparable(err)
	}
	if !res.Same {
		return &toldError{errDifferent}
	}
	return nil
}

// incomparable gives an error a code that does not look like a difference.
func incomparable(err error) error {
	if fault.ExitCode(err) != 1 || errors.Is(err, context.Canceled) {
		return keeping(err, "everything; files were only read")
	}
	next := "see to what is wrong with it, then try again"
	if errors.Is(err, fs.ErrNotExist) {
		next = "check the paths"
	}
	e := fault.New(fault.Unverified, "they cannot be compared").Because(err).Keeping("everything; files were only read")
	if fault.Next(err) == "" {
		e = e.Remedy("%s", next)
	}
	return e
}

// comparison prints what differs while it is found.
type comparison struct {
	c     *cli.Context
	out   *bufio.Writer
	limit int64 // 0: none
	shown map[string]int64
}

func (d *comparison) run() (res restore.DiffResult, err error) {
	var sides [2]*restore.Side
	for i := range sides {
		if sides[i], err = d.open(d.c.Args().Get(i)); err != nil {
			return res, err
		}
		defer sides[i].Close()
	}
	return restore.Diff(d.c.Context, restore.DiffOptions{A: sides[0], B: sides[1], Transaction: d.transaction, Object: d.object})
}

func (d *comparison) open(where string) (*restore.Side, error) {
	fi, err := os.Stat(where)
	if !strings.Contains(where, "://") && (err != nil || !fi.IsDir()) {
		return restore.OpenFileSide(d.c.Context, where)
	}
	source, err := openSource(d.c, where)
	if err != nil {
		return nil, err
	}
	side, err := restore.OpenRepositorySide(d.c.Context, source)
	if err != nil {
		source.Close()
		return nil, err
	}
	side.AlsoClose(source)
	return side, nil
}

func (d *comparison) json(v any) error {
	enc := json.NewEncoder(d.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// full says whether as many of a kind were shown as were asked for.
func (d *comparison) full(kind string) bool {
	d.shown[kind]++
	return d.limit > 0 && d.shown[kind] > d.limit
}

var signs = map[string]string{"a": "<", "b": ">", "both": "<>"}

func (d *comparison) transaction(t restore.OnlyTransaction) error {
	if d.c.Bool("json") {
		return d.json(struct {
			Type string `json:"type"` // "transaction"
			restore.OnlyTransaction
		}{"transaction", t})
	}
	if d.full(t.Side) {
		return nil
	}
	fmt.Fprintf(d.out, "%s%s ", signs[t.Side], unsure(t.Unsure))
	return t.Print(d.out)
}

func unsure(yes bool) string {
	if yes {
		return "?"
	}
	return " "
}

func (d *comparison) object(o restore.ChangedObject) error {
	if d.c.Bool("json") {
		return d.json(struct {
			Type string `json:"type"` // "object"
			restore.ChangedObject
		}{"object", o})
	}
	if d.full("object") {
		return nil
	}
	if d.shown["object"] == 1 {
		fmt.Fprintln(d.out, "objects changed since, and the transactions of their revisions in A and B:")
	}
	_, err := fmt.Fprintf(d.out, "%-2s%s oid %s  %s  %s\n", signs[o.Side], unsure(o.Unsure), o.OID, revision(o.A, o.DeletedA), revision(o.B, o.DeletedB))
	return err
}

func revision(tid filestorage.TID, deleted bool) string {
	text := tid.String()
	if tid == 0 {
		text = "-               "
	}
	if deleted {
		text += " deleted"
	}
	return text
}

func (d *comparison) end(r restore.DiffResult) error {
	if d.c.Bool("json") {
		return d.json(struct {
			Type string `json:"type"` // "summary"
			restore.DiffResult
		}{"summary", r})
	}
	w := d.out
	for _, s := range []struct {
		sign string
		restore.SideResult
	}{{"<", r.A}, {">", r.B}} {
		side := map[string]string{"<": "a", ">": "b"}[s.sign]
		if more := d.shown[side] - d.limit; d.limit > 0 && more > 0 {
			fmt.Fprintf(w, "%s and %d transactions more (-n 0 shows all)\n", s.sign, more)
		}
	}
	if more := d.shown["object"] - d.limit; d.limit > 0 && more > 0 {
		fmt.Fprintf(w, "and %d objects more (-n 0 shows all)\n", more)
	}
	printSide(w, "A", r.A)
	printSide(w, "B", r.B)
	if r.A.Lineage != "" && r.B.Lineage != "" && r.A.Lineage != r.B.Lineage {
		fmt.Fprintf(w, "THE LINEAGES DIFFER: %s and %s are two databases\n", r.A.Lineage, r.B.Lineage)
	}
	switch {
	case r.Same:
		fmt.Fprintf(w, "the same: every transaction, up to %s\n", r.LastCommon)
		return nil
	case r.Common.LastTID != 0 && r.Common.LastTID == r.LastCommon:
		fmt.Fprintf(w, "common: up to transaction %s (%s), position %d\n", r.Common.LastTID, timeText(r.Common.LastTime), r.Common.Position)
	case r.LastCommon != 0:
		fmt.Fprintf(w, "common: no position, because of a pack; the last common transaction is %s (%s)\n", r.LastCommon, timeText(r.LastCommon.Time()))
	default:
		fmt.Fprintln(w, "common: nothing that both still have")
	}
	fmt.Fprintf(w, "only in A: %d transactions, %d objects changed; only in B: %d transactions, %d objects changed; changed in both: %d objects\n",
		r.A.Transactions, r.A.Objects, r.B.Transactions, r.B.Objects, r.Both)
	if r.Altered > 0 {
		fmt.Fprintf(w, "%d TRANSACTIONS OF THE SAME TID HAVE OTHER RECORDS, and no pack explains it: see zodbrepl check-fs\n", r.Altered)
	}
	printPacked(w, "A", r.A, r.B, r.Packed)
	printPacked(w, "B", r.B, r.A, r.Packed)
	if r.A.Objects+r.B.Objects+r.Both+r.Altered == 0 {
		fmt.Fprintln(w, "every object's current revision is the same")
	}
	return nil
}

func printSide(w io.Writer, name string, s restore.SideResult) {
	fmt.Fprintf(w, "%s: %s (%s", name, s.Name, s.Kind)
	if s.Epoch > 0 {
		fmt.Fprintf(w, ", epoch %d", s.Epoch)
	}
	fmt.Fprintf(w, "), up to transaction %s (%s), position %d", s.Last.LastTID, timeText(s.Last.LastTime), s.Last.Position)
	if s.InFlight > 0 {
		fmt.Fprintf(w, ", then %d bytes in flight", s.InFlight)
	}
	fmt.Fprintln(w)
}

func printPacked(w io.Writer, name string, s, other restore.SideResult, packed int64) {
	switch {
	case other.Unsure > 0 && s.PackedTo == 0: // it left nothing behind the common position
		fmt.Fprintf(w, "%s may have been packed since", name)
	case s.PackedTo != 0 && (other.Unsure > 0 || other.PackedTo != s.PackedTo || packed > 0):
		fmt.Fprintf(w, "%s was packed: up to %s it has only what was in use then", name, s.PackedTo)
	default:
		return
	}
	if other.Unsure > 0 {
		fmt.Fprintf(w, "; whether it ever had %d of the transactions marked with \"?\" cannot be known, the others it never had", other.Unsure)
	}
	fmt.Fprintln(w)
}
