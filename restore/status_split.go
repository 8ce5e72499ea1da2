package restore

import (
	"context"
	"fmt"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
)

// Other is another master that the source tells of.
type Other struct {
	Host  string `json:"host"`
	Epoch int    `json:"epoch"`
	// Relation is "split-brain": both were promoted, neither follows the other; "superseded": it was promoted after this node;
	// or "stale": this node was promoted after it, and it has written since.
	Relation string          `json:"relation"`
	Where    string          `json:"where"`
	LastTID  filestorage.TID `json:"last_tid"` // the last of it that is known
	// CommonTID and CommonPosition: up to there both have the same history, as far as their promotions tell; 0 when they
	// do not. A pack moves positions.
	CommonTID      filestorage.TID `json:"common_tid"`
	CommonPosition int64           `json:"common_position"`
	// OwnSince and Since are the promotions by which they parted.
	OwnSince incremental.Promotion `json:"own_since,omitzero"`
	Since    incremental.Promotion `json:"since,omitzero"`
}

// The relations of two masters, also conditions of a Status.
const (
	conditionSplit      = "split-brain"
	conditionSuperseded = "superseded"
	relationStale       = "stale"
)

// others looks in the source for other masters than this node.
func (s *Status) others(ctx context.Context, src incremental.Source, st State) {
	repo, err := incremental.Open(ctx, src)
	if err != nil {
		return // it tells nothing; a master does not need it
	}
	seen := make(map[string]bool)
	add := func(branch incremental.Branch, o Other) {
		id := fmt.Sprint(branch.Last().ID, o.Host, o.Epoch)
		if seen[id] || branch.Last().ID != "" && branch.Last().ID == st.Promotions.Last().ID {
			return
		}
		seen[id] = true
		s.Others = append(s.Others, related(st, branch, o))
	}
	stamps := repo.ManifestStamps()
	for i := len(stamps) - 1; i >= 0 && stamps[i] > st.Applied.Stamp; i-- {
		m, err := incremental.ReadManifest(ctx, src, stamps[i])
		if err != nil || st.Lineage != "" && m.Lineage != st.Lineage || m.Epoch == st.Epoch && len(m.Promotions) == 0 || st.Lineage == "" && m.Epoch == 1 {
			continue
		}
		add(m.Promotions, Other{Host: m.Host, Epoch: m.Epoch, Where: m.File, LastTID: m.LastTID})
	}
	answers, _, err := incremental.ReadAnswers(ctx, src)
	if err != nil {
		return
	}
	for _, a := range answers {
		if a.Role == string(Promoted) && (st.Lineage == "" || a.Lineage == st.Lineage) && !st.Promotions.Has(a.Promotion) {
			add(incremental.Branch{a.Promotion}, Other{Host: a.Host, Epoch: a.Epoch, Where: a.Name(), LastTID: a.LastTID})
		}
	}
	for _, o := range s.Others {
		if c := o.condition(s.Data); c.Name != "" && (s.Condition.Name != conditionSplit || c.Name == conditionSplit) {
			s.set(c)
		}
	}
}

// related says how another master stands to this node.
func related(st State, branch incremental.Branch, o Other) Other {
	own := max(st.Epoch, 1)
	first, second := incremental.Fork(st.Promotions, branch)
	o.OwnSince, o.Since = first, second
	switch {
	case o.Epoch > own:
		o.Relation = conditionSuperseded
	case o.Epoch == own && second.ID != "" && first.ID != "":
		o.Relation = conditionSplit
	default:
		o.Relation = relationStale
	}
	earlier := first
	if earlier.ID == "" || second.ID != "" && second.LastTID < earlier.LastTID {
		earlier = second
	}
	o.CommonTID, o.CommonPosition = earlier.LastTID, earlier.Position
	return o
}

func (o Other) condition(data string) Condition {
	switch o.Relation {
	case conditionSplit:
		return Condition{Name: conditionSplit, Next: splitBrain,
			Message: fmt.Sprintf("host %s was promoted to epoch %d as well (%s); both have the same history up to transaction %s", o.Host, o.Epoch, o.Where, o.CommonTID)}
	case conditionSuperseded:
		return Condition{Name: conditionSuperseded,
			Message: fmt.Sprintf("host %s was promoted to epoch %d (%s): this node is not the master any more", o.Host, o.Epoch, o.Where),
			Next:    fmt.Sprintf("stop the ZEO server and the backups here; then zodbrepl rejoin --data %s --from the place that host %s backs up into", data, o.Host)}
	}
	return Condition{}
}
