package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// giveUp makes this node a standby at the final increment.
func (h *handover) giveUp(ctx context.Context) error {
	ext, err := h.committed(ctx)
	if err != nil {
		return err
	}
	if same, err := h.same(ext); err != nil {
		return err
	} else if !same {
		return h.wentOn(ext)
	}
	if err := cutTail(h.Data, ext.End); err != nil {
		return err
	}
	h.crash("cut")
	o := h.offer
	st := State{Lineage: o.Lineage, Epoch: o.Epoch, Role: Standby, Source: o.Place, Promotions: o.Promotions, Applied: h.final(),
		Condition: Condition{Name: conditionHanded, Message: "handed over to " + o.Successor,
			Next: "start watch here: it follows the new master", Since: h.Now().UTC()}}
	if err := st.write(h.Data); err != nil {
		return fault.New(nil, "%s has taken over, but this could not be recorded here", o.Successor).Because(err).
			Keeping("nothing is backed up here any more").Remedy("do NOT start ZEO here; see to the disk, then run zodbrepl handover again")
	}
	h.crash("gave up")
	return h.close(ctx)
}

// final is the place in the chain that both nodes have.
func (h *handover) final() Applied {
	o := h.offer
	return Applied{Chain: o.Chain, Stamp: o.Stamp, Position: o.Position, LastTID: o.LastTID, Tail: o.Tail, Time: h.Now().UTC()}
}

// same says whether Data.fs, of which ext is committed, ends with the final increment.
func (h *handover) same(ext filestorage.Extent) (bool, error) {
	if ext.End != h.offer.Position {
		return false, nil
	}
	f, closer, err := filestorage.Open(h.Data)
	if err != nil {
		return false, err
	}
	defer closer.Close()
	return h.final().holds(f)
}

// close leaves the repository as that of a host that is the master no more.
func (h *handover) close(ctx context.Context) error {
	if err := h.fence(); err != nil {
		return err
	}
	h.crash("fenced")
	err := h.Repository.Rename(ctx, h.offer.FileName(incremental.Offered), h.offer.FileName(incremental.Taken))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (h *handover) fence() error {
	o := h.offer
	return incremental.Fence{Lineage: o.Lineage, Epoch: o.Epoch, Where: "the handover to " + o.Successor, Seen: h.Now().UTC()}.Raise(h.Repository)
}

// promoted says whether the successor has told that it is the master.
func (h *handover) promoted(ctx context.Context) bool {
	answers, _, err := incremental.ReadAnswers(ctx, h.Place)
	if err != nil {
		return false
	}
	for _, a := range answers {
		if a.Name() == h.offer.Successor && a.Lineage == h.offer.Lineage && a.Role == string(Promoted) && a.Epoch >= h.offer.Epoch {
			return true
		}
	}
	return false
}

// heard waits a little for the successor to tell that it is the master. Nothing depends on it.
func (h *handover) heard(ctx context.Context) bool {
	for deadline := time.Now().Add(h.hear); ; {
		if h.promoted(ctx) {
			return true
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
		select {
		case <-ctx.Done():
		case <-time.After(h.poll):
		}
	}
}

// cutTail cuts off what stands behind the last commit, which no server will finish any more, and keeps it as FileStorage
// does when it opens such a file: as Data.fs.trN.
func cutTail(data string, end int64) error {
	f, err := os.OpenFile(data, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := filestorage.OSFile{File: f}.Size()
	if err != nil || size == end {
		return err
	}
	tail := make([]byte, size-end)
	if _, err := f.ReadAt(tail, end); err != nil {
		return err
	}
	for n := 0; ; n++ {
		path := fmt.Sprintf("%s.tr%d", data, n)
		if _, err := os.Lstat(path); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := durable.WriteFile(path, tail, 0o666); err != nil {
			return err
		}
		break
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	return errors.Join(f.Sync(), durable.SyncDir(filepath.Dir(data)))
}
