package incremental

import "strings"

// Names in a repository (the first five are repozo's; ZODB: scripts/repozo.py):
//
//	<stamp>.fs .fsz            a full, plain or gzip'd
//	<stamp>.deltafs .deltafsz  a delta
//	<stamp>.fszst .deltafszst  the same with zstd, which repozo does not see
//	<stamp>.dat                of the full with that stamp: a line for each increment of its chain
//	<stamp>.index              FileStorage's index at that increment; repozo writes it, we leave it alone
//	<stamp>.manifest           of the increment with that stamp
//	zodbrepl.lock              flock'ed by the run that changes the repository
//	zodbrepl.fence             a higher epoch that was seen elsewhere
//	<stamp>.handover           an offer to hand over after that increment; -taken, -withdrawn: what became of it
//	<host>.<hash>.standby      a standby's answer
//	*.tmp                      what a run that died left; the next one removes it
//	*.stale                    what a stale master wrote, set aside; for people to remove
//	*.unpublished              an increment that is not what it should be, set aside; for people to remove
const (
	fullExt        = ".fs"
	deltaExt       = ".deltafs"
	manifestExt    = ".manifest"
	datExt         = ".dat"
	lockName       = "zodbrepl.lock"
	fenceName      = "zodbrepl.fence"
	indexExt       = ".index"
	unpublishedExt = ".unpublished"
)

func fileName(s Stamp, k Kind, c Codec) string {
	if k == Full {
		return string(s) + fullExt + c.Suffix()
	}
	return string(s) + deltaExt + c.Suffix()
}

// dataFile is what the name of a stored increment tells.
type dataFile struct {
	stamp Stamp
	kind  Kind
	codec Codec
	name  string
}

// parseDataName returns what a file name says of an increment; ok is false when it is none.
func parseDataName(name string) (dataFile, bool) {
	s, ok := stampOf(name)
	if !ok {
		return dataFile{}, false
	}
	d := dataFile{stamp: s, name: name}
	rest := name[len(s):]
	if suffix, ok := strings.CutPrefix(rest, fullExt); ok {
		d.kind, rest = Full, suffix
	} else if suffix, ok := strings.CutPrefix(rest, deltaExt); ok {
		d.kind, rest = Delta, suffix
	} else {
		return dataFile{}, false
	}
	for _, d.codec = range codecs {
		if rest == d.codec.Suffix() {
			return d, true
		}
	}
	return dataFile{}, false
}

// stampOf returns the stamp that a name begins with, if it is one of a repository's files.
func stampOf(name string) (Stamp, bool) {
	stem, _, _ := strings.Cut(name, ".")
	s, err := ParseStamp(stem)
	return s, err == nil
}

// isOurs says whether name is one that this package or repozo gives to a finished or set aside file with a stamp.
func isOurs(name string) bool {
	s, ok := stampOf(name)
	if !ok {
		return false
	}
	_, isData := parseDataName(strings.TrimSuffix(name, unpublishedExt))
	switch strings.TrimPrefix(name, string(s)) {
	case manifestExt, datExt, indexExt:
		return true
	}
	return isData
}

// IsNews says whether a file of that name tells a standby something when it appears: an increment, or a handover.
func IsNews(name string) bool {
	s, ok := stampOf(name)
	return ok && (name == ManifestName(s) || name == handoverName(s, Offered))
}

// StampOfData returns the stamp in the name of a stored increment.
func StampOfData(name string) (Stamp, bool) {
	d, ok := parseDataName(name)
	return d.stamp, ok
}

// StampOfManifest returns the stamp in the name of a manifest.
func StampOfManifest(name string) (Stamp, bool) {
	s, ok := stampOf(name)
	return s, ok && name == ManifestName(s)
}
