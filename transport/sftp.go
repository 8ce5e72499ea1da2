package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// sftpTarget is a directory behind an SSH server. It keeps one connection, made anew when it was cut.
type sftpTarget struct {
	remote
	TargetOptions
	timing

	mu     sync.Mutex // held while connecting
	live   *session
	closed bool
	known  bool // the host was reached before
	// undurable is set when the server could not make a file durable.
	undurable atomic.Bool

	small smallFiles
	puts  sync.Map // name -> putState: of a finished Put, for Publish
}

// firstPatience is for a host that was never reached: perhaps a mistake, and somebody waits.
const firstPatience = 10 * time.Second

func newSFTPTarget(ctx context.Context, r remote, o TargetOptions) (Target, error) {
	t := &sftpTarget{remote: r, TargetOptions: o, timing: usualTiming}
	if o.timing != nil {
		t.timing = *o.timing
	}
	t.Patience = cmp.Or(t.Patience, DefaultPatience)
	patience := t.Patience
	t.Patience = min(patience, firstPatience)
	err := t.do(ctx, func(ctx context.Context, s *session) error {
		var fi os.FileInfo
		err := s.ask(ctx, func() (err error) { fi, err = s.client.Stat(t.remote.path); return err })
		if err == nil && !fi.IsDir() {
			return fault.New(nil, "%s is a file, not a directory", t).Keeping("nothing was written").Remedy("give the directory that holds the increments")
		}
		return err
	})
	if err != nil {
		t.Close()
		return nil, t.explainDir(err)
	}
	t.Patience = patience
	return t, nil
}

// session returns the live connection, made anew when there is none.
func (t *sftpTarget) session(ctx context.Context) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, fs.ErrClosed
	case t.live != nil && t.live.dead() == nil:
		return t.live, nil
	}
	var err error
	if t.live, err = t.connect(ctx); err == nil {
		t.known = true
	}
	var name *net.DNSError
	if errors.As(err, &name) && t.known {
		err = &lineError{name} // a network that is down knows no names either
	}
	return t.live, err
}

func (t *sftpTarget) connect(ctx context.Context) (*session, error) {
	if t.SSHCommand != "" {
		return openCommand(ctx, t.remote, t.TargetOptions, t.timing)
	}
	config, err := loadSSHConfig(homeDir(), t.Log)
	if err != nil {
		return nil, err
	}
	d := &dialer{TargetOptions: t.TargetOptions, timing: t.timing, config: config}
	return d.openSFTP(ctx, hop{t.user, t.host, t.port})
}

// do runs op on a connection, and once more when the line fails, as long as patience lasts.
func (t *sftpTarget) do(ctx context.Context, op func(context.Context, *session) error) error {
	return t.doing(ctx, func(s *session, _ int, _ *atomic.Int64) error { return op(ctx, s) })
}

func (t *sftpTarget) doing(ctx context.Context, op func(s *session, n int, forward *atomic.Int64) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return retry(ctx, t.Patience, t.timing, func(n int, forward *atomic.Int64) error {
		s, err := t.session(ctx)
		if err == nil {
			err = op(s, n, forward)
		}
		var line *lineError
		if errors.As(err, &line) && ctx.Err() == nil {
			t.Log.Info("the line failed", "target", t.String(), "cause", line.err)
			if s != nil {
				s.kill(err)
			}
		}
		return err
	})
}

// Path returns the path of a file at the other side.
func (t *sftpTarget) at(name string) string { return path.Join(t.remote.path, name) }

func (t *sftpTarget) temp(name string) string { return t.at(name) + durable.TempSuffix }

