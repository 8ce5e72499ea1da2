package incremental

import (
	"io"

	"zodbrepl/filestorage"
)

// blobCollector lists the blobs that data records name.
type blobCollector struct {
	data *filestorage.File // where back pointers lead
	refs []BlobRef
}

// add takes a record as filestorage.Checker shows it. A back pointer that leads nowhere names no blob: FileStorage
// itself finds that out only when the object is loaded, so it is no reason to go without a backup.
func (c *blobCollector) add(r filestorage.Record, head []byte) error {
	if r.DataLen == 0 {
		head = c.behind(r)
	} else if r.DataLen > filestorage.HeadSize {
		return nil
	}
	if filestorage.IsBlob(head) {
		c.refs = append(c.refs, BlobRef{r.OID, r.TID})
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
