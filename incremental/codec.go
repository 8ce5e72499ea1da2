package incremental

import (
	"fmt"
	"io"
)

// Codec is how an increment's raw bytes are stored. Codecs hold no state and may be used by several goroutines.
type Codec interface {
	// Name is what manifests and the command line call it.
	Name() string
	// Suffix is appended to ".fs" or ".deltafs" in file names.
	Suffix() string
	// NewWriter encodes what is written to it into w. Close flushes; w stays open.
	NewWriter(w io.Writer) io.WriteCloser
	// NewReader decodes r. A stored form that is cut or damaged is an error, and memory does not depend on what
	// it claims. r is read by the goroutine that reads the result, which must be closed; no goroutine is left then.
	NewReader(r io.Reader) (io.ReadCloser, error)
}

// codecs lists every codec; the first is the default.
var codecs = []Codec{gzipCodec{}, noneCodec{}}

// CodecByName returns the codec of that name, the default for "".
func CodecByName(name string) (Codec, error) {
	if name == "" {
		return codecs[0], nil
	}
	var names []string
	for _, c := range codecs {
		if c.Name() == name {
			return c, nil
		}
		names = append(names, c.Name())
	}
	return nil, fmt.Errorf("unknown codec %q; there are %v", name, names)
}

// noneCodec stores the raw bytes.
type noneCodec struct{}

func (noneCodec) Name() string   { return "none" }
func (noneCodec) Suffix() string { return "" }

func (noneCodec) NewWriter(w io.Writer) io.WriteCloser         { return nopCloser{w} }
func (noneCodec) NewReader(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(r), nil }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
