package incremental

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// Lock keeps other runs from changing the same thing until it is closed or its process ends.
type Lock struct {
	f    *os.File
	told bool // the process's id is in it
}

// LockFile takes the flock of the file at path, which is made when missing and never removed, and writes the
// process's id into it. When another process has it, the error is of the kind fault.Busy and names that process.
func LockFile(path, what string) (*Lock, error) {
	l, err := lockFile(path, what)
	if err == nil {
		l.Announce()
	}
	return l, err
}

func lockFile(path, what string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if errors.Is(err, unix.ELOOP) {
		return nil, fault.New(nil, "%s: %s is a symbolic link, not a lock", what, path).
			Keeping("nothing was changed").Remedy("remove the link")
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("flock %s: %w", path, err)
		}
		holder := "another process"
		pid := make([]byte, 32)
		if n, _ := f.ReadAt(pid, 0); n > 0 {
			holder = "process " + strings.TrimSpace(string(pid[:n]))
		}
		return nil, fault.New(fault.Busy, "%s: %s is at it (it holds %s)", what, holder, path).
			Keeping("nothing was changed").Remedy("wait for that run to end")
	}
	l := &Lock{f: f}
	if fi, err := f.Stat(); err == nil && fi.Size() > 0 {
		l.told = true // by a process that is no more
		l.hush()
	}
	return l, nil
}

// Announce writes the process's id into the lock, for whom it keeps out.
func (l *Lock) Announce() {
	if !l.told {
		l.told = true
		fmt.Fprintf(l.f, "%d\n", os.Getpid())
	}
}

func (l *Lock) hush() {
	if l.told && l.f.Truncate(0) == nil {
		l.told = false
	}
}

// Close gives the lock back.
func (l *Lock) Close() error {
	l.hush()
	// A child of ours might have the descriptor for a moment between fork and exec; unlocking frees it there too.
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}

// LockRepository takes the lock that every change of the repository in dir needs. Until it is announced nothing is
// written, so that a run that finds nothing to do changes nothing.
func LockRepository(dir Dir) (*Lock, error) {
	l, err := lockFile(dir.Path(lockName), "repository "+string(dir))
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return nil, fault.New(nil, "repository %s cannot be written", dir).Because(err).
			Keeping("nothing was changed").Remedy("give this user the right to write there, or mount it read-write")
	}
	return l, err
}

// Fence records that a higher epoch was seen: the lineage has another master, and nothing may be written into the
// repository in an older epoch. It is the file zodbrepl.fence.
type Fence struct {
	Lineage string    `json:"lineage"`
	Epoch   int       `json:"epoch"`
	Where   string    `json:"where"` // where it was seen
	Seen    time.Time `json:"seen"`
	// Own: it is the epoch of the promoted node that backs up here, which may have written nothing in it yet.
	Own bool `json:"own,omitempty"`
	// Promotion is that node's, when it is its own: what follows its increment in an older epoch is a stale master's.
	Promotion *Promotion `json:"promotion,omitempty"`
}

// FenceName is the name of the fence's file.
const FenceName = fenceName

// ReadFence returns the fence of a repository, the zero Fence when there is none.
func ReadFence(ctx context.Context, src Source) (Fence, error) {
	var f Fence
	b, err := readSmall(ctx, src, fenceName, maxHandover)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return f, fmt.Errorf("%s/%s: %w", src, fenceName, err)
	}
	return f, nil
}

// Fenced says whether the listing shows a fence. To ask costs nothing.
func (r *Repository) Fenced() bool { return slices.Contains(r.names, fenceName) }

// Encode returns the fence's JSON.
func (f Fence) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(f, "", "  ")
	return append(b, '\n'), err
}

// raiseOwnFence makes a promoted node's epoch known to whoever else writes into its repository: before its first increment,
// and whatever the stamps say.
func (b *backup) raiseOwnFence() error {
	if len(b.Promotions) == 0 {
		return nil
	}
	p := b.Promotions.Last()
	fence := Fence{Lineage: b.Lineage, Epoch: p.Epoch, Where: "the promotion of host " + p.Host, Seen: p.Time, Own: true, Promotion: &p}
	old, err := ReadFence(context.Background(), b.Repository)
	if err != nil || old.covers(fence) {
		return err
	}
	b.announce()
	return fence.Raise(b.Repository)
}

// Raise records f in the repository in dir unless as high an epoch is recorded already.
func (f Fence) Raise(dir Dir) error {
	old, err := ReadFence(context.Background(), dir)
	if err != nil {
		return err
	}
	if old.covers(f) {
		return nil
	}
	b, err := f.Encode()
	if err != nil {
		return err
	}
	return durable.WriteFile(dir.Path(fenceName), b, 0o644)
}

// covers says whether there is nothing in f that the repository does not know.
func (f Fence) covers(other Fence) bool {
	same := !other.Own || f.Own && f.promotion().ID == other.promotion().ID
	return f.Epoch > other.Epoch || f.Epoch == other.Epoch && same
}

func (f Fence) promotion() Promotion {
	if f.Promotion == nil {
		return Promotion{}
	}
	return *f.Promotion
}

// Branch returns the promotions that led to the node whose own fence it is; m is the newest increment that it has.
func (f Fence) Branch(m *Manifest) Branch {
	if f.Own && f.Epoch > m.Epoch && f.promotion().ID != "" {
		return m.Promotions.With(f.promotion())
	}
	return m.Promotions
}

// Check refuses a write in an older epoch.
func (f Fence) Check(dir Dir, epoch int) error {
	if f.Epoch <= epoch {
		return nil
	}
	return fault.New(fault.Refused, "repository %s: this host is at epoch %d, but epoch %d was seen at %s on %s: another host was promoted",
		dir, epoch, f.Epoch, f.Where, f.Seen.UTC().Format(time.RFC3339)).
		Keeping("nothing was backed up").
		Remedy("stop the ZEO server here; then make this host a standby of the new master, which keeps what only this Data.fs has: zodbrepl rejoin --data DATA.FS --from DIR")
}
