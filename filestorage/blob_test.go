package filestorage

import (
	"bytes"
	"compress/zlib"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func deflated(data []byte) []byte {
	var b bytes.Buffer
	b.WriteString(".z")
	w := zlib.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// What the real is_blob_record says of each of these was seen in ZODB 6.4, save the two kinds noted.
var blobRecords = []struct {
	name, data string
	want       bool
}{
	{"a blob of today's ZODB is one", "\x80\x03cZODB.blob\nBlob\nq\x00.\x80\x03N.", true},
	{"a blob of Python 2's is one", "\x80\x02cZODB.blob\nBlob\nq\x01.\x80\x02N.", true},
	{"a blob of protocol 1 is one", "cZODB.blob\nBlob\nq\x01.N.", true},
	{"a blob of protocol 0 is one", "cZODB.blob\nBlob\np0\n.N.", true},
	{"a blob with a wide memo is one", "\x80\x03cZODB.blob\nBlob\nr\x00\x01\x00\x00.\x80\x03N.", true},
	{"a blob without a memo is one", "cZODB.blob\nBlob\n.", true},
	{"a protocol named twice is read", "\x80\x03\x80\x03cZODB.blob\nBlob\nq\x00r\x00\x00\x00\x00.", true},
	{"nothing is none", "", false},
	{"another class is none", "\x80\x03cZODB.tests\nBlob\nq\x00.\x80\x03N.", false},
	{"a class of another name is none", "\x80\x03cZODB.blob\nBlobFile\nq\x00.\x80\x03N.", false},
	{"a class of a package like it is none", "\x80\x03cmy.ZODB.blob\nBlob\nq\x00.\x80\x03N.", false},
	{"an object that names the class is none", "\x80\x03capp\nThing\nq\x00.\x80\x03cZODB.blob\nBlob\nq\x00.", false},
	{"a class with arguments is none", "\x80\x03cZODB.blob\nBlob\nq\x00)\x86.\x80\x03N.", false},
	{"a class in a tuple is none", "\x80\x03(cZODB.blob\nBlob\nNt.\x80\x03N.", false},
	{"a class that is cut is none", "\x80\x03cZODB.blob\nBlo", false},
	{"a pickle without its end is none", "\x80\x03cZODB.blob\nBlob\nq\x00", false},
	{"a pickle cut in its memo is none", "\x80\x03cZODB.blob\nBlob\nr\x00", false},
	{"a pickle cut in its text memo is none", "cZODB.blob\nBlob\np12", false},
	{"protocol 4, which ZODB cannot read, is none", "\x80\x04\x8c\tZODB.blob\x94\x8c\x04Blob\x94\x93\x94.", false},
	{"a later protocol's number is none", "\x80\x05cZODB.blob\nBlob\n.", false},
	{"carriage returns are none", "cZODB.blob\r\nBlob\r\n.", false},
	{"text is none", "ZODB.blob", false},
	{"a class whose end is not in the head is none here", "cZODB.blob\nBlob\np" + strings.Repeat("0", HeadSize) + "\n.", false},
	// Not as ZODB: no pickler writes these.
	{"a class after other opcodes is none here", "N0cZODB.blob\nBlob\n.", false},
	{"a class duplicated is none here", "cZODB.blob\nBlob\n2.", false},
}

func TestIsBlob(t *testing.T) {
	for _, c := range blobRecords {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, IsBlob([]byte(c.data)))
			require.Equal(t, c.want, IsBlob(deflated([]byte(c.data))), "compressed")
			if c.want {
				require.True(t, IsBlob(append([]byte(c.data), make([]byte, HeadSize)...)[:HeadSize]), "what follows does not matter")
			}
		})
	}
}

func TestCompressedRecordsAreUnpackedAsFarAsNeeded(t *testing.T) {
	record := []byte(blobRecords[0].data)
	bomb := deflated(append(bytes.Clone(record), make([]byte, 64<<20)...))
	require.Less(t, len(bomb), 100<<10)
	memory := allocated(func() { require.True(t, IsBlob(bomb)) })
	require.Less(t, memory, uint64(256<<10))
	require.True(t, IsBlob(bomb[:HeadSize]), "the head of a compressed record is enough")

	require.False(t, IsBlob([]byte(".z")))
	require.False(t, IsBlob([]byte(".zrubbish that is no zlib")))
	require.False(t, IsBlob(append([]byte(".z"), record...)), "the mark alone does not compress")
	require.False(t, IsBlob(deflated(deflated(record))), "nor is it unpacked twice")
	whole := deflated(record)
	require.True(t, IsBlob(whole))
	for n := range len(whole) - 10 { // the checksum and the end may be missing
		IsBlob(whole[:n])
	}
}
