package filestorage

import (
	"bytes"
	"compress/zlib"
	"io"
)

// A data record is two pickles: the object's class, then its state. Of a blob (ZODB: blob.py) they are
//
//	80 03 c ZODB.blob\nBlob\n q 00 .    80 03 N .
//
// whatever the size of the blob: the state is None, and the content a file of its own. The number of the protocol
// and of the memo's slot may differ, or be missing.

var blobGlobal = []byte("cZODB.blob\nBlob\n")

// zlibHead bounds what is unpacked of a compressed record, in bytes: a blob's first pickle is shorter.
const zlibHead = 1 << 10

// IsBlob says whether data is a blob's record: its first pickle is exactly the class ZODB.blob.Blob, by ZODB's
// is_blob_record. A record that zc.zlibstorage compressed counts as what is in it.
//
// The first HeadSize bytes of a record are enough: what makes it a blob's takes some dozens. A record with a back
// pointer has no data; ask about the record that holds it.
func IsBlob(data []byte) bool {
	if bytes.HasPrefix(data, []byte(".z")) {
		z, err := zlib.NewReader(bytes.NewReader(data[2:]))
		if err != nil {
			return false
		}
		defer z.Close()
		var head [zlibHead]byte
		n, _ := io.ReadFull(z, head[:]) // an error is no matter: data may be a head that was cut
		data = head[:n]
	}
	data = data[:min(len(data), HeadSize)]
	if !bytes.Contains(data, blobGlobal) {
		return false
	}
	for len(data) >= 2 && data[0] == opProto && data[1] <= 3 {
		data = data[2:]
	}
	data, ok := bytes.CutPrefix(data, blobGlobal)
	for ok && len(data) > 0 {
		switch data[0] {
		case opStop:
			return true
		case opPut1:
			data = data[min(2, len(data)):]
		case opPut4:
			data = data[min(5, len(data)):]
		case opPut:
			_, data, ok = bytes.Cut(data, []byte("\n"))
		default:
			return false
		}
	}
	return false
}
