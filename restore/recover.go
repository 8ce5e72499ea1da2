package restore

import (
	"context"
	"io"
	"log/slog"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// RecoverOptions says what to recover and where to. Source is required, and one of Output and Stdout unless DryRun.
type RecoverOptions struct {
	Source incremental.Source
	Output string    // path of the Data.fs to make
	Stdout io.Writer // instead of Output: the raw bytes
	At     Moment
	// Until, when set, takes whole increments with a stamp up to it, as repozo's -D does, instead of At.
	Until  incremental.Stamp
	DryRun bool
	Jobs   int // pieces that are decoded at once; 0: as many as there are cores

	Log      *slog.Logger
	Progress incremental.Progress

	crash func(point string)
}

// RecoverResult says what was, or with DryRun would be, recovered.
type RecoverResult struct {
	Output       string              `json:"output,omitempty"`
	Chain        incremental.Stamp   `json:"chain"`
	Increments   []incremental.Stamp `json:"increments"`
	At           Moment              `json:"at"`       // that was asked for
	LastTID      filestorage.TID     `json:"last_tid"` // that was taken; 0 with DryRun when it takes reading to know
	LastTime     time.Time           `json:"last_time"`
	Size         int64               `json:"size"` // bytes of Data.fs; with DryRun an upper bound
	Transactions int64               `json:"transactions"`
	Appended     int64               `json:"appended"` // bytes added to an earlier recovery; 0 when the file was made anew
	DryRun       bool                `json:"dry_run,omitempty"`
}

// Recover makes a Data.fs of a moment, to the transaction. Everything is verified while it is written; the output
// gets its name, and its index, only when all was good. An output that is an earlier recovery, as a verified prefix,
// is appended to.
//
// Errors are of the kind Gap when the repository cannot give the moment, Unverified when an increment is not good, Busy
// when a server has the output locked, Refused when the output is a standby. The output is as it was then.
func Recover(ctx context.Context, o RecoverOptions) (RecoverResult, error) {
	r := &recovery{RecoverOptions: o}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	if r.Progress == nil {
		r.Progress = func(int64, int64) {}
	}
	if r.crash == nil {
		r.crash = func(string) {}
	}
	if o.Output == "" && o.Stdout == nil && !o.DryRun {
		return RecoverResult{}, fault.New(fault.Usage, "recover: no output is given").Keeping("nothing was done")
	}
	var err error
	if r.repo, err = incremental.Open(ctx, o.Source); err != nil {
		return RecoverResult{}, err
	}
	r.repo.Jobs = o.Jobs
	if err := r.choose(ctx); err != nil {
		return r.res, err
	}
	switch {
	case o.DryRun:
		r.foresee()
	case o.Stdout != nil:
		err = r.stream(ctx)
	default:
		err = r.file(ctx)
	}
	return r.res, err
}

type recovery struct {
	RecoverOptions
	repo       *incremental.Repository
	increments []incremental.Increment
	spans      map[incremental.Stamp]span // of increments that had to be read to know
	res        RecoverResult
}

// foresee fills in what can be known without reading the increments.
func (r *recovery) foresee() {
	m := r.increments[len(r.increments)-1].Manifest
	if m == nil {
		return
	}
	for _, inc := range r.increments {
		if inc.Manifest != nil {
			r.res.Transactions += inc.Manifest.Transactions
		}
	}
	if r.At.TID == 0 || m.LastTID <= r.At.TID {
		r.res.LastTID, r.res.LastTime = m.LastTID, m.LastTID.Time()
	}
}
