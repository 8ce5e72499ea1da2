package incremental

import (
	"context"

	"zodbrepl/filestorage"
)

// Listing is what a repository holds, for people and programs.
type Listing struct {
	Repository string        `json:"repository"`
	Chains     []ListedChain `json:"chains"`
	Problems   []string      `json:"problems"`
}

// ListedChain is a chain of a Listing.
type ListedChain struct {
	Chain      Stamp             `json:"chain"`
	Lineage    string            `json:"lineage"` // "" when repozo made it
	Increments []ListedIncrement `json:"increments"`
}

// ListedIncrement is an increment of a Listing. Without a manifest, only what a .dat tells is known.
type ListedIncrement struct {
	Stamp        Stamp           `json:"stamp"`
	File         string          `json:"file"`
	Kind         Kind            `json:"kind"`
	Codec        string          `json:"codec"`
	Manifest     bool            `json:"manifest"`
	Epoch        int             `json:"epoch"`
	Start        int64           `json:"start"`
	End          int64           `json:"end"`
	StoredSize   int64           `json:"stored_size"`
	Transactions int64           `json:"transactions"`
	FirstTID     filestorage.TID `json:"first_tid"`
	LastTID      filestorage.TID `json:"last_tid"`
	Reason       string          `json:"reason,omitempty"`
	Blobs        int64           `json:"blobs"`
}

// List reads the manifests and .dat files of a repository.
func List(ctx context.Context, src Source) (Listing, error) {
	l := Listing{Repository: src.String(), Chains: []ListedChain{}, Problems: []string{}}
	repo, err := Open(ctx, src)
	if err != nil {
		return l, err
	}
	chains, others, err := repo.Chains(ctx)
	if err != nil {
		return l, err
	}
	for _, c := range chains {
		lc := ListedChain{Chain: c.Stamp, Increments: []ListedIncrement{}}
		for _, i := range c.Increments {
			li := ListedIncrement{Stamp: i.Stamp, File: i.File, Kind: i.Kind, Codec: i.Codec(), Start: i.Start, End: i.End}
			if m := i.Manifest; m != nil {
				lc.Lineage = m.Lineage
				li.Manifest, li.Epoch, li.StoredSize, li.Transactions = true, m.Epoch, m.StoredSize, m.Transactions
				li.FirstTID, li.LastTID, li.Reason, li.Blobs = m.FirstTID, m.LastTID, m.Reason, m.Blobs
			}
			lc.Increments = append(lc.Increments, li)
		}
		l.Chains = append(l.Chains, lc)
		for _, p := range c.Problems {
			l.Problems = append(l.Problems, p.Error())
		}
	}
	for _, p := range others {
		l.Problems = append(l.Problems, p.Error())
	}
	return l, nil
}
