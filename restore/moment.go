package restore

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// Moment is a point in a database's history: every transaction up to TID, included, has happened.
type Moment struct {
	TID  filestorage.TID `json:"tid"`  // 0: the newest there is
	Time time.Time       `json:"time"` // for people; of the tid
}

// ParseMoment reads what --at takes:
//
//	a tid                       16 hexadecimal digits, with or without 0x
//	an RFC 3339 time            2024-03-01T10:30:00Z, 2024-03-01T12:30:00.25+02:00
//	repozo's date, in UTC       2024-03-01[-10[-30[-00]]]: the end of that day, hour, minute or second
//
// "" is the newest moment there is.
func ParseMoment(s string) (Moment, error) {
	if s == "" {
		return Moment{}, nil
	}
	if digits := strings.TrimPrefix(s, "0x"); len(digits) == 16 && !strings.Contains(s, "-") {
		tid, err := filestorage.ParseTID(s)
		if err == nil && tid == 0 {
			err = fmt.Errorf("tid 0 is before every transaction")
		}
		if err != nil {
			return Moment{}, badMoment(s, err)
		}
		return momentAt(tid), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil && rfc3339().MatchString(s) {
		return momentBefore(s, t.Add(1)) // tids are exact to the nanosecond below
	}
	for _, p := range []struct {
		layout string
		end    func(time.Time) time.Time
	}{
		{"2006-01-02", func(t time.Time) time.Time { return t.AddDate(0, 0, 1) }},
		{"2006-01-02-15", func(t time.Time) time.Time { return t.Add(time.Hour) }},
		{"2006-01-02-15-04", func(t time.Time) time.Time { return t.Add(time.Minute) }},
		{"2006-01-02-15-04-05", func(t time.Time) time.Time { return t.Add(time.Second) }},
	} {
		if t, err := time.Parse(p.layout, s); err == nil && t.Format(p.layout) == s {
			return momentBefore(s, p.end(t))
		}
	}
	return Moment{}, badMoment(s, fmt.Errorf("neither a tid nor a time"))
}

// rfc3339 refuses what time.Parse takes besides: an hour of one digit, a comma, an offset of a day.
var rfc3339 = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)
})

// momentBefore is the last moment before t, which s tells.
func momentBefore(s string, t time.Time) (Moment, error) {
	tid := filestorage.LastTIDBefore(t)
	if tid == 0 { // which would mean the newest
		return Moment{}, badMoment(s, fmt.Errorf("no transaction is as old: tids begin in 1900"))
	}
	return momentAt(tid), nil
}

func momentAt(tid filestorage.TID) Moment { return Moment{TID: tid, Time: tid.Time()} }

func badMoment(s string, err error) error {
	return fault.New(fault.Usage, "moment %q", s).Because(err).
		Keeping("nothing was written").
		Remedy("give a tid (16 hexadecimal digits), a time such as 2024-03-01T10:30:00Z, or a date in UTC such as 2024-03-01 or 2024-03-01-10-30")
}

func (m Moment) String() string {
	if m.TID == 0 {
		return "the newest moment"
	}
	return fmt.Sprintf("transaction %s (%s)", m.TID, m.Time.Format(time.RFC3339Nano))
}
