package restore

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
)

// RejoinOptions says which Data.fs is to follow which repository. Data and Source are required.
type RejoinOptions struct {
	Data   string
	Source incremental.Source
	// GiveUp lets a promoted node follow another host that was promoted to the same epoch.
	GiveUp bool
	// DryRun only tells what would be done.
	DryRun bool
	// Tell sends the answer to where the increments come from: until it is a standby's, the other of two masters may not
	// back up there. Optional.
	Tell func(context.Context, incremental.Answer) error
	Log  *slog.Logger // nil: discarded
	Now  func() time.Time

	crash func(point string)
}

// The ways in which a node rejoins.
const (
	// RejoinNothing: it is a standby of that history already; watch goes on by itself.
	RejoinNothing = "nothing"
	// RejoinDeltas: Data.fs is cut back to the end of an increment, and watch goes on with the next.
	RejoinDeltas = "deltas"
	// RejoinFull: no increment's end is in Data.fs, as after a pack of the new master: watch builds it from the full.
	RejoinFull = "full"
)

// RejoinResult says what was found, and what was done or would be.
type RejoinResult struct {
	Data   string `json:"data"`
	Source string `json:"source"`
	DryRun bool   `json:"dry_run"`
	Way    string `json:"way"`

	// The history that is followed from now on.
	Lineage string `json:"lineage"`
	Epoch   int    `json:"epoch"`
	Host    string `json:"host"` // that wrote its newest increment
	Newest  Mark   `json:"newest"`

	Common Mark `json:"common"` // the last that both have
	// Only counts what is here alone, Shown are its first transactions.
	Only  Extra    `json:"only"`
	Shown []Change `json:"transactions"`
	// Saved is the file that keeps it; "" when there is nothing to keep. Listing is the file that tells people of it.
	Saved   string `json:"saved"`
	Listing string `json:"listing"`
	// Applied is the increment that Data.fs ends with afterwards; nil when watch builds it from a full.
	Applied *Applied `json:"applied,omitempty"`
	// Again counts the common bytes behind that, which come again with the next increment.
	Again int64 `json:"again"`
	// Needed and Free are bytes of disk space: for what is saved and what watch builds, and what there is.
	Needed int64 `json:"needed"`
	Free   int64 `json:"free"`
}

// Mark is a commit boundary.
type Mark struct {
	Position int64           `json:"position"`
	LastTID  filestorage.TID `json:"last_tid"`  // of the transaction that ends there; 0 for none
	LastTime time.Time       `json:"last_time"` // of that
}

func markAt(position int64, last filestorage.TID) Mark {
	m := Mark{Position: position, LastTID: last}
	if last != 0 {
		m.LastTime = last.Time()
	}
	return m
}

// Extra counts what stands behind a common position.
type Extra struct {
	Transactions int64 `json:"transactions"`
	Bytes        int64 `json:"bytes"`     // of them
	InFlight     int64 `json:"in_flight"` // bytes behind the last commit
	// Packed: older transactions that are missing elsewhere may have been removed by a pack, or never have been there.
	Packed bool `json:"packed"`
}

// Rejoined is what the state keeps of a rejoin.
type Rejoined struct {
	Time    time.Time `json:"time"`
	Common  Mark      `json:"common"`
	Saved   string    `json:"saved"`
	Epoch   int       `json:"epoch"`             // of the node before
	Pending bool      `json:"pending,omitempty"` // it did not come to its end
}

// Rejoin makes a node a standby of the history in Source: a former master, or a standby whose Data.fs has left that
// history. The last common position is found from the newest increment back, without reading what is common. What
// only this node has is kept in a file, and listed in another, before anything is cut. It refuses when the source's
// epoch is not higher than that of a master, of another lineage, and while a server has the Data.fs.
//
// It can be repeated, also after a crash. See carryOut.
func Rejoin(ctx context.Context, o RejoinOptions) (res RejoinResult, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Data, err = filepath.Abs(o.Data); err != nil {
		return res, err
	}
	r := &rejoin{RejoinOptions: o}
	if r.state, r.stateless, err = nodeState(o.Data); err != nil {
		return res, err
	}
	if err := r.idle(); err != nil {
		return res, err
	}
	closer, err := r.open()
	if err != nil {
		return res, err
	}
	defer closer.Close()
	r.res = RejoinResult{Data: o.Data, Source: sourceName(o.Source), DryRun: o.DryRun, Shown: []Change{}}
	if err := r.plan(ctx); err != nil || o.DryRun || r.res.Way == RejoinNothing {
		return r.res, err
	}
	r.at("planned")
	// Only now, so that a refusal changes nothing, not even the lock file.
	lock, err := filestorage.AcquireLock(o.Data)
	if err != nil {
		return r.res, lockRefusal(o.Data, err)
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := r.asPlanned(); err != nil {
		return r.res, err
	}
	return r.res, r.carryOut(ctx)
}

// rejoin is one run.
type rejoin struct {
	RejoinOptions
	res       RejoinResult
	state     State
	stateless bool

	file   *filestorage.File // nil: what is there, if anything is, is no Data.fs
	ext    filestorage.Extent
	size   int64 // of the file, in bytes
	info   os.FileInfo
	damage error // in the middle of Data.fs, behind ext.End
	extra  bool  // Data.fs has something to keep

	repo *incremental.Repository
	ms   map[incremental.Stamp]*incremental.Manifest
	head *incremental.Manifest
	// problems are the manifests that cannot be read.
	problems []incremental.Problem
	// branch is the promotions that led to the head, and to a host that goes on from there.
	branch incremental.Branch
}

func (r *rejoin) at(point string) {
	if r.crash != nil {
		r.crash(point)
	}
}

func nodeState(data string) (st State, stateless bool, err error) {
	st, ok, err := ReadState(data)
	return st, !ok, err
}
