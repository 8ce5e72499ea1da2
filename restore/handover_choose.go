package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// choose finds the standby that takes over, and the epoch for it.
func (h *handover) choose(ctx context.Context) (incremental.Answer, int, error) {
	answers, problems, err := incremental.ReadAnswers(ctx, h.Place)
	if err != nil {
		return incremental.Answer{}, 0, err
	}
	for _, p := range problems {
		h.Log.Warn("a standby's answer cannot be read", "target", h.Place, "cause", p)
	}
	lineage, err := h.lineage(ctx)
	if err != nil {
		return incremental.Answer{}, 0, err
	}
	var willing []incremental.Answer
	var others []string
	for _, a := range answers {
		why := ""
		switch {
		case a.Lineage != lineage:
			why = "of another database"
		case a.Epoch > h.epoch:
			return a, 0, incremental.Fence{Lineage: a.Lineage, Epoch: a.Epoch, Where: "the answer of " + a.Data + " on host " + a.Host, Seen: a.Updated}.Check(h.Repository, h.epoch)
		case a.Role != string(Standby):
			why = "role " + a.Role
		case a.Condition != conditionCurrent:
			why = "condition " + a.Condition
		case !a.Accepts:
			why = "its watch was not started with --accept-handover"
		case h.Standby != "" && a.Host != h.Standby:
			why = "not asked for"
		default:
			willing = append(willing, a)
			continue
		}
		others = append(others, fmt.Sprintf("%s (%s): %s", a.Host, a.Data, why))
	}
	if len(willing) == 1 {
		return willing[0], h.epoch + 1, nil
	}
	e := fault.New(fault.Gap, "%d standbys at %s would take over, one must", len(willing), h.Place).Keeping("nothing was handed over")
	if len(willing) > 1 {
		return incremental.Answer{}, 0, e.Remedy("choose one with --standby HOST")
	}
	if len(others) > 0 {
		e = e.Because(errors.New(strings.Join(others, "; ")))
	}
	return incremental.Answer{}, 0, e.Remedy("start on the standby: zodbrepl watch --accept-handover; and see that it is current: zodbrepl status")
}

// lineage returns that of the repository.
func (h *handover) lineage(ctx context.Context) (string, error) {
	repo, err := incremental.Open(ctx, h.Repository)
	if err != nil {
		return "", err
	}
	stamps := repo.ManifestStamps()
	if len(stamps) == 0 {
		return "", fault.New(fault.Gap, "repository %s holds no increment: no standby can have followed it", h.Repository).
			Keeping("nothing was handed over").Remedy("zodbrepl backup, then ship and watch")
	}
	m, err := incremental.ReadManifest(ctx, h.Repository, stamps[len(stamps)-1])
	if err != nil {
		return "", err
	}
	return m.Lineage, nil
}

// describe makes the offer of the newest increment.
func (h *handover) describe(ctx context.Context, successor incremental.Answer, epoch int) error {
	repo, err := incremental.Open(ctx, h.Repository)
	if err != nil {
		return err
	}
	stamps := repo.ManifestStamps()
	m, err := incremental.ReadManifest(ctx, h.Repository, stamps[len(stamps)-1])
	if err != nil {
		return err
	}
	ext, err := h.committed(ctx)
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	now := h.Now().UTC()
	h.offer = incremental.Handover{Format: incremental.HandoverFormat, Lineage: m.Lineage, Epoch: epoch, Successor: successor.Name(),
		Promotions: h.own.Promotions.With(incremental.Promotion{Epoch: epoch, ID: incremental.NewPromotionID(), Host: successor.Host,
			Time: now, Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID}),
		Chain: m.Chain, Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID, Tail: m.Tail,
		Host: host, Data: h.Data, Place: h.Place.String(), Created: now}
	same, err := h.same(ext)
	if err == nil && !same {
		err = fault.New(fault.Diverged, "%s/%s, the newest increment, is not what %s ends with", h.Repository, m.File, h.Data).
			Keeping("nothing was handed over").Remedy("see what it is: zodbrepl list -r %s", h.Repository)
	}
	return err
}

// rehearse says what a handover would do.
func (h *handover) rehearse(ctx context.Context) (HandoverResult, error) {
	pid, held, err := filestorage.LockHolder(h.Data)
	if err != nil {
		return HandoverResult{}, err
	}
	if held {
		return HandoverResult{}, serverRefusal(h.Data, &filestorage.LockedError{Path: h.Data + ".lock", PID: pid})
	}
	o, found, err := incremental.OpenHandover(ctx, h.Repository, h.epoch)
	if err != nil {
		return HandoverResult{}, err
	}
	h.offer = o.Handover
	if !found {
		a, epoch, err := h.choose(ctx)
		if err != nil {
			return HandoverResult{}, err
		}
		h.offer.Successor, h.offer.Epoch, h.offer.Place, h.offer.Lineage = a.Name(), epoch, h.Place.String(), a.Lineage
		ext, err := h.committed(ctx)
		if err != nil {
			return HandoverResult{}, err
		}
		h.offer.Position, h.offer.LastTID = ext.End, ext.Last
	}
	return h.result(HandoverPossible), nil
}