// List implements incremental.Source.
func (t *sftpTarget) List(ctx context.Context) ([]fs.DirEntry, error) {
	var entries []fs.DirEntry
	err := t.do(ctx, func(ctx context.Context, s *session) error {
		var infos []os.FileInfo
		err := s.ask(ctx, func() (err error) { infos, err = s.client.ReadDirContext(ctx, t.remote.path); return err })
		entries = entries[:0]
		for _, fi := range infos {
			entries = append(entries, fs.FileInfoToDirEntry(fi))
		}
		return err
	})
	if err != nil {
		return nil, t.explainDir(err)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	t.small.listed(entries)
	return entries, nil
}

// Stat implements Target.
func (t *sftpTarget) Stat(ctx context.Context, name string) (size int64, exists bool, err error) {
	err = t.do(ctx, func(ctx context.Context, s *session) error {
		fi, err := s.lstat(ctx, t.at(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			size, exists = 0, false
			return nil
		case err != nil:
			return err
		case !fi.Mode().IsRegular():
			return fault.New(fault.Unverified, "%s is not a regular file", t.name(name)).Remedy("remove it, then ship again")
		}
		size, exists = fi.Size(), true
		return nil
	})
	if err != nil {
		return 0, false, t.explain(ctx, err)
	}
	return size, exists, nil
}

func (s *session) lstat(ctx context.Context, path string) (fi os.FileInfo, err error) {
	defer s.answered(time.Now())
	err = s.ask(ctx, func() (err error) { fi, err = s.client.Lstat(path); return err })
	return fi, err
}

// name names a file in messages.
func (t *sftpTarget) name(name string) string { return t.String() + "/" + name }

// Publish implements Target. When the answer to the renaming is lost, the next attempt finds out whether it was done:
// the temporary file is gone then, and the file is the one that was put.
//
// A server without posix-rename cannot replace a file in one step. Then the old one is set aside first, under a
// temporary name. A crash in between leaves no file of that name, the old and the new one under temporary names; what
// sends the file the next time puts it right.
func (t *sftpTarget) Publish(ctx context.Context, name string) error {
	from, to := t.temp(name), t.at(name)
	err := t.doing(ctx, func(s *session, n int, _ *atomic.Int64) error {
		done := func() error {
			if n > 0 && !s.posixRename { // an attempt that was cut may have left the old one
				if err := s.remove(ctx, to+asideSuffix); err != nil {
					return err
				}
			}
			return t.syncDir(ctx, s)
		}
		if n > 0 && t.published(ctx, s, name) {
			return done()
		}
		err := s.rename(ctx, from, to)
		if err != nil && !s.posixRename && !errors.Is(err, fs.ErrNotExist) {
			err = t.exchange(ctx, s, from, to, err)
		}
		if errors.Is(err, fs.ErrNotExist) { // one that was a lie: a server may say so of the directory
			return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
		}
		if err != nil {
			return err
		}
		return done()
	})
	if err == nil {
		t.puts.Delete(name)
	}
	return t.explain(ctx, err)
}

// Rename implements Target. A connection that is cut is made anew before the renaming, not after it: nobody would know
// then who took the file.
func (t *sftpTarget) Rename(ctx context.Context, from, to string) error {
	renamed := false
	err := t.do(ctx, func(ctx context.Context, s *session) error {
		if renamed {
			return t.syncDir(ctx, s)
		}
		// A connection may have died unnoticed while nothing was asked.
		if _, err := s.lstat(ctx, t.at(from)); err != nil {
			return err
		}
		err := s.rename(ctx, t.at(from), t.at(to))
		if err != nil && !s.posixRename && !errors.Is(err, fs.ErrNotExist) {
			err = t.exchange(ctx, s, t.at(from), t.at(to), err)
		}
		var line *lineError
		if errors.As(err, &line) {
			return fmt.Errorf("it is not known whether %s was renamed to %s: %w", t.name(from), to, line.err)
		}
		if err != nil {
			return err
		}
		renamed = true
		return t.syncDir(ctx, s)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "rename", Path: t.name(from), Err: fs.ErrNotExist}
	}
	return t.explain(ctx, err)
}

func (s *session) rename(ctx context.Context, from, to string) error {
	return s.ask(ctx, func() error {
		if s.posixRename {
			return s.client.PosixRename(from, to)
		}
		return s.client.Rename(from, to)
	})
}

// exchange renames over a file that exists. failed is why it could not be done in one step.
func (t *sftpTarget) exchange(ctx context.Context, s *session, from, to string, failed error) error {
	if _, err := s.lstat(ctx, to); err != nil {
		return failed
	}
	if _, err := s.lstat(ctx, from); err != nil {
		return err
	}
	aside := to + asideSuffix
	if err := s.remove(ctx, aside); err != nil {
		return err
	}
	if err := s.rename(ctx, to, aside); err != nil {
		return err
	}
	if err := s.rename(ctx, from, to); err != nil {
		return errors.Join(err, s.rename(ctx, aside, to))
	}
	return s.remove(ctx, aside)
}

func (s *session) remove(ctx context.Context, path string) error {
	err := s.ask(ctx, func() error { return s.client.Remove(path) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// syncDir makes the names in the directory durable, where the server has fsync and opens a directory as a file, as
// OpenSSH does. It is no error if not: who serves files that way gives no such promise to anybody.
func (t *sftpTarget) syncDir(ctx context.Context, s *session) error {
	if !s.fsync {
		return nil
	}
	s.dir.Lock()
	defer s.dir.Unlock()
	if s.dir.f == nil && !s.dir.broken {
		err := s.ask(ctx, func() (err error) { s.dir.f, err = s.client.OpenFile(t.remote.path, os.O_RDONLY); return err })
		if err != nil {
			return s.orBroken(err)
		}
	}
	if s.dir.broken {
		return nil
	}
	return s.orBroken(s.sync(ctx, s.dir.f))
}

func (s *session) orBroken(err error) error {
	var line *lineError
	if err == nil || errors.As(err, &line) {
		return err
	}
	s.dir.broken = true
	return nil
}

// sync makes a file durable, which may take its time.
func (s *session) sync(ctx context.Context, f *sftp.File) error {
	s.flushing.Add(1)
	defer s.flushing.Add(-1)
	return s.ask(ctx, f.Sync)
}

// Remove implements Target.
func (t *sftpTarget) Remove(ctx context.Context, name string) error {
	return t.explain(ctx, t.do(ctx, func(ctx context.Context, s *session) error {
		if err := errors.Join(s.remove(ctx, t.at(name)), s.remove(ctx, t.temp(name))); err != nil {
			return err
		}
		return t.syncDir(ctx, s)
	}))
}

// Durable is false when a file was put that the server could not make durable.
func (t *sftpTarget) Durable() bool { return !t.undurable.Load() }

// Close implements Target.
func (t *sftpTarget) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.live != nil && t.live.dead() == nil {
		t.live.end()
	}
	return nil
}

// published says whether the temporary file of a finished Put has got its name.
func (t *sftpTarget) published(ctx context.Context, s *session, name string) bool {
	state, ok := t.puts.Load(name)
	if !ok {
		return false
	}
	if _, err := s.lstat(ctx, t.temp(name)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	fi, err := s.lstat(ctx, t.at(name))
	return err == nil && fi.Mode().IsRegular() && state.(putState).is(fi)
}

// putState tells a file from its predecessor: SFTP has no inode numbers.
type putState struct {
	size int64
	time time.Time
}

func (p putState) is(fi os.FileInfo) bool { return fi.Size() == p.size && fi.ModTime().Equal(p.time) }
