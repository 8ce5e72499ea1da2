package filestorage

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestParseTID(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     TID
		ok       bool
	}{
		{"sixteen digits are a tid", "03d1a2b3c4d5e6f7", 0x03d1a2b3c4d5e6f7, true},
		{"capital digits are taken", "03D1A2B3C4D5E6F7", 0x03d1a2b3c4d5e6f7, true},
		{"a leading 0x is taken", "0x03d1a2b3c4d5e6f7", 0x03d1a2b3c4d5e6f7, true},
		{"the greatest tid is taken", "ffffffffffffffff", math.MaxUint64, true},
		{"an empty text is refused", "", 0, false},
		{"a missing digit is refused", "3d1a2b3c4d5e6f7", 0, false},
		{"a digit too many is refused", "003d1a2b3c4d5e6f7", 0, false},
		{"other letters are refused", "03d1a2b3c4d5e6g7", 0, false},
		{"a sign is refused", "+3d1a2b3c4d5e6f7", 0, false},
		{"an underscore is refused", "03d1_a2b3c4d5e6f", 0, false},
		{"0x twice is refused", "0x0xa2b3c4d5e6f7", 0, false},
		{"0x without sixteen digits is refused", "0x03d1a2b3c4d5e6", 0, false},
		{"a space is refused", " 3d1a2b3c4d5e6f7", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseTID(c.in)
			oid, oerr := ParseOID(c.in)
			if !c.ok {
				require.ErrorContains(t, err, "tid")
				require.ErrorContains(t, oerr, "oid")
				require.Zero(t, got)
				return
			}
			require.NoError(t, err)
			require.NoError(t, oerr)
			require.Equal(t, c.want, got)
			require.Equal(t, OID(c.want), oid)
		})
	}
}

func TestIDsSurviveTextAndJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type both struct {
			T TID
			O OID
			M map[OID]TID
		}
		tid, oid := TID(rapid.Uint64().Draw(t, "tid")), OID(rapid.Uint64().Draw(t, "oid"))
		in := both{tid, oid, map[OID]TID{oid: tid}}
		b, err := json.Marshal(in)
		require.NoError(t, err)
		var out both
		require.NoError(t, json.Unmarshal(b, &out))
		require.Equal(t, in, out)
		require.Len(t, tid.String(), 16)
		require.Len(t, oid.String(), 16)
		back, err := ParseTID(tid.String())
		require.NoError(t, err)
		require.Equal(t, tid, back)
	})
	var tid TID
	require.Error(t, json.Unmarshal([]byte(`"12"`), &tid), "a short tid in JSON is refused")
	require.Error(t, json.Unmarshal([]byte(`12`), &tid), "a number in JSON is refused")
}

func TestTimes(t *testing.T) {
	for _, c := range []struct {
		name string
		time time.Time
		tid  TID
	}{
		{"the first moment is 1900", time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), 0},
		{"a minute is one in the high half", time.Date(1900, 1, 1, 0, 1, 0, 0, time.UTC), 1 << 32},
		{"half a minute is half of the low half", time.Date(1900, 1, 1, 0, 0, 30, 0, time.UTC), 1 << 31},
		{"a month has 31 days", time.Date(1900, 3, 1, 0, 0, 0, 0, time.UTC), 2 * 31 * 24 * 60 << 32},
		{"another zone is the same moment", time.Date(1900, 1, 1, 1, 1, 0, 0, time.FixedZone("", 3600)), 1 << 32},
		{"a time before 1900 is the first", time.Date(1800, 1, 1, 0, 0, 0, 0, time.UTC), 0},
		{"the year 10000 is after the last", time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), math.MaxUint64},
		{"a time after the last is the last", time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), math.MaxUint64},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.tid, TIDFromTime(c.time))
			if y := c.time.Year(); y >= 1900 && y < 10000 {
				require.True(t, c.time.Equal(c.tid.Time()), c.tid.Time().String())
			}
		})
	}
	require.Equal(t, TID(0), LastTIDBefore(time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)), "nothing is before the first moment")
	require.Equal(t, ^TID(0), LastTIDBefore(time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)))
	require.Equal(t, time.UTC, TID(5).Time().Location())

	march := time.Date(2024, 3, 1, 0, 0, 0, 0, time.UTC)
	require.Equal(t, "2024-02-29T23:59:59.999999986Z", LastTIDBefore(march).Time().Format(time.RFC3339Nano), "not the 31st of February")
	require.True(t, (TIDFromTime(march) - 1).Time().After(march), "whose time is in March")
}

// The step from one tid to the next is 14 ns, a 2^32th of a minute.
func TestTimeAndTIDAgree(t *testing.T) {
	first, last := time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC).Unix(), time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(first+1, last).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC()
		tid := TIDFromTime(at)
		require.False(t, tid.Time().After(at), "rounded down")
		require.Less(t, at.Sub(tid.Time()), 15*time.Nanosecond)
		require.False(t, (tid + 1).Time().Before(at), "the next tid is not earlier")

		before := LastTIDBefore(at)
		require.True(t, before.Time().Before(at))
		require.LessOrEqual(t, before, tid)
		require.LessOrEqual(t, uint64(tid-before), uint64(1)<<32*60*24*4, "nothing lies between")
		if uint32(tid) > 0 {
			require.False(t, (before + 1).Time().Before(at), "the tid after it is not before the moment")
		}
	})
}
