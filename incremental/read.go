package incremental

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"zodbrepl/internal/fault"
)

// Copy writes the increment's raw bytes to w and then says whether they were right: the stored size and SHA-256
// (where a manifest tells them), the raw size and the md5. w has had the bytes by then, so the caller must be able
// to take them back. An error of the kind fault.Unverified is about the increment; others are not.
func (r *Repository) Copy(ctx context.Context, inc Increment, w io.Writer) error {
	stored, err := r.open(ctx, inc)
	if err != nil {
		return err
	}
	defer stored.Close()
	return inc.decode(ctx, r.src.String(), stored, w, r.Jobs)
}

func (r *Repository) open(ctx context.Context, inc Increment) (io.ReadCloser, error) {
	stored, err := r.src.Open(ctx, inc.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.Gap, "%s/%s is missing", r.src, inc.File)
	case err != nil:
		return nil, fmt.Errorf("%s/%s: %w", r.src, inc.File, err)
	}
	return stored, nil
}

// bad is an error about what is stored.
func (i Increment) bad(where string, err error) error {
	return fault.New(fault.Unverified, "%s/%s (positions %d to %d)", where, i.File, i.Start, i.End).Because(err).
		Remedy("bring the file again from another copy of the repository; if there is none, make a new full: zodbrepl backup --full")
}

func (i Increment) decode(ctx context.Context, where string, stored io.Reader, w io.Writer, jobs int) error {
	in := &meter{r: stored, ctx: ctx}
	if i.Manifest != nil {
		storedSum := aside(sha256.New())
		defer storedSum.end()
		in.sum = storedSum
	}
	raw, err := i.codec.NewReader(in, jobs)
	if err != nil {
		return i.readError(where, in, err)
	}
	defer raw.Close()
	sum, out := md5.New(), &sink{w: w}
	size := i.End - i.Start
	// One byte more than there should be shows a file that is too long, without unpacking it whole.
	n, err := fanOut(io.LimitReader(raw, size+1), slabsDecoded, out, sum)
	switch {
	case out.err != nil:
		return out.err
	case err != nil:
		return i.readError(where, in, err)
	case n > size:
		return i.bad(where, fmt.Errorf("holds more than the %d raw bytes that it should", size))
	case n < size:
		return i.bad(where, fmt.Errorf("holds %d raw bytes, should be %d", n, size))
	}
	// What the codec left unread counts for the stored hash, and must be nothing else.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return i.readError(where, in, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != i.MD5 {
		return i.bad(where, fmt.Errorf("raw bytes have md5 %s, should be %s", got, i.MD5))
	}
	return i.checkStored(where, in.n, in.sum)
}

func (i Increment) checkStored(where string, n int64, sum hash.Hash) error {
	if i.Manifest == nil {
		return nil
	}
	if n != i.Manifest.StoredSize {
		return i.bad(where, fmt.Errorf("is %d bytes long, the manifest says %d", n, i.Manifest.StoredSize))
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != i.Manifest.StoredSHA256 {
		return i.bad(where, fmt.Errorf("has SHA-256 %s, the manifest says %s", got, i.Manifest.StoredSHA256))
	}
	return nil
}

// readError tells a failure to read from a stored form that is damaged.
func (i Increment) readError(where string, in *meter, err error) error {
	if in.err != nil {
		return fmt.Errorf("%s/%s: %w", where, i.File, in.err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = fmt.Errorf("truncated: the %s stream ends after %d stored bytes", i.codec.Name(), in.n)
	}
	return i.bad(where, err)
}

// VerifyStored checks the stored size and, with a manifest, the SHA-256, without decoding. checked is false when
// there is nothing to check against: a gzip'd increment that repozo wrote.
func (r *Repository) VerifyStored(ctx context.Context, inc Increment) (checked bool, err error) {
	if inc.Manifest == nil && inc.codec.Name() != (noneCodec{}).Name() {
		return false, nil
	}
	stored, err := r.open(ctx, inc)
	if err != nil {
		return false, err
	}
	defer stored.Close()
	in := &meter{r: stored, ctx: ctx, sum: sha256.New()}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return false, fmt.Errorf("%s/%s: %w", r.src, inc.File, err)
	}
	if inc.Manifest == nil && in.n != inc.End-inc.Start {
		return true, inc.bad(r.src.String(), fmt.Errorf("is %d bytes long, should be %d", in.n, inc.End-inc.Start))
	}
	return true, inc.checkStored(r.src.String(), in.n, in.sum)
}

// meter counts and hashes what is read through it, remembers a read error, and ends when the context does.
type meter struct {
	r   io.Reader
	ctx context.Context
	sum hash.Hash // optional
	n   int64
	err error // other than io.EOF
}

func (m *meter) Read(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		m.err = err
		return 0, err
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	if m.sum != nil {
		m.sum.Write(p[:n])
	}
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// sink remembers the error of its writer, so that it can be told from one of the reader.
type sink struct {
	w   io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}
