package restore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// A file Data.fs.diverged-<tid> holds what one node alone has behind the last common transaction, so that it can be
// looked at when Data.fs itself has been cut. It says itself what it is:
//
//	zodbrepl diverged 1\n
//	{"position": ..., ...}\n          a Diverged, on one line
//	raw bytes of Data.fs              from position - before on
//
// Some common bytes stand in front, as many as a tail proof covers: with them it can be shown that the rest continues
// another Data.fs. When nothing of Data.fs can be used any more, the file is all of it, as it was, with no such head.

// Diverged is the head of a file of diverged bytes.
type Diverged struct {
	Lineage  string          `json:"lineage"`  // of the history that it left; "" when not known
	Epoch    int             `json:"epoch"`    // of the node that wrote these bytes
	Position int64           `json:"position"` // the last common commit boundary
	LastTID  filestorage.TID `json:"last_tid"` // of the transaction that ends there
	Before   int64           `json:"before"`   // common bytes that stand in front
	Bytes    int64           `json:"bytes"`    // behind the position
	SHA256   string          `json:"sha256"`   // of all raw bytes here
	Data     string          `json:"data"`     // path of the Data.fs
	Host     string          `json:"host"`
	Saved    time.Time       `json:"saved"`
}

const (
	divergedExt   = ".diverged-" // and the last common tid
	listingExt    = ".txt"       // of what a person is to read of it
	divergedMagic = "zodbrepl diverged "
	divergedLine  = divergedMagic + "1\n"
	maxDiverged   = 64 << 10 // bytes of a head
)

// OpenData opens a Data.fs for reading, or a file of diverged bytes: then d is its head, and the File a part with the
// positions of the Data.fs that it was cut from.
func OpenData(path string) (f *filestorage.File, d *Diverged, closer io.Closer, err error) {
	osf, err := filestorage.OpenRegular(path)
	if err != nil {
		return nil, nil, nil, err
	}
	if f, d, err = openData(osf, path); err != nil {
		osf.Close()
		return nil, nil, nil, err
	}
	return f, d, osf, nil
}

func openData(osf *os.File, path string) (*filestorage.File, *Diverged, error) {
	magic := make([]byte, len(divergedMagic))
	n, err := osf.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	if string(magic[:n]) != divergedMagic {
		f, err := filestorage.NewFile(filestorage.OSFile{File: osf}, path)
		return f, nil, err
	}
	d, start, err := readDiverged(osf)
	if err != nil {
		return nil, nil, fault.New(fault.Unverified, "%s", path).Because(err).Remedy("bring the file again from where it was saved")
	}
	r := &cutReader{r: osf, start: start, from: d.Position - d.Before, end: d.Position + d.Bytes}
	return filestorage.NewPart(r, path, d.Position), d, nil
}

// readDiverged reads the head of a file of diverged bytes, and where the raw bytes begin.
func readDiverged(osf *os.File) (d *Diverged, start int64, err error) {
	head := make([]byte, maxDiverged)
	n, err := osf.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, 0, err
	}
	doc, known := bytes.CutPrefix(head[:n], []byte(divergedLine))
	if !known {
		line, _, _ := bytes.Cut(head[:min(n, 80)], []byte("\n"))
		return nil, 0, fmt.Errorf("begins with %q: written by a newer zodbrepl, or damaged", line)
	}
	doc, _, whole := bytes.Cut(doc, []byte("\n"))
	d = &Diverged{}
	if err := json.Unmarshal(doc, d); err != nil || !whole {
		return nil, 0, fmt.Errorf("its head cannot be read (%v)", err)
	}
	fi, err := osf.Stat()
	if err != nil {
		return nil, 0, err
	}
	start = int64(len(divergedLine) + len(doc) + 1)
	switch {
	case d.Position < filestorage.MagicSize || d.Position > 1<<48 || d.Before < 0 || d.Before > d.Position || d.Bytes < 0:
		return nil, 0, fmt.Errorf("its head is damaged: position %d, %d bytes before it", d.Position, d.Before)
	case fi.Size() != start+d.Before+d.Bytes:
		return nil, 0, fmt.Errorf("it should have %d bytes, and has %d: it was cut", start+d.Before+d.Bytes, fi.Size())
	}
	return d, start, nil
}

