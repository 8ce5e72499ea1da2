package incremental

import (
	"context"
	"io/fs"
	"slices"

	"zodbrepl/internal/fault"
)

// Repository is what a listing of a repository showed. It reads manifests when they are asked for and keeps them.
type Repository struct {
	// Jobs is how many pieces of an increment are decoded at once; 0: as many as there are cores.
	Jobs int

	src       Source
	names     []string
	sets      []*fileSet // by stamp, ascending
	manifests map[Stamp]*Manifest
	dats      map[Stamp]datFile
}

// datFile is what reading a .dat gave.
type datFile struct {
	lines []datLine
	torn  bool
	err   error
}

// fileSet is the files with one stamp.
type fileSet struct {
	stamp     Stamp
	data      []dataFile // more than one is a fault
	irregular string     // name of a directory, link or the like in the place of a file
	manifest  bool
	dat       bool
}

// Increment is a published increment: one with a manifest, or one that repozo wrote in its .dat.
type Increment struct {
	Stamp      Stamp
	Kind       Kind
	File       string
	Start, End int64  // positions
	MD5        string // of the raw bytes
	// Manifest is nil for an increment that repozo wrote.
	Manifest *Manifest

	codec Codec
}

// Codec returns the name of the increment's codec.
func (i Increment) Codec() string { return i.codec.Name() }

// Chain is a full and the deltas that continue it, as far as they do.
type Chain struct {
	Stamp      Stamp
	Increments []Increment // contiguous; the first is the full
	// Problems tells what is wrong with the chain, in order. An increment behind a gap is not in Increments.
	Problems []Problem
}

// End returns the position after the chain's last increment.
func (c Chain) End() int64 { return c.Last().End }

// Last returns the chain's last increment.
func (c Chain) Last() Increment { return c.Increments[len(c.Increments)-1] }

// Problem is something wrong in a repository, with the file that it is about. Err is of a kind of package fault.
type Problem struct {
	File string
	Err  error
}

func (p Problem) Error() string { return p.File + ": " + p.Err.Error() }

// Unwrap returns the cause.
func (p Problem) Unwrap() error { return p.Err }

// Open lists the repository in src.
func Open(ctx context.Context, src Source) (*Repository, error) {
	entries, err := src.List(ctx)
	if err != nil {
		return nil, err
	}
	r := &Repository{src: src, manifests: make(map[Stamp]*Manifest), dats: make(map[Stamp]datFile)}
	byStamp := make(map[Stamp]*fileSet)
	for _, e := range entries {
		r.names = append(r.names, e.Name())
		s, ok := stampOf(e.Name())
		if !ok {
			continue
		}
		set := byStamp[s]
		if set == nil {
			set = &fileSet{stamp: s}
			byStamp[s] = set
			r.sets = append(r.sets, set)
		}
		set.add(e)
	}
	slices.SortFunc(r.sets, func(a, b *fileSet) int { return compareStamps(a.stamp, b.stamp) })
	return r, nil
}

func compareStamps(a, b Stamp) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (s *fileSet) add(e fs.DirEntry) {
	name := e.Name()
	d, isData := parseDataName(name)
	switch {
	case isData && !e.Type().IsRegular():
		s.irregular = name
		s.data = append(s.data, d)
	case isData:
		s.data = append(s.data, d)
	case name == ManifestName(s.stamp):
		s.manifest = true
	case name == string(s.stamp)+datExt:
		s.dat = true
	}
}

// Source returns where the repository is.
func (r *Repository) Source() Source { return r.src }

// ManifestStamps returns the stamps of all manifests, oldest first.
func (r *Repository) ManifestStamps() []Stamp {
	var stamps []Stamp
	for _, s := range r.sets {
		if s.manifest {
			stamps = append(stamps, s.stamp)
		}
	}
	return stamps
}

// lastStamp returns the greatest stamp of any file, "" when there is none.
func (r *Repository) lastStamp() Stamp {
	if len(r.sets) == 0 {
		return ""
	}
	return r.sets[len(r.sets)-1].stamp
}

