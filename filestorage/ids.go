package filestorage

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// TID is a transaction id. Its order is the order of the transactions, and it encodes their time.
type TID uint64

// OID is an object id.
type OID uint64

// String returns 16 hexadecimal digits.
func (t TID) String() string { return fmt.Sprintf("%016x", uint64(t)) }

// String returns 16 hexadecimal digits.
func (o OID) String() string { return fmt.Sprintf("%016x", uint64(o)) }

// ParseTID reads 16 hexadecimal digits, with or without a leading 0x.
func ParseTID(s string) (TID, error) {
	n, err := parseID("tid", s)
	return TID(n), err
}

// ParseOID reads 16 hexadecimal digits, with or without a leading 0x.
func ParseOID(s string) (OID, error) {
	n, err := parseID("oid", s)
	return OID(n), err
}

func parseID(what, s string) (uint64, error) {
	digits := strings.TrimPrefix(s, "0x")
	if len(digits) != 16 {
		return 0, fmt.Errorf("%s %q: want 16 hexadecimal digits, have %d characters", what, s, len(digits))
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%s %q: not hexadecimal", what, s)
	}
	return n, nil
}

// MarshalText makes a TID 16 hexadecimal digits in JSON.
func (t TID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (t *TID) UnmarshalText(b []byte) (err error) {
	*t, err = ParseTID(string(b))
	return err
}

// MarshalText makes an OID 16 hexadecimal digits in JSON.
func (o OID) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (o *OID) UnmarshalText(b []byte) (err error) {
	*o, err = ParseOID(string(b))
	return err
}

// A tid is a time stamp (persistent's TimeStamp): the high 32 bits count minutes in a calendar in which every
// month has 31 days, from 1900; the low 32 bits are the seconds of that minute, as a fraction of 60.
//
//	high = ((((year-1900)*12 + month-1)*31 + day-1)*24 + hour)*60 + minute
//	low  = seconds * 2^32 / 60

const minute = uint64(time.Minute)

// Time returns the moment that the tid encodes, in UTC, to the nanosecond below. A tid can encode the 31st of a month
// that has fewer days; no clock makes such tids, and like ZODB's their time is one of the next month.
func (t TID) Time() time.Time {
	v := int(t >> 32)
	mins, v := v%60, v/60
	hour, v := v%24, v/24
	day, v := v%31, v/31
	month, year := v%12, v/12
	hi, lo := bits.Mul64(uint64(uint32(t)), minute)
	nanos := hi<<32 | lo>>32
	return time.Date(1900+year, time.Month(1+month), 1+day, hour, mins, 0, int(nanos), time.UTC)
}

// TIDFromTime returns the tid that encodes t, rounded down as ZODB does it. Times outside of what a tid can
// encode give the nearest that it can.
func TIDFromTime(t time.Time) TID {
	high, nanos, clamped := splitTime(t)
	if high < 0 {
		return clamped
	}
	hi, lo := bits.Mul64(nanos, 1<<32)
	low, _ := bits.Div64(hi, lo, minute)
	return TID(uint64(high)<<32 | low)
}

// LastTIDBefore returns the greatest tid whose Time is before t: the bound for "every transaction before t".
func LastTIDBefore(t time.Time) TID {
	high, nanos, clamped := splitTime(t)
	if high < 0 {
		return clamped
	}
	hi, lo := bits.Mul64(nanos, 1<<32)
	low, rest := bits.Div64(hi, lo, minute)
	if rest == 0 { // it encodes t itself
		if low == 0 { // the one before may be of the 31st of a month without one
			if high, _, clamped = splitTime(t.Add(-time.Minute)); high < 0 {
				return clamped
			}
		}
		low = uint64(uint32(low - 1))
	}
	return TID(uint64(high)<<32 | low)
}

func splitTime(t time.Time) (high int64, nanos uint64, clamped TID) {
	t = t.UTC()
	if t.Year() < 1900 {
		return -1, 0, 0
	}
	high = int64(t.Year()-1900)*12 + int64(t.Month()-1)
	high = ((high*31+int64(t.Day()-1))*24+int64(t.Hour()))*60 + int64(t.Minute())
	if high > 1<<32-1 {
		return -1, 0, ^TID(0)
	}
	return high, uint64(t.Second())*uint64(time.Second) + uint64(t.Nanosecond()), 0
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
