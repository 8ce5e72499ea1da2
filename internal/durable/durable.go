// Package durable makes files and their names survive a crash of the host: what one of its functions returned
// without error is on disk.
//
// Temporary names are fixed (the name with [TempSuffix]), so that the next run finds what a crash left and
// overwrites or removes it.
package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// TempSuffix ends the name of every file that is not finished.
const TempSuffix = ".tmp"

// WriteFile replaces path with content. A crash leaves the old file or the new one, whole, and perhaps a
// temporary file beside it.
func WriteFile(path string, content []byte, perm os.FileMode) error {
	return Write(path, perm, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// Write is WriteFile for content that is produced by fill. When fill fails, path is as it was.
func Write(path string, perm os.FileMode, fill func(io.Writer) error) error {
	tmp := path + TempSuffix
	f, err := Create(tmp, perm)
	if err != nil {
		return err
	}
	err = fill(f)
	if err = errors.Join(err, finish(f, err == nil)); err == nil {
		err = Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

func finish(f *os.File, sync bool) error {
	var err error
	if sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Create opens an empty file for writing and does not follow a symbolic link that stands in its place.
func Create(path string, perm os.FileMode) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, perm)
}

// Rename renames a file within a directory and makes the new name durable.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(to))
}

// Remove removes files of one directory, which need not exist, and makes that durable.
func Remove(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if len(paths) > 0 {
		errs = append(errs, SyncDir(filepath.Dir(paths[0])))
	}
	return errors.Join(errs...)
}

// SyncDir makes the names in a directory durable. File systems that cannot do it are left alone: they give no
// such promise to anybody.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
