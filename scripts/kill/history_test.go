package kill

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"
)

// What is checked here is read with nothing of zodbrepl's own: the format of a Data.fs, and how repozo reads a
// repository, are written down once more, as short as they can be.

func inode(fi os.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Ino }

// history is every file that ever was the master's Data.fs, with its commit boundaries.
type history []generation

type generation struct {
	name string
	raw  []byte
	ends map[int64]bool
}

// readHistory reads the master's file as it is, then those before it. What was copied from the master before this
// call is in one of them.
func readHistory(data, kept string) (h history, err error) {
	seen := map[uint64]bool{}
	read := func(path string) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil || seen[inode(fi)] {
			return err
		}
		seen[inode(fi)] = true
		raw, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		ends, _ := boundaries(raw) // the end may be in flight
		h = append(h, generation{filepath.Base(path), raw, ends})
		return nil
	}
	for _, path := range []string{data, data + ".old", data + ".pack"} {
		if err := read(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	entries, err := os.ReadDir(kept)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if err := read(filepath.Join(kept, e.Name())); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// boundaries walks over the committed transactions of a Data.fs and returns where each ends. The error says why
// it could not go to the end.
func boundaries(raw []byte) (ends map[int64]bool, err error) {
	const header, magic = 23, 4
	ends = map[int64]bool{}
	if len(raw) < magic {
		return ends, fmt.Errorf("only %d bytes", len(raw))
	}
	ends[magic] = true
	last := uint64(0)
	for pos := uint64(magic); pos < uint64(len(raw)); {
		if pos+header > uint64(len(raw)) {
			return ends, fmt.Errorf("%d: short header", pos)
		}
		b := raw[pos:]
		tid, length, status := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), b[16]
		switch {
		case length < header || length > uint64(len(raw)) || pos+length+8 > uint64(len(raw)):
			return ends, fmt.Errorf("%d: length %d beyond the end", pos, length)
		case status != ' ' && status != 'p':
			return ends, fmt.Errorf("%d: status %q", pos, status)
		case binary.BigEndian.Uint64(raw[pos+length:]) != length:
			return ends, fmt.Errorf("%d: the two lengths differ", pos)
		case tid <= last:
			return ends, fmt.Errorf("%d: tid %016x after %016x", pos, tid, last)
		}
		last = tid
		pos += length + 8
		ends[int64(pos)] = true
	}
	return ends, nil
}

// explain says why raw is no state that a master's Data.fs was ever in, or nil.
func (h history) explain(what string, raw []byte) error {
	if _, err := boundaries(raw); err != nil {
		return fmt.Errorf("%s (%d bytes) is no Data.fs of whole transactions: %w", what, len(raw), err)
	}
	var near []string
	for _, g := range h {
		if bytes.HasPrefix(g.raw, raw) {
			if g.ends[int64(len(raw))] {
				return nil
			}
			return fmt.Errorf("%s ends at %d, which is no commit boundary of %s", what, len(raw), g.name)
		}
		n := 0
		for n < len(raw) && n < len(g.raw) && raw[n] == g.raw[n] {
			n++
		}
		near = append(near, fmt.Sprintf("%s (%d bytes): the first %d are the same", g.name, len(g.raw), n))
	}
	return fmt.Errorf("%s (%d bytes) is the prefix of nothing that the master ever was:\n%s", what, len(raw), strings.Join(near, "\n"))
}

// begins says whether some state of the master's file begins with raw.
func (h history) begins(raw []byte) bool {
	return slices.ContainsFunc(h, func(g generation) bool { return bytes.HasPrefix(g.raw, raw) })
}

// asRepozo returns the Data.fs that repozo -R gives: the newest full in the directory and all deltas after it, whatever
// the .dat and the manifests say. ok is false when there is no full. Of a repository of zstd, which repozo does not see, it
// gives what the same rule would.
func asRepozo(dir string) (raw []byte, ok bool, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false, err
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".fs", ".fsz", ".deltafs", ".deltafsz", ".fszst", ".deltafszst":
			names = append(names, e.Name())
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(names)))
	for i, name := range names {
		if e := filepath.Ext(name); e == ".fs" || e == ".fsz" || e == ".fszst" {
			names, ok = names[:i+1], true
			break
		}
	}
	if !ok {
		return nil, false, nil
	}
	for i := len(names) - 1; i >= 0; i-- {
		part, err := stored(filepath.Join(dir, names[i]))
		if err != nil {
			return nil, false, fmt.Errorf("%s: %w", names[i], err)
		}
		raw = append(raw, part...)
	}
	return raw, true, nil
}

func stored(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err == nil && strings.HasSuffix(path, "zst") {
		d, err := zstd.NewReader(nil)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return d.DecodeAll(b, nil)
	}
	if err != nil || !strings.HasSuffix(path, "z") {
		return b, err
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