// full returns the position in sets of the full that the set at i belongs to, -1 when there is none.
func (r *Repository) full(i int) int {
	for ; i >= 0; i-- {
		if r.sets[i].isFull() {
			return i
		}
	}
	return -1
}

func (s *fileSet) isFull() bool { return len(s.data) > 0 && s.data[0].kind == Full }

// manifest reads the manifest of a set once.
func (r *Repository) manifest(ctx context.Context, s Stamp) (*Manifest, error) {
	if m := r.manifests[s]; m != nil {
		return m, nil
	}
	m, err := ReadManifest(ctx, r.src, s)
	if err != nil {
		return nil, err
	}
	r.manifests[s] = m
	return m, nil
}

// dat reads the .dat of a chain once.
func (r *Repository) dat(ctx context.Context, full Stamp) (lines []datLine, torn bool, err error) {
	d, ok := r.dats[full]
	if !ok {
		d.lines, d.torn, d.err = readDat(ctx, r.src, full)
		if ctx.Err() == nil {
			r.dats[full] = d
		}
	}
	return d.lines, d.torn, d.err
}

// Chains reads every manifest and .dat and returns the chains, oldest first. What is wrong with a chain is among
// its problems; what belongs to no chain is among the others. err is for what hinders the reading itself.
func (r *Repository) Chains(ctx context.Context) (chains []Chain, others []Problem, err error) {
	for i := 0; i < len(r.sets); {
		if !r.sets[i].isFull() {
			others = append(others, r.stray(r.sets[i])...)
			i++
			continue
		}
		end := i + 1
		for end < len(r.sets) && !r.sets[end].isFull() {
			end++
		}
		c, err := r.chain(ctx, r.sets[i:end])
		if err != nil {
			return nil, nil, err
		}
		if len(c.Increments) > 0 {
			chains = append(chains, c)
		} else {
			others = append(others, c.Problems...)
		}
		i = end
	}
	return chains, others, nil
}

func (r *Repository) stray(s *fileSet) (ps []Problem) {
	for _, d := range s.data {
		ps = append(ps, Problem{d.name, fault.New(fault.Gap, "a delta without a full before it")})
	}
	if len(s.data) == 0 && s.manifest {
		ps = append(ps, Problem{ManifestName(s.stamp), fault.New(fault.Gap, "a manifest without its increment")})
	}
	return ps
}

// chain puts together the chain of the full in sets[0].
func (r *Repository) chain(ctx context.Context, sets []*fileSet) (Chain, error) {
	c := Chain{Stamp: sets[0].stamp}
	lines, _, err := r.dat(ctx, c.Stamp)
	if err != nil {
		if ctx.Err() != nil {
			return c, err
		}
		c.Problems = append(c.Problems, Problem{string(c.Stamp) + datExt, err})
	}
	listed := make(map[string]datLine, len(lines))
	for _, l := range lines {
		listed[l.file] = l
	}
	seen := make(map[string]bool)
	broken := false
	epoch := 0
	for _, s := range sets {
		if len(s.data) == 0 {
			c.Problems = append(c.Problems, r.stray(s)...)
			continue
		}
		for _, d := range s.data {
			seen[d.name] = true
		}
		inc, published, err := r.increment(ctx, s, listed)
		if err != nil {
			if ctx.Err() != nil {
				return c, err
			}
			c.Problems = append(c.Problems, Problem{s.data[0].name, err})
			broken = true
			continue
		}
		if !published {
			continue
		}
		if inc.Manifest != nil && inc.Manifest.Epoch < epoch {
			c.Problems = append(c.Problems, Problem{inc.File, staleErr(inc, epoch)})
			continue
		}
		if err := c.follows(inc, broken); err != nil {
			c.Problems = append(c.Problems, Problem{inc.File, err})
			broken = true
			continue
		}
		if inc.Manifest != nil {
			epoch = inc.Manifest.Epoch
		}
		c.Increments = append(c.Increments, inc)
	}
	for _, l := range lines {
		if !seen[l.file] {
			c.Problems = append(c.Problems, Problem{l.file, fault.New(fault.Gap, "missing, although %s%s lists it (positions %d to %d)", c.Stamp, datExt, l.start, l.end).
				Remedy("bring the file back from a copy of the repository, or make a new full")})
		}
	}
	return c, nil
}

