package incremental

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
	"zodbrepl/internal/gentle"
)

// BackupOptions says what to back up and how. Data and Repository are required.
type BackupOptions struct {
	Data       string // path of Data.fs
	Repository Dir
	Full       bool   // make a full, whatever there is
	Deep       bool   // compare all that is backed up with Data.fs before a delta
	Codec      string // "": the one that the repository has, gzip in an empty one
	Effort            // of the codec
	KillOld    bool   // after a full, remove the chains before it

	// Lineage and Epoch are those of a promoted node; "" and 0 for a master that never was a standby.
	Lineage string
	Epoch   int
	// Promotions led to a promoted node. What was written in an older epoch after the last of them is a stale master's.
	Promotions Branch

	Version  string           // of the program, for the manifest
	Now      func() time.Time // nil: Now of this package
	Log      *slog.Logger     // nil: discarded
	Progress Progress         // nil: none

	// source replaces the reader of Data.fs, in tests that inject faults.
	source func(filestorage.OSFile) filestorage.Reader
	// crash is called with the name of every point between two steps that change the repository, in tests.
	crash func(point string)
}

// Progress is told how many of how many raw bytes are done. It is called often; the calls come one after the other.
type Progress func(done, total int64)

// BackupResult says what a backup did.
type BackupResult struct {
	Action       string          `json:"action"`            // "none", "delta" or "full"
	Reason       string          `json:"reason,omitempty"`  // of a full
	Unasked      bool            `json:"unasked,omitempty"` // a full replaces a chain that could not be continued
	File         string          `json:"file,omitempty"`
	Lineage      string          `json:"lineage"`
	Epoch        int             `json:"epoch"`
	Start        int64           `json:"start"`
	End          int64           `json:"end"`
	LastTID      filestorage.TID `json:"last_tid"`
	Transactions int64           `json:"transactions"`
	StoredSize   int64           `json:"stored_size"`
	InFlight     int64           `json:"in_flight"` // bytes after End that are not committed
}

// backup is one run.
type backup struct {
	BackupOptions
	codec Codec
	now   time.Time
	host  string
	repo  *Repository
	file  *os.File
	data  *filestorage.File
	src   SourceFile
	prev  *Increment // that the new one continues; nil for a full
	// lineage, epoch and why a full is made
	lineage string
	epoch   int
	reason  string
	unasked bool // Data.fs was packed, or the chain is broken

	announce func() // of the lock, before the first change
}

// Backup writes what was committed to Data.fs since the last increment into the repository. Without a change it
// writes nothing. It takes no lock on Data.fs: a ZEO server may be writing to it.
//
// Errors are of the kind Busy when another run holds the repository, Refused when another host was promoted,
// Unverified for damage in Data.fs or the repository, Diverged for a repository of another database.
func Backup(ctx context.Context, o BackupOptions) (BackupResult, error) {
	b := &backup{BackupOptions: o}
	if err := b.prepare(); err != nil {
		return BackupResult{}, err
	}
	if err := b.Repository.check(); err != nil { // a clearer error than the lock's
		return BackupResult{}, err
	}
	lock, err := LockRepository(b.Repository)
	if err != nil {
		return BackupResult{}, err
	}
	defer lock.Close()
	b.announce = lock.Announce
	if err := b.openData(ctx); err != nil {
		return BackupResult{}, err
	}
	defer b.file.Close()
	return b.run(ctx)
}

func (b *backup) prepare() (err error) {
	if b.codec, err = CodecByName(b.Codec); err != nil {
		return fault.New(fault.Usage, "codec").Because(err)
	}
	if b.Codec != "" || b.Level < 0 {
		if err := checkLevel(b.codec, b.Level); err != nil {
			return err
		}
	}
	if b.Log == nil {
		b.Log = slog.New(slog.DiscardHandler)
	}
	if b.Progress == nil {
		b.Progress = func(int64, int64) {}
	}
	if b.crash == nil {
		b.crash = func(string) {}
	}
	if b.source == nil {
		b.source = func(f filestorage.OSFile) filestorage.Reader { return gentle.Open(f.File) }
	}
	if b.Now != nil {
		b.now = b.Now()
	} else if b.now, err = Now(); err != nil {
		return err
	}
	b.host, err = os.Hostname()
	return err
}

