package incremental

import (
	"fmt"
	"os"
	"time"
)

// Stamp names an increment by its time, as repozo does: YYYY-MM-DD-hh-mm-ss in UTC. Stamps sort as strings.
type Stamp string

const stampLayout = "2006-01-02-15-04-05"

// ParseStamp checks that s is a stamp.
func ParseStamp(s string) (Stamp, error) {
	// The length leaves time.Parse no other form to take. A listing asks this of every name.
	if len(s) == len(stampLayout) {
		if _, err := time.Parse(stampLayout, s); err == nil {
			return Stamp(s), nil
		}
	}
	return "", fmt.Errorf("%q is no stamp (YYYY-MM-DD-hh-mm-ss)", s)
}

// StampAt returns the stamp of t.
func StampAt(t time.Time) Stamp { return Stamp(t.UTC().Format(stampLayout)) }

// Time returns the beginning of the second that the stamp names.
func (s Stamp) Time() time.Time {
	t, _ := time.Parse(stampLayout, string(s))
	return t
}

// next returns the stamp for an increment made at now: a second after s when the clock has not got beyond s.
func (s Stamp) next(now time.Time) Stamp {
	if n := StampAt(now); n > s {
		return n
	}
	return StampAt(s.Time().Add(time.Second))
}

// Now returns the time, or what the environment variable ZODBREPL_NOW (RFC 3339) says: for tests.
func Now() (time.Time, error) {
	s := os.Getenv("ZODBREPL_NOW")
	if s == "" {
		return time.Now(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, fmt.Errorf("environment variable ZODBREPL_NOW: %q is no RFC 3339 time", s)
	}
	return t, nil
}
