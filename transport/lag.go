package transport

import (
	"time"

	"zodbrepl/incremental"
)

// lagLimit is how long an increment may wait on the target until ship says so: a standby looks every few seconds, and
// a full takes its time.
const lagLimit = 10 * time.Minute

// Lag says what a standby had still to apply of what the target had before this run.
type Lag struct {
	Host       string    `json:"host"`
	Data       string    `json:"data"`
	Increments int       `json:"increments"`
	Since      time.Time `json:"since"` // when the oldest of them was made
}

// lag compares an answer with what is on the target. A standby takes its way through the newest chain.
func (s *shipment) lag(a incremental.Answer, v *inventory) (l Lag, behind bool) {
	l = Lag{Host: a.Host, Data: a.Data}
	for i := len(s.chains) - 1; i >= 0 && l.Increments == 0; i-- {
		there := false
		for _, inc := range s.chains[i].Increments {
			m := inc.Manifest
			if m == nil || !s.looksSame(m, v) {
				continue
			}
			there = true
			if m.Stamp > a.Stamp {
				if l.Increments++; l.Increments == 1 {
					l.Since = m.Created
				}
			}
		}
		if there {
			break
		}
	}
	return l, l.Increments > 0
}

func (s *shipment) tellLag(a incremental.Answer, v *inventory) {
	l, behind := s.lag(a, v)
	if !behind {
		return
	}
	s.res.Lags = append(s.res.Lags, l)
	if waits := time.Since(l.Since); waits > lagLimit && (a.Condition == "" || a.Condition == "current") {
		s.Log.Warn("a standby lags: is watch running there?", "target", s.where, "standby", a.Host, "increments", l.Increments,
			"waiting", waits.Round(time.Second), "applied", a.Stamp, "tid", a.LastTID)
	}
}
