package restore

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

func TestMoments(t *testing.T) {
	utc := func(y, mo, d, h, mi, s, ns int) time.Time {
		return time.Date(y, time.Month(mo), d, h, mi, s, ns, time.UTC)
	}
	for _, c := range []struct {
		name, text string
		end        time.Time // the first time that is not in it any more
	}{
		{"a day means its end", "2024-03-01", utc(2024, 3, 2, 0, 0, 0, 0)},
		{"a leap day", "2024-02-29", utc(2024, 3, 1, 0, 0, 0, 0)},
		{"the last day of a short month", "2023-02-28", utc(2023, 3, 1, 0, 0, 0, 0)},
		{"the last day of a year", "2024-12-31", utc(2025, 1, 1, 0, 0, 0, 0)},
		{"an hour means its end", "2024-03-01-10", utc(2024, 3, 1, 11, 0, 0, 0)},
		{"the last hour of a day", "2024-02-29-23", utc(2024, 3, 1, 0, 0, 0, 0)},
		{"a minute means its end", "2024-03-01-10-30", utc(2024, 3, 1, 10, 31, 0, 0)},
		{"a second means its end", "2024-03-01-10-30-00", utc(2024, 3, 1, 10, 30, 1, 0)},
		{"the last second of a year", "2024-12-31-23-59-59", utc(2025, 1, 1, 0, 0, 0, 0)},
		{"a time means that nanosecond", "2024-03-01T10:30:00Z", utc(2024, 3, 1, 10, 30, 0, 1)},
		{"a time with a fraction", "2024-03-01T10:30:00.25Z", utc(2024, 3, 1, 10, 30, 0, 250_000_001)},
		{"a time with nine digits", "2024-03-01T10:30:00.123456789Z", utc(2024, 3, 1, 10, 30, 0, 123_456_790)},
		{"an offset to the east", "2024-03-01T12:30:00.25+02:00", utc(2024, 3, 1, 10, 30, 0, 250_000_001)},
		{"an offset over the end of a leap day", "2024-02-29T23:30:00-01:00", utc(2024, 3, 1, 0, 30, 0, 1)},
		{"an offset to the west", "2024-03-01T00:15:00+05:45", utc(2024, 2, 29, 18, 30, 0, 1)},
		{"the first day that has a tid", "1900-01-01", utc(1900, 1, 2, 0, 0, 0, 0)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := ParseMoment(c.text)
			require.NoError(t, err)
			require.True(t, m.TID.Time().Before(c.end), "%s", m)
			require.False(t, (m.TID+1).Time().Before(c.end) && !endOfMonth(c.end), "%s: the next tid is in it too", m)
			require.Equal(t, m.TID.Time(), m.Time)
			require.GreaterOrEqual(t, m.TID, filestorage.TIDFromTime(c.end.Add(-time.Nanosecond)))
			require.Less(t, m.TID, filestorage.TIDFromTime(c.end)+1)
		})
	}
}

// endOfMonth: between the last tid of a short month and the first of the next lie tids that no clock makes.
func endOfMonth(t time.Time) bool { return t.Day() == 1 && t.Hour() == 0 }

// The tids are those that ZODB's TimeStamp gives.
func TestMomentsIncludeTheTransactionsOfThatTime(t *testing.T) {
	for _, c := range []struct {
		text     string
		in, next filestorage.TID
	}{
		{"2024-02-29", 0x03f6df7ffffee861, 0x03f6eac000000000}, // 23:59:59.999, and the next day
		{"2024-03-01-10-30", 0x03f6ed3600000000, 0x03f6ed3700000000},
		{"2024-03-01-10-30-00", 0x03f6ed3600000000, 0x03f6ed3604444445}, // ...44 is from 10:30:00.999999996 to 10:30:01.000000010
		{"2024-03-01-10", 0x03f6ed3700000000, 0x03f6ed5400000000},
		{"2024-03-01T10:30:00Z", 0x03f6ed3600000000, 0x03f6ed36000000c0},
		{"2024-03-01T10:30:00.25+02:00", 0x03f6ecbe01111111, 0x03f6ecbe01111191},
	} {
		m, err := ParseMoment(c.text)
		require.NoError(t, err)
		require.GreaterOrEqual(t, m.TID, c.in, c.text)
		require.Less(t, m.TID, c.next, c.text)
	}
}

func TestMomentsThatAreTids(t *testing.T) {
	for _, s := range []string{"03fb9b4600000000", "0x03fb9b4600000000", "03FB9B4600000000", "0x03FB9B4600000000"} {
		m, err := ParseMoment(s)
		require.NoError(t, err)
		require.EqualValues(t, 0x03fb9b4600000000, m.TID)
	}
	m, err := ParseMoment("")
	require.NoError(t, err)
	require.Equal(t, Moment{}, m)
	require.Equal(t, "the newest moment", m.String())
	m, err = ParseMoment("ffffffffffffffff")
	require.NoError(t, err)
	_, err = m.Time.MarshalJSON()
	require.NoError(t, err)
}

func TestMomentsThatAreNone(t *testing.T) {
	for _, s := range []string{
		" ", "now", "yesterday", "2024", "2024-03", "2024-3-1", "2024-13-01", "2024-00-01", "2024-02-30", "2023-02-29", "2024-03-01-24",
		"2024-03-01-9", "2024-03-01-10-60", "2024-03-01-10-30-60", "2024-03-01-10-30-00-00", "2024-03-01-10-30-00.5", "2024-03-01 ", " 2024-03-01",
		"2024-03-01 10:30:00", "2024-03-01T10:30:00", "2024-03-01T10:30Z", "2024-03-01T9:30:00Z", "2024-03-01T10:30:00,5Z", "2024-03-01T24:00:00Z",
		"2024-03-01T23:59:60Z", "2024-03-01T10:30:00+2:00", "2024-03-01T10:30:00+24:00", "2024-02-30T10:30:00Z", "2024-03-01T10:30:00Z ",
		"03fb9b460000000", "03fb9b46000000000", "0x03fb9b460000000", "03fb9b46000000zz", "+3fb9b4600000000", "03fb_9b460000000", "0x0x03fb9b46000000",
		"0000000000000000", "0x0000000000000000", "１２３４-03-01", "2024-03-01\x00",
		// Before tids begin: 0 would mean the newest.
		"1899-12-31", "0001-01-01", "1899-12-31-23-59-59", "1899-12-31T23:59:59Z", "1900-01-01T00:00:00+01:00", "1900-01-01T00:00:00Z",
	} {
		m, err := ParseMoment(s)
		require.ErrorIs(t, err, fault.Usage, "%q was taken for %s", s, m)
		require.NotEmpty(t, fault.Next(err))
		require.Zero(t, m)
	}
}

func FuzzParseMoment(f *testing.F) {
	for _, s := range []string{"", "03fb9b4600000000", "0x03fb9b4600000000", "2024-03-01", "2024-03-01-10-30", "2024-03-01-10-30-59", "2024-02-29T10:30:00.25+02:00",
		"1899-12-31", "9999-12-31", "1900-01-01T00:00:00Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMoment(s)
		if err != nil {
			require.ErrorIs(t, err, fault.Usage)
			require.Zero(t, m)
			return
		}
		require.Equal(t, s == "", m.TID == 0, "0 is the newest moment")
		if s == "" {
			return
		}
		require.Equal(t, m.TID.Time(), m.Time)
		again, err := ParseMoment(m.TID.String())
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}
