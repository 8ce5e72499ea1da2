package incremental

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// Handover is the offer of a master to a standby to become the master in its place, after the increment Stamp and with no
// other. It is the file <stamp>.handover in the repository, and in the place that the standby reads. There its name is
// the switch: the standby takes the offer by renaming it to <stamp>.handover-taken, the master takes it back by renaming
// it to <stamp>.handover-withdrawn. One of the two fails. So there is never a moment at which both are masters.
type Handover struct {
	Format  int    `json:"format"`
	Lineage string `json:"lineage"`
	// Epoch is the successor's; Promotions led to it, the last is its own.
	Epoch      int    `json:"epoch"`
	Promotions Branch `json:"promotions"`
	// Successor names the standby that may take it: the name of its answer.
	Successor string `json:"successor"`

	// The final increment, and what Data.fs ends with there.
	Chain    Stamp           `json:"chain"`
	Stamp    Stamp           `json:"stamp"`
	Position int64           `json:"position"`
	LastTID  filestorage.TID `json:"last_tid"`
	Tail     Proof           `json:"tail"`

	Host    string    `json:"host"` // of the master
	Data    string    `json:"data"` // path of its Data.fs
	Place   string    `json:"place"`
	Created time.Time `json:"created"`
}

// HandoverFormat is the version of the record that this package writes and reads.
const HandoverFormat = 1

const (
	handoverExt  = ".handover"
	takenExt     = ".handover-taken"
	withdrawnExt = ".handover-withdrawn"
	maxHandover  = 1 << 20
)

// HandoverState is what became of an offer.
type HandoverState string

// The states of an offer.
const (
	Offered   HandoverState = "offered"
	Taken     HandoverState = "taken"
	Withdrawn HandoverState = "withdrawn"
)

// FileName returns the name of the record in that state.
func (h Handover) FileName(s HandoverState) string { return handoverName(h.Stamp, s) }

func handoverName(stamp Stamp, s HandoverState) string {
	switch s {
	case Taken:
		return string(stamp) + takenExt
	case Withdrawn:
		return string(stamp) + withdrawnExt
	}
	return string(stamp) + handoverExt
}

// Is says whether the two are the same offer.
func (h Handover) Is(other Handover) bool {
	return h.Lineage == other.Lineage && h.Stamp == other.Stamp && h.Promotions.Last().ID == other.Promotions.Last().ID
}

// Encode returns the record's JSON.
func (h Handover) Encode() ([]byte, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(h, "", "  ")
	return append(b, '\n'), err
}

// Validate checks that the fields do not contradict each other.
func (h Handover) Validate() error {
	if _, err := ParseStamp(string(h.Stamp)); err != nil {
		return err
	}
	if err := h.Promotions.Validate(h.Epoch); err != nil {
		return err
	}
	last := h.Promotions.Last()
	switch {
	case h.Format != HandoverFormat:
		return fmt.Errorf("handover of format %d, this program knows %d", h.Format, HandoverFormat)
	case h.Lineage == "" || h.Successor == "" || h.Epoch < 2:
		return fmt.Errorf("handover of lineage %q to %q in epoch %d", h.Lineage, h.Successor, h.Epoch)
	case last.Stamp != h.Stamp || last.Position != h.Position || last.LastTID != h.LastTID:
		return errors.New("handover: its promotion does not begin with its final increment")
	case h.Position < filestorage.MagicSize || h.Tail.Size != min(h.Position, TailSize):
		return fmt.Errorf("handover at position %d with a tail proof of %d bytes", h.Position, h.Tail.Size)
	}
	return nil
}

// Offer is a record that was found in a repository.
type Offer struct {
	Handover
	State HandoverState
}

// Offers says whether the listing shows an offer after the increment of that stamp, made or taken. To ask costs nothing.
func (r *Repository) Offers(s Stamp) bool {
	return slices.Contains(r.names, handoverName(s, Offered)) || slices.Contains(r.names, handoverName(s, Taken))
}

// ReadOffers reads the handovers of a repository, oldest first; of one increment the taken first. One that cannot be read
// is an error: it may be a switch that was thrown.
func ReadOffers(ctx context.Context, src Source) ([]Offer, error) {
	entries, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	return offersAmong(ctx, src, namesOf(entries))
}

func namesOf(entries []fs.DirEntry) []string {
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func offersAmong(ctx context.Context, src Source, names []string) ([]Offer, error) {
	var offers []Offer
	for _, name := range names {
		stamp, ok := stampOf(name)
		if !ok || !strings.Contains(name, handoverExt) {
			continue
		}
		for _, state := range []HandoverState{Taken, Offered, Withdrawn} {
			if name != handoverName(stamp, state) {
				continue
			}
			h, err := ReadHandover(ctx, src, stamp, state)
			if errors.Is(err, fs.ErrNotExist) {
				continue // renamed since the listing
			}
			if err != nil {
				return nil, err
			}
			offers = append(offers, Offer{h, state})
		}
	}
	return offers, nil
}

// ReadHandover reads the record of the increment with that stamp in that state. There being none is fs.ErrNotExist.
func ReadHandover(ctx context.Context, src Source, stamp Stamp, s HandoverState) (h Handover, err error) {
	name := handoverName(stamp, s)
	b, err := readSmall(ctx, src, name, maxHandover)
	if err != nil {
		return h, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err = dec.Decode(&h); err == nil {
		err = h.Validate()
	}
	if err == nil && h.Stamp != stamp {
		err = fmt.Errorf("it says that it is of %s", h.Stamp)
	}
	if err != nil {
		return Handover{}, fault.New(fault.Unverified, "%s/%s", src, name).Because(err).
			Keeping("nothing was changed").Remedy("see what happened to it; it says whether a handover was under way")
	}
	return h, nil
}

// OpenHandover returns the offer of the repository in dir that a master of that epoch has made and that is not taken back.
func OpenHandover(ctx context.Context, dir Dir, epoch int) (o Offer, ok bool, err error) {
	offers, err := ReadOffers(ctx, dir)
	if err != nil {
		return o, false, err
	}
	o, ok = openOffer(offers, epoch)
	return o, ok, nil
}

func openOffer(offers []Offer, epoch int) (o Offer, ok bool) {
	for _, c := range offers {
		if c.Epoch > epoch && c.State != Withdrawn && (!ok || c.Stamp > o.Stamp || c.State == Taken) {
			o, ok = c, true
		}
	}
	return o, ok
}

// WriteOffer makes an offer in the repository in dir, durably. It refuses when the final increment is not the newest any
// more. From then on no backup is made there.
func WriteOffer(ctx context.Context, dir Dir, h Handover) error {
	doc, err := h.Encode()
	if err != nil {
		return err
	}
	lock, err := LockRepository(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	repo, err := Open(ctx, dir)
	if err != nil {
		return err
	}
	if stamps := repo.ManifestStamps(); len(stamps) == 0 || stamps[len(stamps)-1] != h.Stamp {
		return fault.New(fault.Busy, "repository %s: another backup came between", dir).
			Keeping("nothing was handed over").Remedy("run it again")
	}
	lock.Announce()
	return dir.WriteFile(ctx, h.FileName(Offered), doc)
}