// cutReader shows a run of bytes under the positions that they have in a Data.fs.
type cutReader struct {
	r         io.ReaderAt
	start     int64 // where they begin in r
	from, end int64 // positions
}

// Size implements filestorage.Reader.
func (c *cutReader) Size() (int64, error) { return c.end, nil }

// ReadAt implements io.ReaderAt.
func (c *cutReader) ReadAt(p []byte, pos int64) (int, error) {
	switch {
	case pos < c.from:
		return 0, filestorage.ErrBeforePart
	case pos >= c.end:
		return 0, io.EOF
	}
	short := int64(len(p)) > c.end-pos
	if short {
		p = p[:c.end-pos]
	}
	n, err := c.r.ReadAt(p, c.start+pos-c.from)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// keepDiverged copies what f has behind the position of d, which is described but for the bytes, to a file beside
// Data.fs, and returns its path. One that holds the same already is as good; one that holds something else is never
// touched. A crash leaves a temporary file, which the next run overwrites, or all of it, durable and compared.
func keepDiverged(ctx context.Context, f *filestorage.File, d Diverged, size int64) (path string, err error) {
	d.Before = min(d.Position, incremental.TailSize)
	d.Bytes = size - d.Position
	if d.SHA256, err = sumOf(ctx, f.Section(d.Position-d.Before, size)); err != nil {
		return "", err
	}
	path, there, err := d.place(ctx)
	if err != nil || there {
		return path, err
	}
	doc, err := json.Marshal(d)
	if err != nil {
		return "", err
	}
	err = durable.Write(path, 0o600, func(w io.Writer) error {
		out := w.(*os.File)
		if err := durable.OwnLike(out, d.Data, filepath.Dir(d.Data)); err != nil {
			return err
		}
		if fi, err := os.Stat(d.Data); err != nil || out.Chmod(fi.Mode().Perm()) != nil {
			return fmt.Errorf("giving %s the rights of %s: %w", path, d.Data, err)
		}
		if _, err := out.WriteString(divergedLine + string(doc) + "\n"); err != nil {
			return err
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{out}, &ctxReader{ctx, f.Section(d.Position-d.Before, size)}, make([]byte, 1<<20))
		return err
	})
	if err != nil {
		return "", fault.New(nil, "saving the bytes after position %d to %s", d.Position, path).Because(err).
			Keeping("Data.fs is as it was").Remedy("see to the disk (space, rights, errors), then run it again; %d bytes are needed", d.Bytes)
	}
	return path, d.isIn(ctx, path)
}

// place finds the name: there says that a former run has brought the same bytes to it.
func (d Diverged) place(ctx context.Context) (path string, there bool, err error) {
	for n := 1; ; n++ {
		path = divergedPath(d.Data, d.LastTID, n)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path, false, nil
		}
		if err := d.isIn(ctx, path); err == nil || ctx.Err() != nil {
			return path, true, errors.Join(durable.SyncDir(filepath.Dir(path)), ctx.Err())
		}
	}
}

func divergedPath(data string, last filestorage.TID, n int) string {
	path := data + divergedExt + last.String()
	if n > 1 {
		path += fmt.Sprintf(".%d", n)
	}
	return path
}

// isIn fails unless the file at path has the bytes that d describes. It reads all of them.
func (d Diverged) isIn(ctx context.Context, path string) error {
	osf, err := filestorage.OpenRegular(path)
	if err != nil {
		return err
	}
	defer osf.Close()
	got, start, err := readDiverged(osf)
	if err != nil {
		return err
	}
	sum, err := sumOf(ctx, io.NewSectionReader(osf, start, got.Before+got.Bytes))
	if err == nil && (sum != d.SHA256 || got.Position != d.Position || got.Bytes != d.Bytes) {
		err = fault.New(nil, "%s does not have the bytes that were written to it", path).
			Keeping("Data.fs is as it was").Remedy("see to the disk, then run it again")
	}
	return err
}

func sumOf(ctx context.Context, r io.Reader) (string, error) {
	sum := sha256.New()
	_, err := io.CopyBuffer(sum, &ctxReader{ctx, r}, make([]byte, 1<<20))
	return hex.EncodeToString(sum.Sum(nil)), err
}