// Between the two renames of a pack there is no Data.fs.
const (
	packPause = 20 * time.Millisecond
	packTries = 100
)

func (b *backup) openData(ctx context.Context) error {
	var err error
	for range packTries {
		if b.file, err = filestorage.OpenRegular(b.Data); !errors.Is(err, fs.ErrNotExist) || !exists(b.Data+".old") {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(packPause):
		}
	}
	if err != nil {
		return fault.New(nil, "Data.fs cannot be read").Because(err).
			Keeping("nothing was written to the repository").Remedy("check the path given with --file and the rights of this user")
	}
	if b.data, err = filestorage.NewFile(b.source(filestorage.OSFile{File: b.file}), b.Data); err != nil {
		b.file.Close()
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(b.file.Fd()), &st); err != nil {
		b.file.Close()
		return fmt.Errorf("%s: %w", b.Data, err)
	}
	abs, err := filepath.Abs(b.Data)
	if err != nil {
		b.file.Close()
		return err
	}
	b.src = SourceFile{Path: abs, Device: uint64(st.Dev), Inode: st.Ino}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (b *backup) run(ctx context.Context) (BackupResult, error) {
	if err := b.open(ctx); err != nil {
		return BackupResult{}, err
	}
	if err := b.settleCodec(); err != nil {
		return BackupResult{}, err
	}
	if err := b.permitted(ctx); err != nil {
		return BackupResult{}, err
	}
	if err := b.setStaleAside(ctx); err != nil {
		return BackupResult{}, err
	}
	if err := b.raiseOwnFence(); err != nil {
		return BackupResult{}, err
	}
	if err := b.recoverRepository(ctx); err != nil {
		return BackupResult{}, err
	}
	if err := b.choose(ctx); err != nil {
		return BackupResult{}, err
	}
	start := int64(0)
	if b.prev != nil {
		start = b.prev.End
	}
	ext, err := b.data.Committed(ctx, max(start, filestorage.MagicSize))
	if err != nil {
		return BackupResult{}, b.unreadable(err)
	}
	if ext.Tail == filestorage.TailTorn {
		b.Log.Warn("bytes after the last commit are no transaction; FileStorage will cut them off when it opens the file for writing",
			"storage", b.Data, "position", ext.End, "bytes", ext.InFlight, "cause", ext.Reason)
	}
	res := BackupResult{Action: "none", Lineage: b.lineage, Epoch: b.epoch, Start: start, End: ext.End, InFlight: ext.InFlight}
	if b.prev != nil && ext.End == start {
		res.LastTID = b.prev.Manifest.LastTID
		return res, nil
	}
	ext.Start = start
	m, err := b.write(ctx, ext)
	if err != nil {
		return BackupResult{}, err
	}
	if b.KillOld && m.Kind == Full {
		if err := b.removeChainsBefore(m.Chain); err != nil {
			return BackupResult{}, fmt.Errorf("the full %s was made, but the chains before it could not be removed: %w", m.File, err)
		}
	}
	res.Action, res.Reason, res.File, res.Unasked = string(m.Kind), m.Reason, m.File, b.unasked
	res.LastTID, res.Transactions, res.StoredSize = m.LastTID, m.Transactions, m.StoredSize
	return res, nil
}

// open lists the repository.
func (b *backup) open(ctx context.Context) (err error) {
	if b.repo, err = Open(ctx, b.Repository); err == nil {
		b.repo.Jobs = b.Jobs
	}
	return err
}

func (b *backup) unreadable(err error) error {
	var corrupt *filestorage.CorruptError
	var shrunk *filestorage.ShrunkError
	e := fault.New(nil, "backup of %s", b.Data).Because(err).Keeping("the repository is as it was")
	switch {
	case errors.As(err, &corrupt):
		return e.Remedy("look at it with: zodbrepl check-fs %s; every backup so far can still be recovered", b.Data)
	case errors.As(err, &shrunk):
		return e.Remedy("something cut the file while it was read; run the backup again")
	}
	return e
}

// newLineage returns a fresh identity for a database's history.
func newLineage() string { return uuid.NewString() }
