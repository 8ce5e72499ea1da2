package incremental

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// Source is what is needed to read a repository, wherever it is. Several goroutines may use it at once.
type Source interface {
	// List returns the directory's entries, sorted by name.
	List(ctx context.Context) ([]fs.DirEntry, error)
	// Open opens a regular file of the directory; a symbolic link is refused.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// String names the place in messages.
	String() string
}

// Dir is a repository in a local directory.
type Dir string

// String returns the path.
func (d Dir) String() string { return string(d) }

// Path returns the path of a file in d.
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// List implements Source.
func (d Dir) List(ctx context.Context) ([]fs.DirEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(string(d))
	return entries, d.explain(err)
}

// check fails as List does, in constant time.
func (d Dir) check() error {
	fi, err := os.Stat(string(d))
	if err == nil && !fi.IsDir() {
		err = unix.ENOTDIR
	}
	return d.explain(err)
}

func (d Dir) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(nil, "repository %s does not exist", d).Keeping("nothing was created").
			Remedy("check the path, or mount it; a new repository begins with: mkdir -p %s", d)
	case errors.Is(err, unix.ENOTDIR):
		return fault.New(nil, "repository %s is a file, not a directory", d).Keeping("nothing was written").
			Remedy("give the directory that holds the backups")
	case errors.Is(err, fs.ErrPermission):
		return fault.New(nil, "repository %s cannot be read", d).Because(err).Keeping("nothing was changed").
			Remedy("give this user the right to read and write there")
	case err != nil:
		return fmt.Errorf("repository %s: %w", d, err)
	}
	return nil
}

// Open implements Source.
func (d Dir) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	f, err := d.OpenAt(ctx, name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// OpenAt is Open for random access.
func (d Dir) OpenAt(ctx context.Context, name string) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(d.Path(name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fault.New(fault.Unverified, "%s is a symbolic link, not a file of the repository", d.Path(name)).
			Remedy("put the file itself in its place")
	}
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fault.New(fault.Unverified, "%s is not a regular file", d.Path(name)).
			Remedy("put the file itself in its place"))
	}
	return f, nil
}

// Place is a repository that can be changed where it is, which may be on another host.
type Place interface {
	Source
	// Rename gives a file another name. Of several at once that take the same file only one succeeds; for the others,
	// and when there is none, the error is fs.ErrNotExist.
	Rename(ctx context.Context, from, to string) error
	// WriteFile replaces a small file, atomically.
	WriteFile(ctx context.Context, name string, content []byte) error
}

// Rename implements Place.
func (d Dir) Rename(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return durable.Rename(d.Path(from), d.Path(to))
}

// WriteFile implements Place.
func (d Dir) WriteFile(ctx context.Context, name string, content []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return durable.WriteFile(d.Path(name), content, 0o644)
}

// readSmall reads a file of at most limit bytes.
func readSmall(ctx context.Context, src Source, name string, limit int64) ([]byte, error) {
	r, err := src.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fault.New(fault.Unverified, "%s/%s: larger than %d bytes", src, name, limit)
	}
	return b, err
}
