package filestorage

import (
	"encoding/binary"
	"fmt"
)

// The file (ZODB: FileStorage/format.py). All numbers are big-endian.
//
//	+------+-------------+-------------+-- ...
//	| magic| transaction | transaction |
//	+------+-------------+-------------+-- ...
//	0      4
//
//	transaction                            offset
//	  tid                          8 bytes   0
//	  length of the record - 8     8         8    up to, without, the repeated length
//	  status                       1        16    ' ' committed, 'p' packed, 'c' voted (not committed), 'u' undone
//	  length of user               2        17
//	  length of description        2        19
//	  length of extension          2        21
//	  user, description, extension          23
//	  data records, none or more
//	  length of the record - 8     8              repeated, to read backwards
//
//	data record
//	  oid                          8         0
//	  tid                          8         8
//	  position of the object's previous record, or 0
//	                               8        16
//	  position of the transaction  8        24
//	  0 (was: version length)      2        32
//	  length of the data           8        34
//	  data                                  42    when that length is not 0
//	  position of the record that holds the data (back pointer), or 0: deleted
//	                               8        42    when it is 0

const (
	// MagicSize is the position of the first transaction.
	MagicSize = 4
	// TxnHeaderSize is the size of a transaction header without user, description and extension, in bytes.
	TxnHeaderSize = 23
	// DataHeaderSize is the size of a data record's header, in bytes, without data or back pointer.
	DataHeaderSize = 42

	trailerSize = 8 // the repeated length
	backSize    = 8 // a back pointer
)

// The status of a transaction.
const (
	StatusCommitted = ' '
	StatusPacked    = 'p' // committed, and before the time of the last pack
	StatusVoted     = 'c' // written, not committed: counts as absent
	StatusUndone    = 'u' // of old ZODBs: its records do not count
)

// ValidMagic says whether b begins with the magic of Python 3's or Python 2's FileStorage.
func ValidMagic(b []byte) bool {
	return len(b) >= MagicSize && (string(b[:MagicSize]) == "FS30" || string(b[:MagicSize]) == "FS21")
}

// TxnHeader is the fixed part of a transaction record.
type TxnHeader struct {
	TID    TID
	Length uint64 // bytes of the record without the repeated length at its end
	Status byte

	UserLen, DescriptionLen, ExtensionLen uint16
}

// Decode reads the first TxnHeaderSize bytes of b.
func (h *TxnHeader) Decode(b []byte) {
	_ = b[TxnHeaderSize-1]
	h.TID = TID(be64(b))
	h.Length = be64(b[8:])
	h.Status = b[16]
	h.UserLen, h.DescriptionLen, h.ExtensionLen = be16(b[17:]), be16(b[19:]), be16(b[21:])
}

// Append adds the header's bytes to b.
func (h TxnHeader) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(h.TID))
	b = binary.BigEndian.AppendUint64(b, h.Length)
	b = append(b, h.Status)
	b = binary.BigEndian.AppendUint16(b, h.UserLen)
	b = binary.BigEndian.AppendUint16(b, h.DescriptionLen)
	return binary.BigEndian.AppendUint16(b, h.ExtensionLen)
}

// HeaderLen returns the bytes before the first data record.
func (h TxnHeader) HeaderLen() int64 {
	return TxnHeaderSize + int64(h.UserLen) + int64(h.DescriptionLen) + int64(h.ExtensionLen)
}

// RecordLen returns the bytes of the whole record. Call it only after Validate: an unchecked Length may
// overflow it.
func (h TxnHeader) RecordLen() int64 { return int64(h.Length) + trailerSize }

// maxLength bounds the lengths and positions that are believed: FileStorage's index has 6 bytes for a position.
const maxLength = 1<<48 - 1

// Validate checks what ZODB's checkTxn checks of a committed transaction: its status, and that the length covers
// the header. The order of tids is the caller's to check.
func (h TxnHeader) Validate() error {
	switch h.Status {
	case StatusCommitted, StatusPacked, StatusUndone:
	case StatusVoted:
		return fmt.Errorf("the transaction was voted for but never committed (status 'c')")
	default:
		return fmt.Errorf("invalid transaction status %q", h.Status)
	}
	if h.Length > maxLength {
		return fmt.Errorf("transaction length %d is beyond what a Data.fs can hold", h.Length)
	}
	if int64(h.Length) < h.HeaderLen() {
		return fmt.Errorf("transaction length %d is less than its header, %d bytes", h.Length, h.HeaderLen())
	}
	return nil
}

// DataHeader is the fixed part of a data record, with its back pointer.
type DataHeader struct {
	OID     OID
	TID     TID
	Prev    uint64 // position of the object's previous record, 0 for none
	TxnPos  uint64 // position of the transaction
	Version uint16 // length of a version's name; always 0 today
	DataLen uint64 // bytes of data; 0: a back pointer follows
	Back    uint64 // where the data stands when DataLen is 0; 0: the object is deleted
}

// Decode reads the first DataHeaderSize bytes of b; Back is left alone.
func (h *DataHeader) Decode(b []byte) {
	_ = b[DataHeaderSize-1]
	h.OID, h.TID = OID(be64(b)), TID(be64(b[8:]))
	h.Prev, h.TxnPos = be64(b[16:]), be64(b[24:])
	h.Version, h.DataLen = be16(b[32:]), be64(b[34:])
}

// Append adds the header's bytes to b, and the back pointer when there is no data.
func (h DataHeader) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(h.OID))
	b = binary.BigEndian.AppendUint64(b, uint64(h.TID))
	b = binary.BigEndian.AppendUint64(b, h.Prev)
	b = binary.BigEndian.AppendUint64(b, h.TxnPos)
	b = binary.BigEndian.AppendUint16(b, h.Version)
	b = binary.BigEndian.AppendUint64(b, h.DataLen)
	if h.DataLen == 0 {
		b = binary.BigEndian.AppendUint64(b, h.Back)
	}
	return b
}

// RecordLen returns the bytes of the whole record. Call it only after Validate.
func (h DataHeader) RecordLen() int64 {
	if h.DataLen == 0 {
		return DataHeaderSize + backSize
	}
	return DataHeaderSize + int64(h.DataLen)
}

// Validate checks what ZODB's checkData checks of the record at pos, in the transaction t at txnPos.
// A back pointer is checked when it has been read.
func (h DataHeader) Validate(pos, txnPos int64, t TxnHeader) error {
	switch {
	case h.Version != 0:
		return fmt.Errorf("data record of oid %s has a version, which no ZODB has written since 3.9", h.OID)
	case h.TxnPos != uint64(txnPos):
		return fmt.Errorf("data record of oid %s points to a transaction at %d, but is in the one at %d", h.OID, h.TxnPos, txnPos)
	case h.DataLen > maxLength || pos+h.RecordLen() > txnPos+int64(t.Length):
		return fmt.Errorf("data record of oid %s, %d bytes of data, exceeds its transaction", h.OID, h.DataLen)
	case h.Prev >= uint64(pos):
		return fmt.Errorf("data record of oid %s has its previous record at %d, not before it", h.OID, h.Prev)
	case h.Back >= uint64(pos):
		return fmt.Errorf("data record of oid %s points back to %d, not before it", h.OID, h.Back)
	case h.Back != 0 && h.DataLen != 0:
		return fmt.Errorf("data record of oid %s has both data and a back pointer", h.OID)
	}
	return nil
}
