package incremental

import (
	"fmt"
	"io"
	"runtime"

	"zodbrepl/internal/fault"
)

// Codec is how an increment's raw bytes are stored. Codecs hold no state and may be used by several goroutines.
type Codec interface {
	// Name is what manifests and the command line call it.
	Name() string
	// Suffix is appended to ".fs" or ".deltafs" in file names.
	Suffix() string
	// Levels returns the range of levels, from the fastest to the smallest, and the default; zeros when there are none.
	Levels() (first, last, usual int)
	// NewWriter encodes what is written to it into w. Close flushes; w stays open.
	NewWriter(w io.Writer, e Effort) io.WriteCloser
	// NewReader decodes r with so many jobs, 0 for as many as there are cores. A stored form that is cut or damaged
	// is an error, and memory does not depend on what it claims. r is read by the goroutine that reads the result,
	// which must be closed; no goroutine is left then.
	NewReader(r io.Reader, jobs int) (io.ReadCloser, error)
}

// Effort says how much work encoding may be. The zero value is the codec's default level on all cores.
type Effort struct {
	Level int // one of the codec's; 0: its default
	Jobs  int // pieces that are encoded at once; 0: as many as there are cores
}

// jobs returns how many pieces to work on at once: as many as asked for, or as there are cores, within bounds of
// memory.
func jobs(asked, most int) int {
	if asked <= 0 {
		asked = runtime.GOMAXPROCS(0)
	}
	return min(asked, most)
}

// codecs lists every codec; the first is the default.
var codecs = []Codec{gzipCodec{}, noneCodec{}, zstdCodec{}}

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

// checkLevel refuses a level that the codec does not have.
func checkLevel(c Codec, level int) error {
	first, last, usual := c.Levels()
	switch {
	case level == 0 || first <= level && level <= last:
		return nil
	case last == 0:
		return fault.New(fault.Usage, "level %d: the codec %s has no levels", level, c.Name()).Keeping("nothing was done").Remedy("leave the level out")
	}
	return fault.New(fault.Usage, "level %d: the codec %s has %d (fastest) to %d (smallest), by default %d", level, c.Name(), first, last, usual).
		Keeping("nothing was done").Remedy("give one of these, or none")
}

// family says which codecs may stand beside each other in a repository: repozo reads the ones of its own family and
// takes no notice of the others, so that a chain of both would be two chains.
type family string

const (
	repozoFamily family = "repozo"
	zstdFamily   family = "zstd"
)

func familyOf(c Codec) family {
	if c.Name() == (zstdCodec{}).Name() {
		return zstdFamily
	}
	return repozoFamily
}

// noneCodec stores the raw bytes.
type noneCodec struct{}

func (noneCodec) Name() string            { return "none" }
func (noneCodec) Suffix() string          { return "" }
func (noneCodec) Levels() (int, int, int) { return 0, 0, 0 }

func (noneCodec) NewWriter(w io.Writer, _ Effort) io.WriteCloser      { return nopCloser{w} }
func (noneCodec) NewReader(r io.Reader, _ int) (io.ReadCloser, error) { return io.NopCloser(r), nil }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
