package transport

import (
	"time"

	"zodbrepl/incremental"
)

// ShipProgress says how a target comes on.
type ShipProgress struct {
	Target      string
	File        string // that is on its way
	Done, Total int64  // bytes of it
	Files       int    // that are still to come, this one included
	// RunDone and RunTotal count the bytes of all data files that the target lacked when the run began.
	RunDone, RunTotal int64
}

// plan is what a target lacks.
type plan struct {
	files       int
	sent, total int64
	logged      time.Time
}

func (s *shipment) makePlan(there *inventory) {
	s.plan.logged = time.Now()
	for _, c := range s.chains {
		for _, inc := range c.Increments {
			if m := inc.Manifest; m != nil && c.Stamp >= there.oldest && !(there.sizes[m.File] == m.StoredSize && s.looksSame(m, there)) {
				s.plan.files++
				s.plan.total += m.StoredSize
			}
		}
	}
}

func (p *plan) done(m *incremental.Manifest) {
	p.files--
	p.sent += m.StoredSize
}

// logEvery is how often a file that takes long is told in the log.
const logEvery = 30 * time.Second

// tell passes on how a file comes on, and writes a line about it now and then.
func (s *shipment) tell(file string, done, total int64) {
	p := ShipProgress{Target: s.where, File: file, Done: done, Total: total, Files: s.plan.files,
		RunDone: s.plan.sent + done, RunTotal: s.plan.total}
	s.Progress(p)
	if now := time.Now(); now.Sub(s.plan.logged) >= logEvery {
		s.plan.logged = now
		s.Log.Info("sending", "target", s.where, "increment", file, "done", done, "of", total, "files", p.Files)
	}
}
