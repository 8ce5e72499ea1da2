package incremental

import (
	"bufio"
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// ManifestFormat is the version of the manifest's format that this package writes and reads.
const ManifestFormat = 1

// maxManifest bounds what is read of a manifest, in bytes. The list of blobs is what makes one long: it is read and written
// as a stream, and only its length is kept.
const maxManifest = 256 << 20

// Kind says whether an increment begins a chain.
type Kind string

// The kinds of increments.
const (
	Full  Kind = "full"
	Delta Kind = "delta"
)

// Manifest describes one increment: the JSON file <stamp>.manifest beside it. It is written last, so an increment
// that has one is complete and durable. Positions are bytes from the start of Data.fs.
type Manifest struct {
	Format  int    `json:"format"`
	Lineage string `json:"lineage"` // UUID of the database's history
	Epoch   int    `json:"epoch"`   // promotions within the lineage, from 1
	// Promotions led to this increment; the last is that of the epoch.
	Promotions Branch `json:"promotions,omitempty"`

	Kind  Kind   `json:"kind"`
	Stamp Stamp  `json:"stamp"`
	File  string `json:"file"` // base name of the stored file
	Codec string `json:"codec"`

	Start        int64           `json:"start"`
	End          int64           `json:"end"`
	FirstTID     filestorage.TID `json:"first_tid"` // 0 when there is no transaction
	LastTID      filestorage.TID `json:"last_tid"`  // of the last transaction before End, in this increment or before
	Transactions int64           `json:"transactions"`
	// PackedTo is the last transaction of the increment that a pack has touched (status 'p'), 0 for none: no state
	// before it can be had from this chain.
	PackedTo filestorage.TID `json:"packed_to"`

	MD5          string `json:"md5"`           // of the raw bytes, as in .dat
	StoredSize   int64  `json:"stored_size"`   // of the stored file, in bytes
	StoredSHA256 string `json:"stored_sha256"` // of the stored file, as sha256sum prints it
	Tail         Proof  `json:"tail"`

	Chain    Stamp  `json:"chain"`    // stamp of the full
	Previous Stamp  `json:"previous"` // stamp of the increment that a delta continues; "" for a full
	Reason   string `json:"reason"`   // why a full was made; "" for a delta

	Source  SourceFile `json:"source"`
	Created time.Time  `json:"created"`
	Host    string     `json:"host"`
	Version string     `json:"version"` // of the program that wrote it

	// Blobs is how many the transactions name. In the document stands the list of them, in their order, under this name:
	// ReadBlobs.
	Blobs int64 `json:"-"`
}

// SourceFile is the Data.fs that an increment was read from.
type SourceFile struct {
	Path   string `json:"path"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
}

// BlobRef names a blob: the object and the transaction that wrote it.
type BlobRef struct {
	OID filestorage.OID
	TID filestorage.TID
}

// MarshalText gives "oid/tid".
func (b BlobRef) MarshalText() ([]byte, error) {
	return []byte(b.OID.String() + "/" + b.TID.String()), nil
}

// UnmarshalText is the inverse of MarshalText.
func (b *BlobRef) UnmarshalText(text []byte) error {
	oid, tid, ok := bytes.Cut(text, []byte("/"))
	if !ok {
		return fmt.Errorf("blob %q: want oid/tid", text)
	}
	return errors.Join(b.OID.UnmarshalText(oid), b.TID.UnmarshalText(tid))
}

// ManifestName returns the name of the manifest of the increment with that stamp.
func ManifestName(s Stamp) string { return string(s) + manifestExt }

// parseManifest reads the manifest with the given file name and refuses one that contradicts itself or its name. It gives each
// blob to each, before it is known whether the manifest is good.
func parseManifest(name string, r io.Reader, each func(BlobRef)) (*Manifest, error) {
	var blobs int64
	fields, err := splitManifest(r, func(ref BlobRef) {
		blobs++
		each(ref)
	})
	var format int
	if known := json.Unmarshal(fields["format"], &format) == nil; (err == nil || known) && format != ManifestFormat {
		return nil, fault.New(nil, "%s: manifest of format %d, this program knows %d", name, format, ManifestFormat).
			Remedy("use the zodbrepl that wrote it, or a newer one")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: not a manifest: %w", name, err)
	}
	rest, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("%s: not a manifest: %w", name, err)
	}
	m := Manifest{Blobs: blobs}
	dec := json.NewDecoder(bytes.NewReader(rest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("%s: not a manifest: %w", name, err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if name != ManifestName(m.Stamp) {
		return nil, fmt.Errorf("%s: the manifest says that it is of %s", name, m.Stamp)
	}
	return &m, nil
}

// splitManifest reads the fields of a manifest, and gives each blob to each. After an error fields has what came before.
func splitManifest(r io.Reader, each func(BlobRef)) (fields map[string]json.RawMessage, err error) {
	fields = make(map[string]json.RawMessage)
	dec, listed := json.NewDecoder(r), false
	if err := expect(dec, '{'); err != nil {
		return fields, err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return fields, err
		}
		if key != blobsField {
			var value json.RawMessage
			if err := dec.Decode(&value); err != nil {
				return fields, err
			}
			fields[key.(string)] = value // in an object a string, or an error before
			continue
		}
		if listed {
			return fields, fmt.Errorf("%s: a second list", blobsField)
		}
		listed = true
		if err := splitBlobs(dec, each); err != nil {
			return fields, err
		}
	}
	if err := expect(dec, '}'); err != nil {
		return fields, err
	}
	switch t, err := dec.Token(); {
	case err == io.EOF:
		return fields, nil
	case err != nil:
		return fields, err
	default:
		return fields, fmt.Errorf("%v follows it", t)
	}
}

// blobsField is the list of blobs in a manifest.
const blobsField = "blobs"

func splitBlobs(dec *json.Decoder, each func(BlobRef)) error {
	if err := expect(dec, '['); err != nil {
		return fmt.Errorf("%s: %w", blobsField, err)
	}
	for dec.More() {
		var text string
		var ref BlobRef
		if err := dec.Decode(&text); err != nil {
			return err
		}
		if err := ref.UnmarshalText([]byte(text)); err != nil {
			return err
		}
		each(ref)
	}
	return expect(dec, ']')
}

func expect(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	if err == nil && got != want {
		err = fmt.Errorf("%v stands where %v is expected", got, want)
	}
	return err
}

// Write writes the manifest's JSON; blobs are all that its transactions name, as many as it says.
func (m *Manifest) Write(w io.Writer, blobs iter.Seq[BlobRef]) error {
	if err := m.Validate(); err != nil {
		return fmt.Errorf("manifest %s: %w", m.Stamp, err)
	}
	doc, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w) // which keeps its error
	out.Write(bytes.TrimSuffix(doc, []byte("\n}")))
	fmt.Fprintf(out, ",\n  %q: [", blobsField)
	before, after, n := "\n    ", "", int64(0)
	for ref := range blobs {
		fmt.Fprintf(out, "%s\"%s/%s\"", before, ref.OID, ref.TID)
		before, after, n = ",\n    ", "\n  ", n+1
	}
	out.WriteString(after + "]\n}\n")
	if n != m.Blobs {
		return fmt.Errorf("manifest %s: %d blobs, not %d", m.Stamp, n, m.Blobs)
	}
	return out.Flush()
}

// Validate checks that the fields do not contradict each other and that the file name stays in its directory.
func (m *Manifest) Validate() error {
	if _, err := ParseStamp(string(m.Stamp)); err != nil {
		return err
	}
	if _, err := ParseStamp(string(m.Chain)); err != nil {
		return fmt.Errorf("chain: %w", err)
	}
	if _, err := ParseStamp(string(m.Previous)); err != nil && m.Previous != "" {
		return fmt.Errorf("previous: %w", err)
	}
	codec, err := CodecByName(m.Codec)
	if err != nil || m.Codec == "" {
		return fmt.Errorf("codec %q is not known", m.Codec)
	}
	if want := fileName(m.Stamp, m.Kind, codec); m.File != want {
		return fmt.Errorf("file %q: an increment of this stamp, kind and codec is called %q", m.File, want)
	}
	switch {
	case m.Lineage == "":
		return errors.New("no lineage")
	case m.Epoch < 1:
		return fmt.Errorf("epoch %d: epochs count from 1", m.Epoch)
	case m.Kind == Full && (m.Start != 0 || m.Chain != m.Stamp || m.Previous != ""):
		return fmt.Errorf("a full starts at 0 and begins its chain; this one starts at %d, in chain %s, after %q", m.Start, m.Chain, m.Previous)
	case m.Kind == Delta && (m.Start < filestorage.MagicSize || m.Chain >= m.Stamp || m.Previous >= m.Stamp || m.Previous < m.Chain):
		return fmt.Errorf("a delta follows its chain and its previous; this one starts at %d, in chain %s, after %q", m.Start, m.Chain, m.Previous)
	case m.Kind != Full && m.Kind != Delta:
		return fmt.Errorf("kind %q is neither full nor delta", m.Kind)
	case m.End <= m.Start || m.End > 1<<48:
		return fmt.Errorf("end %d does not lie after start %d", m.End, m.Start)
	case m.Transactions < 0 || (m.Transactions == 0) != (m.FirstTID == 0) || (m.Transactions == 0) != (m.LastTID == 0) || m.Kind == Delta && m.Transactions == 0:
		return fmt.Errorf("%d transactions from %s to %s", m.Transactions, m.FirstTID, m.LastTID)
	case m.StoredSize <= 0:
		return fmt.Errorf("stored size %d", m.StoredSize)
	case !isHex(m.MD5, md5.Size):
		return fmt.Errorf("md5 %q", m.MD5)
	case !isHex(m.StoredSHA256, sha256.Size):
		return fmt.Errorf("stored_sha256 %q", m.StoredSHA256)
	case m.Promotions.Validate(m.Epoch) != nil:
		return m.Promotions.Validate(m.Epoch)
	case m.Tail.Size != min(m.End, TailSize) || !isHex(m.Tail.SHA256, sha256.Size):
		return fmt.Errorf("tail proof of %d bytes, %q", m.Tail.Size, m.Tail.SHA256)
	}
	return nil
}

func isHex(s string, size int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == size
}

// ReadManifest reads the manifest of a stamp from src.
func ReadManifest(ctx context.Context, src Source, s Stamp) (*Manifest, error) {
	return readManifest(ctx, src, s, counted)
}

// counted is for blobs of which only the number is wanted.
func counted(BlobRef) {}

// ReadBlobs gives the blobs that the manifest of a stamp names to each, in their order.
func ReadBlobs(ctx context.Context, src Source, s Stamp, each func(BlobRef)) error {
	_, err := readManifest(ctx, src, s, each)
	return err
}

func readManifest(ctx context.Context, src Source, s Stamp, each func(BlobRef)) (*Manifest, error) {
	name := ManifestName(s)
	r, err := src.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	in := &bounded{r: r, left: maxManifest}
	m, err := parseManifest(name, in, each)
	switch {
	case in.err != nil: // whatever was made of what came before
		return nil, in.err
	case in.left < 0:
		return nil, fault.New(fault.Unverified, "%s/%s: larger than %d bytes", src, name, maxManifest)
	case err != nil:
		e := fault.New(fault.Unverified, "%s", src).Because(err)
		if fault.Next(err) == "" {
			e = e.Remedy("bring the manifest again from where it was made, or from another copy of the repository")
		}
		return nil, e
	}
	return m, nil
}

// bounded reads so many bytes, and remembers what went wrong.
type bounded struct {
	r    io.Reader
	left int64 // below 0 when there are more
	err  error
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	b.left -= int64(n)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
