package transport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// Target is a directory somewhere that can be read as a repository and written to.
type Target interface {
	incremental.Source

	// Stat returns the size of a file in bytes; exists is false when there is none.
	Stat(ctx context.Context, name string) (size int64, exists bool, err error)
	// Put brings size bytes of content to the target under the temporary name of name and makes them durable. It
	// goes on from what an earlier Put left, after having compared that with content. sent counts the bytes that
	// had to travel, also those of a Put that failed. progress may be nil. The file exists for nobody until Publish.
	Put(ctx context.Context, name string, content io.ReaderAt, size int64, progress incremental.Progress) (sent int64, err error)
	// Publish gives the file of a finished Put its name, atomically, in place of any that has it.
	Publish(ctx context.Context, name string) error
	// Rename gives a published file another name, in place of any file that has it. Of several at once that take the
	// same file only one succeeds; for the others, and when there is none, the error is fs.ErrNotExist. After an error
	// of another kind it is not known which name the file has.
	Rename(ctx context.Context, from, to string) error
	// Remove removes a file, published or temporary; one that is not there is no error.
	Remove(ctx context.Context, name string) error
	// Close ends the connection.
	Close() error
}

// SendAnswer puts a standby's answer where its increments come from.
func SendAnswer(ctx context.Context, t Target, a incremental.Answer) error {
	doc, err := a.Encode()
	if err != nil {
		return err
	}
	return WriteFile(ctx, t, a.Name(), doc)
}

// WriteFile replaces a small file on the target, atomically.
func WriteFile(ctx context.Context, t Target, name string, content []byte) error {
	if _, err := t.Put(ctx, name, bytes.NewReader(content), int64(len(content)), nil); err != nil {
		return err
	}
	return publish(ctx, t, name)
}

// publish publishes what was just put. What it was put under may be gone: whoever else ships to the target removes what he
// takes for the left-over of a dead run.
func publish(ctx context.Context, t Target, name string) error {
	err := t.Publish(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(nil, "%s was removed there before it was complete: somebody else ships to this place, or clears it up", name).Because(err).
			Keeping("what was published there is as it was, and this repository").
			Remedy("ship again: it looks first whether another host was promoted. If none was, let one repository alone ship there")
	}
	return err
}

// TargetOptions says how to reach a target. The zero value is good.
type TargetOptions struct {
	// AcceptNew takes the key of a host that is not in known_hosts yet, and writes it there. A key that differs from
	// the known one is refused all the same.
	AcceptNew bool
	// SSHCommand is a shell command, ssh with options perhaps, that is run instead of speaking SSH ourselves.
	SSHCommand string
	// LimitRate is how many bytes a second may travel, in each direction; 0: as many as can.
	LimitRate int64
	// Patience is how long a line that is cut is tried again before the call fails; 0 is DefaultPatience.
	Patience time.Duration
	Log      *slog.Logger // nil: discarded

	timing *timing // in tests
}

// OpenTarget opens the target that a URL or a path names: a directory as a path or as file:///path, one of another host
// as sftp://user@host:port/path. ctx is for the opening alone.
func OpenTarget(ctx context.Context, where string, o TargetOptions) (Target, error) {
	p, err := parse(where)
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if p.remote != nil {
		return newSFTPTarget(ctx, *p.remote, o)
	}
	return newDirTarget(ctx, p.dir, o)
}