func staleErr(inc Increment, epoch int) error {
	return fault.New(fault.Refused, "written in epoch %d, after a promotion to epoch %d: a stale master wrote it", inc.Manifest.Epoch, epoch).
		Keeping("it is ignored").Remedy("stop backups on the former master")
}

// follows says why inc does not continue the chain.
func (c *Chain) follows(inc Increment, broken bool) error {
	if len(c.Increments) == 0 {
		if inc.Kind == Full {
			return nil
		}
		return fault.New(fault.Gap, "its full %s cannot be used", c.Stamp)
	}
	last := c.Last()
	switch {
	case inc.Manifest != nil && inc.Manifest.Chain != c.Stamp:
		return fault.New(fault.Gap, "continues the chain %s, whose full is not here", inc.Manifest.Chain)
	case inc.Start > last.End && broken:
		return fault.New(fault.Gap, "starts at %d, behind the broken increment; the chain is whole up to %d", inc.Start, last.End)
	case inc.Start > last.End:
		return fault.New(fault.Gap, "starts at %d, but the chain ends at %d: %d bytes are missing between", inc.Start, last.End, inc.Start-last.End)
	case inc.Start < last.End:
		return fault.New(fault.Gap, "starts at %d, but the chain has come to %d already: they overlap", inc.Start, last.End)
	case inc.Manifest != nil && last.Manifest != nil && inc.Manifest.Lineage != last.Manifest.Lineage:
		return fault.New(fault.Diverged, "of lineage %s, the chain is of %s", inc.Manifest.Lineage, last.Manifest.Lineage)
	case inc.Manifest != nil && last.Manifest != nil && inc.Manifest.Previous != last.Stamp:
		return fault.New(fault.Gap, "continues the increment %s, but the one before it is %s", inc.Manifest.Previous, last.Stamp)
	}
	return nil
}

// increment makes one of a set with a data file. published is false when neither a manifest nor the .dat knows it,
// and for repozo's deltas of no bytes.
func (r *Repository) increment(ctx context.Context, s *fileSet, listed map[string]datLine) (inc Increment, published bool, err error) {
	if s.irregular != "" {
		return inc, false, fault.New(fault.Unverified, "%s is not a regular file", s.irregular).
			Remedy("put the increment itself in its place")
	}
	if len(s.data) > 1 {
		return inc, false, fault.New(fault.Unverified, "%d increments with one stamp: %s and %s", len(s.data), s.data[0].name, s.data[1].name).
			Remedy("remove the one that is not in %s", datExt)
	}
	d := s.data[0]
	line, inDat := listed[d.name]
	if !s.manifest {
		inc = Increment{Stamp: s.stamp, Kind: d.kind, File: d.name, Start: line.start, End: line.end, MD5: line.md5, codec: d.codec}
		return inc, inDat && (line.end > line.start), nil
	}
	m, err := r.manifest(ctx, s.stamp)
	if err != nil {
		return inc, false, err
	}
	if m.File != d.name {
		return inc, false, fault.New(fault.Unverified, "the manifest is of %s", m.File)
	}
	if inDat && (line.start != m.Start || line.end != m.End || line.md5 != m.MD5) {
		return inc, false, fault.New(fault.Unverified, "the manifest (%d to %d, md5 %s) and the .dat (%d to %d, md5 %s) contradict each other",
			m.Start, m.End, m.MD5, line.start, line.end, line.md5)
	}
	return incrementOf(m, d.codec), true, nil
}

func incrementOf(m *Manifest, codec Codec) Increment {
	return Increment{Stamp: m.Stamp, Kind: m.Kind, File: m.File, Start: m.Start, End: m.End, MD5: m.MD5, Manifest: m, codec: codec}
}

// Increment makes an Increment of a manifest that came from elsewhere.
func (m *Manifest) Increment() (Increment, error) {
	codec, err := CodecByName(m.Codec)
	return incrementOf(m, codec), err
}
