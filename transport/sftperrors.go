package transport

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/pkg/sftp"

	"zodbrepl/internal/fault"
)

// explainDir is explain for what concerns the directory as a whole.
func (t *sftpTarget) explainDir(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(nil, "%s does not exist", t).Keeping("nothing was created").
			Remedy("check the path (an account in a chroot sees its own /), or make it there: mkdir -p %s", t.remote.path)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(nil, "%s cannot be read", t).Because(err).Keeping("nothing was changed").
			Remedy("give that account the right to read it")
	}
	return t.explain(context.Background(), err)
}

// explain names the target, and what an operator can do.
func (t *sftpTarget) explain(ctx context.Context, err error) error {
	var told *fault.Error
	var status *sftp.StatusError
	var line *lineError
	var content *contentError
	switch {
	case err == nil, errors.As(err, &told), errors.As(err, &content), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &line):
		return fault.New(fault.Unreachable, "%s cannot be reached", t).Because(line.err).
			Keeping("what was published there is as it was; the half of a file that arrived will be gone on with").
			Remedy("see that the host is up and the way to it is open; then run this again")
	case errors.Is(err, fs.ErrPermission):
		return fault.New(nil, "%s cannot be written", t).Because(err).
			Remedy("give that account the right to write there; an account that is read-only can only be read from (watch --from)")
	case errors.As(err, &status):
		return t.explainFailure(ctx, err)
	}
	return fmt.Errorf("target %s: %w", t, err)
}

// explainFailure finds out what a server means that only says that something failed: a full disk, most likely.
func (t *sftpTarget) explainFailure(ctx context.Context, cause error) error {
	e := fault.New(nil, "%s", t).Because(cause)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.handshake)
	defer cancel()
	s, err := t.session(ctx)
	if err != nil || !s.statVFS {
		return e.Remedy("the server does not say why; look whether the disk there is full, a quota used up, or the mount read-only")
	}
	var v *sftp.StatVFS
	if err := s.ask(ctx, func() (err error) { v, err = s.client.StatVFS(t.remote.path); return err }); err != nil {
		return e.Remedy("the server does not say why; look whether the disk there is full, a quota used up, or the mount read-only")
	}
	const readOnly = 1
	switch {
	case v.Flag&readOnly != 0:
		return fault.New(nil, "target %s cannot be written: its file system is mounted read-only", t).Because(cause).Remedy("mount it read-write there")
	case v.Bavail*v.Frsize < 2*maxPacket || v.Files > 0 && v.Favail == 0:
		return fault.New(nil, "target %s is full", t).Because(cause).
			Keeping("what was published there is as it was; the half of a file that arrived will be gone on with").
			Remedy("make room there, then ship again")
	}
	return e.Remedy("the disk there has %d MiB free; perhaps a quota is used up. The log of the server may say more", v.Bavail*v.Frsize>>20)
}
