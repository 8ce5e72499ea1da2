package restore

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// idle refuses while somebody has Data.fs, and when there is nothing to compare.
func (r *rejoin) idle() error {
	if fi, err := os.Stat(r.Data); r.stateless && (errors.Is(err, fs.ErrNotExist) || err == nil && fi.Size() == 0) {
		return fault.New(fault.Gap, "there is no %s, or it is empty: nothing to compare", r.Data).Keeping("nothing was changed").
			Remedy("check the path; if it is lost, watch builds it: zodbrepl watch --from %s --data %s", r.Source, r.Data)
	}
	if promotionUnderWay(r.Data) {
		return steppedAside(r.Data)
	}
	pid, held, err := filestorage.LockHolder(r.Data)
	if err == nil && held {
		err = lockRefusal(r.Data, &filestorage.LockedError{Path: r.Data + ".lock", PID: pid})
	}
	return err
}

// asPlanned says, now that Data.fs is locked, whether it and the state are still what the plan was made for.
func (r *rejoin) asPlanned() error {
	st, stateless, err := nodeState(r.Data)
	if err != nil {
		return err
	}
	same := stateless == r.stateless && st.Role == r.state.Role && st.Epoch == r.state.Epoch && st.Applied == r.state.Applied
	fi, err := os.Stat(r.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		same = same && r.size == 0
	case err != nil:
		return err
	default:
		same = same && fi.Size() == r.size && (r.info == nil || os.SameFile(fi, r.info))
	}
	if same {
		return nil
	}
	return fault.New(fault.Busy, "%s was changed while it was compared", r.Data).
		Keeping("nothing was changed").Remedy("see who has it, then run it again")
}

type closerFunc func() error

func (c closerFunc) Close() error { return c() }

// open opens Data.fs for reading and finds its last commit.
func (r *rejoin) open() (io.Closer, error) {
	osf, err := filestorage.OpenRegular(r.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.state.Role == Standby:
		return closerFunc(func() error { return nil }), nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.Gap, "there is no %s: nothing to compare", r.Data).Keeping("nothing was changed").
			Remedy("bring it back; if it is lost, move %s away, and watch builds it: zodbrepl watch --from %s --data %s", statePath(r.Data), r.Source, r.Data)
	case err != nil:
		return nil, fault.New(nil, "nothing to compare").Because(err).Keeping("nothing was changed").Remedy("check the path given with --data")
	}
	if err := r.scan(osf); err != nil {
		osf.Close()
		return nil, err
	}
	return osf, nil
}

func (r *rejoin) scan(osf *os.File) (err error) {
	if r.info, err = osf.Stat(); err != nil {
		return err
	}
	r.size = r.info.Size()
	f, err := filestorage.NewFile(filestorage.OSFile{File: osf}, r.Data)
	if errors.Is(err, filestorage.ErrNotFileStorage) && r.state.Role == Standby {
		return nil // it is kept all the same
	}
	if err != nil {
		return fault.New(nil, "nothing to compare").Because(err).Keeping("nothing was changed").Remedy("check the path given with --data")
	}
	r.file = f
	r.ext, err = f.LastCommit(context.Background())
	if errors.As(err, new(*filestorage.CorruptError)) {
		r.damage, err = err, nil // what stands behind it is kept with the rest
	}
	return err
}

// follows says whether a watch would go on by itself: the state is a standby's of this history, no watch has found it
// to be otherwise, and Data.fs is what the state says.
func (r *rejoin) follows(ctx context.Context) (bool, error) {
	st := r.state
	if st.Role != Standby || r.stateless || st.Rejoin.pending() || st.Condition.Name == conditionDiverged {
		return false, nil // a divergence may show only when a full has been read
	}
	if st.Applied.Position == 0 {
		return r.size == 0, nil
	}
	if r.file == nil {
		return false, nil
	}
	s := &standby{data: r.Data, state: st, file: r.file, log: r.Log, now: r.Now}
	swapped, err := s.swapped()
	if err == nil && !swapped {
		if s.state.Next != nil && s.state.Next.Whole {
			s.state.Next = nil
		}
		_, err = s.sound(ctx, r.Source)
	}
	if err == nil {
		_, err = planFor(ctx, r.repo, st)
	}
	if errors.Is(err, fault.Diverged) {
		r.Log.Info("this standby has left the history of the source", "storage", r.Data, "cause", err)
		return false, nil
	}
	return err == nil, err
}

func (r *Rejoined) pending() bool { return r != nil && r.Pending }

// unfinished refuses to go on where a rejoin died.
func (r *Rejoined) unfinished(data string) error {
	if !r.pending() {
		return nil
	}
	return fault.New(fault.Refused, "%s: a rejoin of %s did not come to its end", data, r.Time.UTC().Format(time.RFC3339)).
		Keeping("nothing was changed").Remedy("run it again: zodbrepl rejoin --data %s --from DIR", data)
}
