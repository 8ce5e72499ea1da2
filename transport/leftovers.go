package transport

import (
	"context"
	"io/fs"
	"strings"
	"time"

	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
)

// asideSuffix is what the old file is called for a moment where a server cannot replace it in one step.
const asideSuffix = ".replaced" + durable.TempSuffix

// staleAfter is when a temporary file that is not this repository's is nobody's any more.
const staleAfter = 7 * 24 * time.Hour

// temporary returns the stamp of the increment's file that a temporary file was to become; ok is false for any other.
func temporary(name string) (stamp incremental.Stamp, ok bool) {
	final, ok := strings.CutSuffix(name, asideSuffix)
	if !ok {
		final, ok = strings.CutSuffix(name, durable.TempSuffix)
	}
	stem, kind, _ := strings.Cut(final, ".")
	stamp, err := incremental.ParseStamp(stem)
	sent := kind == "manifest" || kind == "dat" || strings.HasPrefix(kind, "fs") || strings.HasPrefix(kind, "deltafs")
	return stamp, ok && sent && err == nil
}

// sweep removes the temporary files on the target with which no run will go on: those that were there before a run in
// which everything arrived, and those of others that have not been written to for long. A crash leaves some of them, for
// the next sweep. It comes last and hinders nothing.
func (s *shipment) sweep(ctx context.Context, there *inventory) {
	known := s.known()
	for name, written := range there.temps {
		stamp, _ := temporary(name)
		if !known[stamp] && there.newest.Sub(written) < staleAfter {
			continue // perhaps of a new master, which is at work
		}
		if err := s.target.Remove(ctx, name); err != nil {
			s.Log.Warn("a left-over cannot be removed", "target", s.where, "file", name, "cause", err)
			return
		}
		s.Log.Info("a left-over was removed", "target", s.where, "file", name)
	}
}

// note keeps of an entry of the listing what ship needs.
func (v *inventory) note(fi fs.FileInfo) {
	v.sizes[fi.Name()] = fi.Size()
	if fi.ModTime().After(v.newest) {
		v.newest = fi.ModTime()
	}
	if _, ok := temporary(fi.Name()); ok {
		v.temps[fi.Name()] = fi.ModTime()
	}
}
