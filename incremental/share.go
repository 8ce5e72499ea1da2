package incremental

import (
	"io"
	"os"

	"zodbrepl/internal/gentle"
)

// share prepares the file f for the raw bytes of m, and returns where to read them and where to write them, stored.
//
// A plain full shares its blocks with Data.fs, where the file system can do that: it takes no room and no writing. Its bytes
// are read from the new file then, not from Data.fs, so that what is hashed and checked is what is stored. A delta begins
// between two blocks and cannot share any; and to let the kernel copy (copy_file_range) saves nothing, since every byte is
// read for its hash.
func (b *backup) share(f *os.File, m *Manifest) (raw io.ReadCloser, stored *gentle.Writer, err error) {
	g := gentle.Open(f)
	if m.Start != 0 || b.codec != (noneCodec{}) {
		return io.NopCloser(b.data.Section(m.Start, m.End)), g.Writer(), nil
	}
	n := gentle.Clone(f, b.file, m.End)
	if n == 0 {
		return io.NopCloser(b.data.Section(0, m.End)), g.Writer(), f.Truncate(0)
	}
	shared, err := os.Open(f.Name())
	if err != nil {
		return nil, nil, b.unwritable(err)
	}
	raw = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.NewSectionReader(gentle.Open(shared), 0, n), b.data.Section(n, m.End)), shared}
	return raw, g.WriterAfter(n), nil
}
