package transport

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

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
	return t.Publish(ctx, name)
}

// LocalDir returns the path of a target that is a local directory, "" for others.
func LocalDir(where string) string {
	path, err := parse(where)
	if err != nil {
		return ""
	}
	return path
}

// TargetName returns where in full: a path that is not absolute is relative to the working directory, which another
// run may not share.
func TargetName(where string) string {
	if path := LocalDir(where); path != "" {
		return path
	}
	return where
}

// CheckTarget says whether OpenTarget could understand where, without opening it.
func CheckTarget(where string) error {
	_, err := parse(where)
	return err
}

// OpenTarget opens the target that a URL or a path names: a directory as a path or as file:///path.
func OpenTarget(ctx context.Context, where string) (Target, error) {
	path, err := parse(where)
	if err != nil {
		return nil, err
	}
	return newDirTarget(ctx, path)
}

func parse(where string) (path string, err error) {
	if path, err = parseTarget(where); err != nil {
		return "", fault.New(fault.Usage, "target %q", where).Because(err).Keeping("nothing was done").
			Remedy("give a directory, as a path or as file:///path")
	}
	return path, nil
}

func parseTarget(where string) (path string, err error) {
	scheme, _, isURL := strings.Cut(where, "://")
	switch {
	case where == "":
		return "", fmt.Errorf("empty")
	case strings.ContainsRune(where, 0):
		return "", fmt.Errorf("holds a byte 0")
	case !isURL:
		return localPath(where)
	case !strings.EqualFold(scheme, "file"):
		return "", fmt.Errorf("unknown scheme %q", scheme)
	case strings.ContainsAny(where, "?#"):
		return "", fmt.Errorf("a '?' or '#' in the path must be written %%3F or %%23")
	}
	u, err := url.Parse(where)
	switch {
	case err != nil:
		return "", err
	case u.User != nil || u.Host != "" && u.Host != "localhost":
		return "", fmt.Errorf("file URL with a host, %q: only local directories can be reached that way", u.Host)
	case !strings.HasPrefix(u.Path, "/"):
		return "", fmt.Errorf("file URL without an absolute path")
	case strings.ContainsRune(u.Path, 0):
		return "", fmt.Errorf("holds a byte 0")
	}
	return filepath.Clean(u.Path), nil
}

// localPath refuses what was meant as something else: host:/path of rsync and scp, and URLs with a slash missing.
func localPath(where string) (string, error) {
	if before, _, ok := strings.Cut(where, ":"); ok && !strings.Contains(before, "/") {
		return "", fmt.Errorf("%q before the ':' looks like a host or a scheme; a directory of that name is written ./%s", before, where)
	}
	return filepath.Abs(where)
}
