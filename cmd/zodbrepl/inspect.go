package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
	"zodbrepl/restore"
)

// tailCount is how many transactions --tail shows without -n, as fstail does.
const tailCount = 10

func inspectCommand() *cli.Command {
	return command(&cli.Command{
		Name:  "inspect",
		Usage: "list the transactions of a Data.fs",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "tail", Usage: "from the end, the newest first"},
			&cli.Int64Flag{Name: "count", Aliases: []string{"n"}, Usage: "at most `N` transactions; 0 is all", DefaultText: "all; 10 with --tail"},
			&cli.StringFlag{Name: "from", Usage: "only from the `MOMENT` on, included: a tid, an RFC 3339 time, or yyyy-mm-dd[-hh[-mm[-ss]]] in UTC"},
			&cli.StringFlag{Name: "to", Usage: "only up to the `MOMENT`, included; a date means its end"},
			&cli.BoolFlag{Name: "records", Usage: "also list the data records of each"},
			&cli.BoolFlag{Name: "json", Usage: "print a JSON object a line: the transactions, then an object of type \"end\" if the end was reached"},
		},
		Action: inspectAction,
	}, []string{"FILE"}, `Prints a line for each committed transaction: position, tid, time, status, length, user, description. Position and
length are in bytes; their sum is the position of the next transaction. With --records, a line for each data record
follows: position, oid, size; and whether it belongs to a blob, points back to an older record (an undo) or says that
the object was deleted. What stands after the last commit is told at the end.

It takes no lock and changes nothing: a server may be writing. Damage ends the list; what lies behind it can be seen
with --tail.

FILE may also be one that rejoin has kept (DATA.FS.diverged-TID).`,
		"zodbrepl inspect --tail -n 20 /srv/zeo/Data.fs\nzodbrepl inspect --from 2024-03-01-10 --to 2024-03-01-11 --records /srv/zeo/Data.fs", 4)
}

func inspectAction(c *cli.Context) error {
	in := inspection{c: c, out: bufio.NewWriter(c.App.Writer), limit: c.Int64("count")}
	switch {
	case in.limit < 0:
		return fault.New(fault.Usage, "inspect: -n %d is less than 0", in.limit).Keeping("nothing was done").Remedy("zodbrepl inspect --help")
	case c.Bool("tail") && !c.IsSet("count"):
		in.limit = tailCount
	}
	var err error
	if in.from, err = firstTID(c.String("from")); err != nil {
		return err
	}
	to, err := restore.ParseMoment(c.String("to"))
	if err != nil {
		return err
	}
	if in.to = to.TID; in.to == 0 {
		in.to = ^filestorage.TID(0)
	}
	f, kept, closer, err := restore.OpenData(c.Args().First())
	if err != nil {
		return unreadable(err)
	}
	defer closer.Close()
	in.file, in.kept = f, kept
	if c.Bool("tail") {
		err = in.backwards()
	} else {
		err = in.forwards()
	}
	return unreadable(errors.Join(err, in.out.Flush()))
}

// firstTID returns the first tid of a moment. ParseMoment tells the last, which for a date is a day later.
func firstTID(s string) (filestorage.TID, error) {
	m, err := restore.ParseMoment(s)
	if err != nil {
		return 0, err
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02", "2006-01-02-15", "2006-01-02-15-04", "2006-01-02-15-04-05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return filestorage.LastTIDBefore(t) + 1, nil
		}
	}
	return m.TID, nil
}

// inspection prints transactions one by one: its memory does not depend on the file.
type inspection struct {
	c        *cli.Context
	file     *filestorage.File
	out      *bufio.Writer
	from, to filestorage.TID // both included
	limit    int64           // 0: none
	shown    int64
	kept     *restore.Diverged // nil for a Data.fs
}

func (in *inspection) forwards() error {
	if err := in.head(); err != nil {
		return err
	}
	end := in.file.First()
	for t, err := range in.transactions(in.file.Transactions(end)) {
		if err != nil {
			return err
		}
		if end = t.End(); t.TID > in.to || in.full() {
			return nil
		}
		if t.TID < in.from {
			continue
		}
		if err := in.show(t); err != nil {
			return err
		}
	}
	e, err := in.file.Committed(in.c.Context, end)
	if err != nil {
		return err
	}
	return in.end(e)
}

