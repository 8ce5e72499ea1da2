package restore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"zodbrepl/filestorage"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// maxShown is how many transactions a result has; the listing has all.
const maxShown = 20

// keep brings what only this node has to a file of its own, and lists it.
func (r *rejoin) keep(ctx context.Context) error {
	res := &r.res
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	r.Log.Info("saving what only this node has", "storage", r.Data, "bytes", r.size-res.Common.Position)
	res.Saved, err = keepDiverged(ctx, r.file, Diverged{Lineage: res.Lineage, Epoch: r.epoch(), Position: res.Common.Position,
		LastTID: res.Common.LastTID, Data: r.Data, Host: host, Saved: r.Now().UTC()}, r.size)
	if err != nil {
		return err
	}
	r.at("saved")
	return r.list(ctx)
}

// list writes the listing.
func (r *rejoin) list(ctx context.Context) error {
	res := &r.res
	res.Listing = res.Saved + listingExt
	err := durable.Write(res.Listing, 0o600, func(w io.Writer) error {
		out := w.(*os.File)
		if err := durable.OwnLike(out, r.Data, filepath.Dir(r.Data)); err != nil {
			return err
		}
		fi, err := os.Stat(r.Data)
		if err != nil {
			return err
		}
		if err := out.Chmod(fi.Mode().Perm()); err != nil {
			return err
		}
		buf := bufio.NewWriter(out)
		return errors.Join(r.listing(ctx, buf), buf.Flush())
	})
	if err != nil {
		return fault.New(nil, "listing what is kept in %s", res.Saved).Because(err).
			Keeping("Data.fs is as it was").Remedy("see to the disk (space, rights, errors), then run it again")
	}
	r.at("listed")
	return nil
}

// listing is what is written there: the same at every run.
func (r *rejoin) listing(ctx context.Context, w io.Writer) error {
	res := &r.res
	if r.file == nil {
		_, err := fmt.Fprintf(w, "%s was no Data.fs when this node was made a standby.\n", r.Data)
		return err
	}
	fmt.Fprintf(w, "What %s of lineage %s, epoch %d, had alone, behind transaction %s, at position %d.\n",
		r.Data, res.Lineage, r.epoch(), res.Common.LastTID, res.Common.Position)
	if res.Only.Packed {
		fmt.Fprintln(w, "Some of it may have been common: the new master was packed, which removes transactions.")
	}
	fmt.Fprintf(w, "Look at it with: zodbrepl inspect --from %s %s\n\n", (res.Common.LastTID + 1), res.Saved)
	for t, err := range r.file.Transactions(res.Common.Position) {
		if err == nil {
			err = ctx.Err()
		}
		if errors.As(err, new(*filestorage.CorruptError)) {
			fmt.Fprintf(w, "\nthe rest is damaged: %v\n", err)
			return nil
		}
		if err != nil {
			return err
		}
		c, err := changeOf(t, 0)
		if err == nil {
			err = c.Print(w)
		}
		if err != nil {
			return err
		}
	}
	if res.Only.InFlight > 0 && r.damage == nil {
		fmt.Fprintf(w, "\n%d bytes in flight, at %d: a transaction that was never committed\n", res.Only.InFlight, r.ext.End)
	}
	return nil
}

// Change is a transaction and what it wrote.
type Change struct {
	Position    int64             `json:"position"`
	TID         filestorage.TID   `json:"tid"`
	Time        time.Time         `json:"time"`
	Length      int64             `json:"length"`
	User        string            `json:"user"`
	Description string            `json:"description"`
	Records     int64             `json:"records"`
	OIDs        []filestorage.OID `json:"oids"` // of the records, perhaps only the first
}

// changeOf reads a transaction with so many of its oids; 0 is all.
func changeOf(t filestorage.Transaction, most int64) (Change, error) {
	user, description, _, err := t.Meta()
	if err != nil {
		return Change{}, err
	}
	c := Change{Position: t.Pos, TID: t.TID, Time: t.TID.Time(), Length: t.RecordLen(), User: string(user), Description: string(description),
		OIDs: []filestorage.OID{}}
	for rec, err := range t.Records() {
		if err != nil {
			return c, err
		}
		if c.Records++; most == 0 || c.Records <= most {
			c.OIDs = append(c.OIDs, rec.OID)
		}
	}
	return c, nil
}

// Print writes the transaction as inspect does, and its oids below.
func (c Change) Print(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%12d  %s  %s  %9d  %q  %q\n", c.Position, c.TID, c.Time.Format("2006-01-02T15:04:05.000000000Z"), c.Length, c.User, c.Description)
	for i, oid := range c.OIDs {
		if i%6 == 0 {
			fmt.Fprint(&b, "              oids")
		}
		fmt.Fprintf(&b, " %s", oid)
		if i%6 == 5 || i == len(c.OIDs)-1 {
			fmt.Fprintln(&b)
		}
	}
	if more := c.Records - int64(len(c.OIDs)); more > 0 {
		fmt.Fprintf(&b, "              and %d more\n", more)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// count counts what stands behind the common position, and shows the first of it.
func (r *rejoin) count(ctx context.Context) error {
	only := &r.res.Only
	only.Bytes, only.InFlight = r.ext.End-r.res.Common.Position, r.size-r.ext.End
	for t, err := range r.file.Transactions(r.res.Common.Position) {
		if err == nil {
			err = ctx.Err()
		}
		if errors.As(err, new(*filestorage.CorruptError)) {
			break
		}
		if err != nil {
			return err
		}
		if only.Transactions++; len(r.res.Shown) < maxShown {
			c, err := changeOf(t, maxShown)
			if err != nil {
				return err
			}
			r.res.Shown = append(r.res.Shown, c)
		}
	}
	return nil
}

// freeSpace returns the bytes that this user may still write beside the file.
func freeSpace(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(path), &s); err != nil {
		return 0, fmt.Errorf("space beside %s: %w", path, err)
	}
	return int64(s.Bavail) * int64(s.Bsize), nil
}
