package incremental

import (
	"io"
	"iter"

	"zodbrepl/filestorage"
)

// blobCollector lists the blobs that data records name.
type blobCollector struct {
	data *filestorage.File // where back pointers lead; nil: known tells
	// known has the objects that were blobs before. An object does not change its class, so this is enough for a
	// chain that is read from its beginning, whose Data.fs may be no more.
	known *filestorage.Index // whose positions mean nothing: no set of oids is smaller
	refs  refList
}

// add takes a record as filestorage.Checker shows it. A back pointer that leads nowhere names no blob: FileStorage
// itself finds that out only when the object is loaded, so it is no reason to go without a backup.
func (c *blobCollector) add(r filestorage.Record, head []byte) error {
	switch {
	case r.DataLen > filestorage.HeadSize || r.DataLen == 0 && r.Back == 0:
		return nil
	case r.DataLen == 0 && c.data == nil:
		if _, blob := c.known.Get(r.OID); blob {
			c.refs.add(BlobRef{r.OID, r.TID})
		}
		return nil
	case r.DataLen == 0:
		head = c.behind(r)
	}
	if filestorage.IsBlob(head) {
		c.refs.add(BlobRef{r.OID, r.TID})
		if c.known != nil {
			c.known.Set(r.OID, 0)
		}
	}
	return nil
}

func (c *blobCollector) behind(r filestorage.Record) []byte {
	holder, ok, err := c.data.Resolve(r)
	if err != nil || !ok || holder.OID != r.OID || holder.DataLen > filestorage.HeadSize {
		return nil
	}
	data := make([]byte, holder.DataLen)
	if _, err := io.ReadFull(c.data.Data(holder), data); err != nil {
		return nil
	}
	return data
}

// refList keeps 16 bytes for each blob, and never copies them as a slice that grows does.
type refList struct {
	chunks [][]BlobRef
	n      int64
}

const refChunk = 4096

func (l *refList) add(ref BlobRef) {
	if l.n%refChunk == 0 {
		l.chunks = append(l.chunks, make([]BlobRef, 0, refChunk))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, ref)
	l.n++
}

func (l *refList) all() iter.Seq[BlobRef] {
	return func(yield func(BlobRef) bool) {
		for _, chunk := range l.chunks {
			for _, ref := range chunk {
				if !yield(ref) {
					return
				}
			}
		}
	}
}