func (in *inspection) backwards() error {
	e, err := in.file.LastCommit(in.c.Context)
	damage := error(nil)
	if errors.As(err, new(*filestorage.CorruptError)) {
		damage, err = err, nil // up to there it can be shown
	}
	if err != nil {
		return err
	}
	for t, err := range in.transactions(in.file.Backwards(e.End)) {
		if err != nil {
			return errors.Join(damage, err)
		}
		if t.TID < in.from || in.full() {
			break
		}
		if t.TID > in.to {
			continue
		}
		if err := in.show(t); err != nil {
			return errors.Join(damage, err)
		}
	}
	if damage != nil {
		return damage
	}
	return in.end(e)
}

// head tells what a file of diverged bytes is.
func (in *inspection) head() error {
	switch d := in.kept; {
	case d == nil:
	case in.c.Bool("json"):
		return in.json(struct {
			Type string `json:"type"` // "diverged"
			*restore.Diverged
		}{"diverged", d})
	default:
		fmt.Fprintf(in.out, "what %s on %s (epoch %d) had alone, behind transaction %s; positions are those of that file\n", d.Data, d.Host, d.Epoch, d.LastTID)
	}
	return nil
}

// transactions is all, until the command is stopped by a signal.
func (in *inspection) transactions(all iter.Seq2[filestorage.Transaction, error]) iter.Seq2[filestorage.Transaction, error] {
	return func(yield func(filestorage.Transaction, error) bool) {
		for t, err := range all {
			if err == nil {
				err = in.c.Context.Err()
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

func (in *inspection) full() bool { return in.limit > 0 && in.shown == in.limit }

// shownTransaction is a transaction in JSON. The hexadecimal forms stand there when the text is not UTF-8.
type shownTransaction struct {
	Type           string          `json:"type"` // "transaction"
	Position       int64           `json:"position"`
	TID            filestorage.TID `json:"tid"`
	Time           time.Time       `json:"time"`
	Status         string          `json:"status"`
	Length         int64           `json:"length"`
	User           string          `json:"user"`
	UserHex        string          `json:"user_hex,omitempty"`
	Description    string          `json:"description"`
	DescriptionHex string          `json:"description_hex,omitempty"`
	Extension      int             `json:"extension_size"`
	Records        *[]shownRecord  `json:"records,omitempty"`
}

// shownRecord is a data record in JSON.
type shownRecord struct {
	Position int64           `json:"position"`
	OID      filestorage.OID `json:"oid"`
	Size     uint64          `json:"size"` // of the data in this record; 0 for a back pointer
	Previous uint64          `json:"previous"`
	Back     uint64          `json:"back,omitempty"` // position of the record that holds the data
	Deleted  bool            `json:"deleted,omitempty"`
	Blob     bool            `json:"blob,omitempty"`
}

func (in *inspection) show(t filestorage.Transaction) error {
	user, description, extension, err := t.Meta()
	if err != nil {
		return err
	}
	in.shown++
	s := shownTransaction{Type: "transaction", Position: t.Pos, TID: t.TID, Time: t.TID.Time(), Status: statusText(t.Status), Length: t.RecordLen(),
		Extension: len(extension)}
	s.User, s.UserHex = textOf(user)
	s.Description, s.DescriptionHex = textOf(description)
	asJSON := in.c.Bool("json")
	if !asJSON {
		// All nine digits: given to --at or --to, the time is that of this transaction and not one before it.
		fmt.Fprintf(in.out, "%12d  %s  %s  %-9s %9d  %s  %s\n", s.Position, s.TID, s.Time.Format("2006-01-02T15:04:05.000000000Z"),
			s.Status, s.Length, strconv.Quote(string(user)), strconv.Quote(string(description)))
	}
	if in.c.Bool("records") {
		s.Records = &[]shownRecord{}
		for rec, err := range t.Records() {
			if err != nil {
				return err
			}
			r, err := in.record(rec)
			if err != nil {
				return err
			}
			if asJSON {
				*s.Records = append(*s.Records, r)
			} else {
				fmt.Fprintf(in.out, "%16d  oid %s  %s\n", r.Position, r.OID, recordText(r))
			}
		}
	}
	if asJSON {
		return in.json(s)
	}
	return nil
}

func (in *inspection) record(rec filestorage.Record) (shownRecord, error) {
	r := shownRecord{Position: rec.Pos, OID: rec.OID, Size: rec.DataLen, Previous: rec.Prev, Back: rec.Back, Deleted: rec.DataLen == 0 && rec.Back == 0}
	holder, ok, err := in.file.Resolve(rec)
	if errors.Is(err, filestorage.ErrBeforePart) {
		return r, nil // the data is not here, so whether it is a blob's is not known
	}
	if !ok || err != nil {
		return r, err
	}
	var head [filestorage.HeadSize]byte
	n, err := io.ReadFull(in.file.Data(holder), head[:])
	if err != nil && err != io.ErrUnexpectedEOF {
		return r, err
	}
	r.Blob = filestorage.IsBlob(head[:n])
	return r, nil
}

func recordText(r shownRecord) string {
	text := fmt.Sprintf("%d bytes", r.Size)
	switch {
	case r.Deleted:
		text = "deleted"
	case r.Back != 0:
		text = fmt.Sprintf("as at %d", r.Back)
	}
	if r.Blob {
		text += ", blob"
	}
	return text
}

// end tells what stands after the last commit.
func (in *inspection) end(e filestorage.Extent) error {
	if in.c.Bool("json") {
		return in.json(struct {
			Type     string `json:"type"` // "end"
			Position int64  `json:"position"`
			Tail     string `json:"tail"`
			InFlight int64  `json:"in_flight"`
			Reason   string `json:"reason,omitempty"`
		}{"end", e.End, e.Tail.String(), e.InFlight, tailReason(e)})
	}
	printTail(in.out, e.End, e.InFlight, e.Tail.String(), e.Reason)
	return nil
}

func (in *inspection) json(v any) error {
	enc := json.NewEncoder(in.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func tailReason(e filestorage.Extent) string {
	if e.Tail == filestorage.TailClean {
		return ""
	}
	return e.Reason
}

// printTail tells a person what stands after the last commit, if anything does.
func printTail(w io.Writer, end, inFlight int64, state, reason string) {
	switch state {
	case filestorage.TailInFlight.String():
		fmt.Fprintf(w, "after the last commit, at %d: %d bytes in flight, %s; normal while a server runs\n", end, inFlight, reason)
	case filestorage.TailTorn.String():
		fmt.Fprintf(w, "after the last commit, at %d: %d bytes that are no transaction (%s); a server that opens the file cuts them off\n", end, inFlight, reason)
	}
}

func statusText(status byte) string {
	switch status {
	case filestorage.StatusCommitted:
		return "committed"
	case filestorage.StatusPacked:
		return "packed"
	case filestorage.StatusUndone:
		return "undone"
	}
	return strconv.QuoteRune(rune(status))
}

// textOf returns b as text, and also in hexadecimal when that loses something.
func textOf(b []byte) (text, hexadecimal string) {
	if utf8.Valid(b) {
		return string(b), ""
	}
	return string(b), hex.EncodeToString(b)
}

// unreadable adds to an error about a Data.fs that a command was to read what it lacks: what was left untouched, and
// what to do.
func unreadable(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	e := fault.New(nil, "").Because(err)
	if fault.Kept(err) == "" {
		e = e.Keeping("everything; files were only read")
	}
	switch {
	case fault.Next(err) != "":
		return e
	case errors.Is(err, fault.Unverified):
		return e.Remedy("keep this file, and bring back a good one: zodbrepl recover -r REPOSITORY -o OTHER-FILE; " +
			"zodbrepl inspect --tail shows what was committed behind the damage")
	case errors.As(err, new(*filestorage.ShrunkError)):
		return e.Remedy("a pack or a restore may have replaced it meanwhile: try again")
	}
	return e.Remedy("check the path, and the rights of this user")
}
