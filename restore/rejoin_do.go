package restore

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// carryOut does what was planned. What a crash leaves at each point:
//
//	saved       when Data.fs is cut: the file of diverged bytes, whole, durable and compared. The next run finds it
//	listed      its listing as well. The node is still what it was; ZEO could be started again
//	intended    the state says standby, and that a rejoin is pending: watch, promote and backup refuse. Data.fs is as it
//	            was. When all of it is kept, its listing is made now
//	unindexed   Data.fs has lost an index that is newer than the cut, or it stands beside the file that is kept whole
//	cut         Data.fs ends with an increment; or it has the name of the file that keeps it, and is no more
//	rejoined    the state claims that; watch goes on, and tells it if this run has not
//
// Until rejoined, the next run begins anew and comes to the same: the common position does not depend on what is cut.
func (r *rejoin) carryOut(ctx context.Context) error {
	res := &r.res
	if res.Way == RejoinNothing {
		return nil
	}
	st := State{Lineage: res.Lineage, Epoch: res.Epoch, Role: Standby, Promotions: r.branch, Source: res.Source,
		Condition: Condition{Name: conditionBehind, Message: "made a standby by rejoin; watch has not looked since",
			Next: "zodbrepl watch --from " + res.Source + " --data " + r.Data, Since: r.Now().UTC()},
		Rejoin: &Rejoined{Time: r.Now().UTC(), Common: res.Common, Epoch: r.epoch(), Pending: true}}
	if res.Applied != nil {
		st.Applied = *res.Applied
		st.Applied.Time = r.Now().UTC()
	}
	if r.extra && res.Way == RejoinDeltas {
		if err := r.keep(ctx); err != nil {
			return err
		}
	}
	st.Rejoin.Saved = res.Saved
	if err := st.write(r.Data); err != nil {
		return r.unwritable(err)
	}
	r.at("intended")
	if res.Way == RejoinDeltas {
		err := r.cutBack()
		if err != nil {
			return r.unwritable(err)
		}
	} else if r.extra {
		if err := r.list(ctx); err != nil {
			return err
		}
		if err := r.moveAway(); err != nil {
			return r.unwritable(err)
		}
	}
	r.at("cut")
	st.Rejoin.Pending = false
	if err := st.write(r.Data); err != nil {
		return r.unwritable(err)
	}
	r.at("rejoined")
	r.Log.Info("rejoined", "storage", r.Data, "epoch", res.Epoch, "position", st.Applied.Position, "saved", res.Saved)
	r.tell(ctx, st)
	return nil
}

// tell tells the source that the node is a standby. That it cannot be told, because the source is read-only, hinders nothing.
func (r *rejoin) tell(ctx context.Context, st State) {
	if r.Tell == nil {
		return
	}
	a := answerOf(r.Data, st)
	a.Updated = r.Now().UTC()
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := r.Tell(ctx, a); err != nil {
		r.Log.Debug("the answer could not be sent", "source", r.Source, "cause", err)
	}
}

func (r *rejoin) unwritable(err error) error {
	return fault.New(nil, "writing %s", r.Data).Because(err).
		Keeping("what only this node has").
		Remedy("see to the disk (space, rights, errors), then run it again")
}

// cutBack ends Data.fs with the increment.
func (r *rejoin) cutBack() error {
	position := r.res.Applied.Position
	index := r.Data + ".index"
	// An older index of this file is as good as ever; a newer one would point to what is cut, and look sane when as
	// many bytes have come again.
	if _, from, err := r.file.LoadIndex(index); err != nil || from > position {
		if err := durable.Remove(index); err != nil {
			return err
		}
	}
	r.at("unindexed")
	f, err := os.OpenFile(r.Data, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(position); err != nil {
		return err
	}
	return f.Sync()
}

// moveAway gives Data.fs the name under which it is kept.
func (r *rejoin) moveAway() error {
	to := r.res.Saved
	err := os.Rename(r.Data+".index", to+".index")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.at("unindexed")
	return durable.Rename(r.Data, to)
}
