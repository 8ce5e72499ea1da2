package filestorage

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestTxnHeaderValidate(t *testing.T) {
	good := TxnHeader{TID: 1, Length: 40, Status: StatusCommitted, UserLen: 5, DescriptionLen: 6, ExtensionLen: 6}
	for _, c := range []struct {
		name   string
		change func(*TxnHeader)
		want   string // "" for accepted
	}{
		{"a committed transaction is accepted", func(h *TxnHeader) {}, ""},
		{"a packed transaction is accepted", func(h *TxnHeader) { h.Status = StatusPacked }, ""},
		{"an undone transaction is accepted", func(h *TxnHeader) { h.Status = StatusUndone }, ""},
		{"a transaction of the greatest length is accepted", func(h *TxnHeader) { h.Length = 1<<48 - 1 }, ""},
		{"a voted transaction is refused", func(h *TxnHeader) { h.Status = StatusVoted }, "never committed"},
		{"an unknown status is refused", func(h *TxnHeader) { h.Status = 'x' }, `invalid transaction status 'x'`},
		{"zeros are refused", func(h *TxnHeader) { *h = TxnHeader{} }, `invalid transaction status`},
		{"a length beyond all files is refused", func(h *TxnHeader) { h.Length = 1 << 48 }, "beyond"},
		{"a length that would be negative is refused", func(h *TxnHeader) { h.Length = math.MaxUint64 }, "beyond"},
		{"a length shorter than the header is refused", func(h *TxnHeader) { h.Length = 39 }, "less than its header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := good
			c.change(&h)
			if c.want == "" {
				require.NoError(t, h.Validate())
			} else {
				require.ErrorContains(t, h.Validate(), c.want)
			}
		})
	}
}

func TestDataHeaderValidate(t *testing.T) {
	const txnPos, pos = 1000, 1023
	txn := TxnHeader{TID: 7, Status: StatusCommitted, Length: 23 + 42 + 100}
	for _, c := range []struct {
		name   string
		change func(*DataHeader)
		want   string
	}{
		{"a record with data is accepted", func(h *DataHeader) {}, ""},
		{"a record that fills its transaction is accepted", func(h *DataHeader) { h.DataLen = 100 }, ""},
		{"a back pointer is accepted", func(h *DataHeader) { h.DataLen, h.Back = 0, 900 }, ""},
		{"a deleted object is accepted", func(h *DataHeader) { h.DataLen = 0 }, ""},
		{"a previous record just before is accepted", func(h *DataHeader) { h.Prev = pos - 1 }, ""},
		{"a version is refused", func(h *DataHeader) { h.Version = 1 }, "version"},
		{"another transaction's record is refused", func(h *DataHeader) { h.TxnPos = 999 }, "points to a transaction at 999"},
		{"data beyond the transaction is refused", func(h *DataHeader) { h.DataLen = 101 }, "exceeds its transaction"},
		{"a data length that would be negative is refused", func(h *DataHeader) { h.DataLen = math.MaxUint64 }, "exceeds its transaction"},
		{"a data length that would overflow is refused", func(h *DataHeader) { h.DataLen = math.MaxInt64 - 10 }, "exceeds its transaction"},
		{"itself as its previous record is refused", func(h *DataHeader) { h.Prev = pos }, "previous record"},
		{"a later previous record is refused", func(h *DataHeader) { h.Prev = math.MaxUint64 }, "previous record"},
		{"a back pointer to itself is refused", func(h *DataHeader) { h.DataLen, h.Back = 0, pos }, "points back"},
		{"a back pointer to later is refused", func(h *DataHeader) { h.DataLen, h.Back = 0, math.MaxUint64 }, "points back"},
		{"both data and a back pointer are refused", func(h *DataHeader) { h.Back = 900 }, "both data and a back pointer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := DataHeader{OID: 1, TID: 7, Prev: 500, TxnPos: txnPos, DataLen: 60}
			c.change(&h)
			err := h.Validate(pos, txnPos, txn)
			if c.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.want)
				require.ErrorContains(t, err, h.OID.String())
			}
		})
	}
	short := txn
	short.Length = 23 + 49
	require.ErrorContains(t, DataHeader{TxnPos: txnPos}.Validate(pos, txnPos, short), "exceeds", "a back pointer needs its 8 bytes too")
}

func TestHeadersSurviveTheirBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := TxnHeader{TID: TID(rapid.Uint64().Draw(t, "tid")), Length: rapid.Uint64().Draw(t, "len"), Status: rapid.Byte().Draw(t, "status"),
			UserLen: rapid.Uint16().Draw(t, "u"), DescriptionLen: rapid.Uint16().Draw(t, "d"), ExtensionLen: rapid.Uint16().Draw(t, "e")}
		b := h.Append([]byte("before"))
		require.Len(t, b, 6+TxnHeaderSize)
		var back TxnHeader
		back.Decode(b[6:])
		require.Equal(t, h, back)

		d := DataHeader{OID: OID(rapid.Uint64().Draw(t, "oid")), TID: h.TID, Prev: rapid.Uint64().Draw(t, "prev"), TxnPos: rapid.Uint64().Draw(t, "txn"),
			Version: rapid.Uint16().Draw(t, "v"), DataLen: rapid.Uint64Range(0, 3).Draw(t, "n")}
		b = d.Append(nil)
		require.EqualValues(t, d.RecordLen()-int64(d.DataLen), len(b))
		var dback DataHeader
		dback.Decode(b)
		require.Equal(t, d, dback)
	})
}

func TestValidMagic(t *testing.T) {
	for magic, want := range map[string]bool{"FS30": true, "FS21": true, "FS30 and more": true, "FS31": false, "FS3": false, "": false, "fs30": false} {
		require.Equal(t, want, ValidMagic([]byte(magic)), magic)
	}
}
