package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// ShipOptions says what to carry where.
type ShipOptions struct {
	Repository incremental.Dir
	Targets    []string // what OpenTarget takes
	Options    TargetOptions
	Log        *slog.Logger
	// Progress is told how a target comes on. Calls for one target come one after the other. nil: none.
	Progress func(ShipProgress)

	open func(ctx context.Context, where string) (Target, error) // in tests
}

// TargetResult says what became of one target.
type TargetResult struct {
	Target     string               `json:"target"`
	Increments []incremental.Stamp  `json:"increments"` // that were published there by this run
	Sent       int64                `json:"sent"`       // bytes of data files that travelled
	Resumed    int64                `json:"resumed"`    // bytes that were there already of a former run
	Standbys   []incremental.Answer `json:"standbys"`
	Lags       []Lag                `json:"lags,omitempty"` // of the standbys
	Error      string               `json:"error,omitempty"`
}

// Ship brings every target up to date with the repository, all at once. The results are in the order of the targets;
// the error joins those of the targets that failed.
func Ship(ctx context.Context, o ShipOptions) ([]TargetResult, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(ShipProgress) {}
	}
	// What is wrong with the repository or a name is said before anything is sent.
	if o.open == nil {
		o.Options.Log = o.Log
		o.open = func(ctx context.Context, where string) (Target, error) { return OpenTarget(ctx, where, o.Options) }
		for _, where := range o.Targets {
			if err := checkPlace(o.Repository, where); err != nil {
				return nil, err
			}
		}
	}
	repo, err := incremental.Open(ctx, o.Repository)
	if err != nil {
		return nil, err
	}
	chains, others, err := repo.Chains(ctx)
	if err != nil {
		return nil, err
	}
	if err := shippable(o.Repository, chains, others); err != nil {
		return nil, err
	}
	epoch, branch, err := ownEpoch(o.Repository, chains)
	if err != nil {
		return nil, err
	}
	results := make([]TargetResult, len(o.Targets))
	errs := make([]error, len(o.Targets))
	var wg sync.WaitGroup
	var fence sync.Mutex
	for i, where := range o.Targets {
		wg.Go(func() {
			s := &shipment{ShipOptions: o, where: where, repo: repo, chains: chains, others: others, fence: &fence, epoch: epoch, branch: branch,
				res: TargetResult{Target: where, Increments: []incremental.Stamp{}, Standbys: []incremental.Answer{}}}
			if errs[i] = s.run(ctx); errs[i] != nil {
				s.res.Error = errs[i].Error()
				errs[i] = fault.New(nil, "ship to %s", where).Because(errs[i])
			}
			results[i] = s.res
		})
	}
	wg.Wait()
	return results, errors.Join(errs...)
}

func shippable(dir incremental.Dir, chains []incremental.Chain, others []incremental.Problem) error {
	if len(chains) == 0 {
		e := fault.New(fault.Gap, "repository %s holds nothing to ship", dir).Remedy("make an increment: zodbrepl backup")
		if len(others) > 0 {
			e = e.Because(others[0])
		}
		return e
	}
	newest := chains[len(chains)-1]
	if newest.Last().Manifest == nil {
		return fault.New(fault.Gap, "repository %s: %s has no manifest, repozo wrote it", dir, newest.Last().File).
			Keeping("nothing was sent").Remedy("run zodbrepl backup once: it verifies repozo's increments and writes their manifests")
	}
	return nil
}

// checkPlace refuses a name that OpenTarget cannot understand, and the repository itself.
func checkPlace(dir incremental.Dir, where string) error {
	p, err := parse(where)
	if err != nil {
		return err
	}
	from, err1 := os.Stat(string(dir))
	to, err2 := os.Stat(p.dir)
	if err1 == nil && err2 == nil && os.SameFile(from, to) {
		return fault.New(fault.Usage, "target %s is the repository itself", where).
			Keeping("nothing was sent").Remedy("give a directory on another host, or at least on another disk")
	}
	return nil
}

// ownEpoch is the epoch of whoever backs up into the repository, and the promotions that led to it: that of its newest
// increment, or the higher one of a node that was promoted and has written nothing since. It refuses when the repository knows of a higher epoch of another
// host's: what it holds is a stale master's then.
func ownEpoch(dir incremental.Dir, chains []incremental.Chain) (int, incremental.Branch, error) {
	fence, err := incremental.ReadFence(context.Background(), dir)
	if err != nil {
		return 0, nil, err
	}
	own := chains[len(chains)-1].Last().Manifest
	switch {
	case fence.Epoch <= own.Epoch || fence.Lineage != own.Lineage:
		return own.Epoch, own.Promotions, nil
	case fence.Own:
		return fence.Epoch, fence.Branch(own), nil
	}
	return 0, nil, superseded(fence.Epoch, fence.Where)
}

// shipment is a run for one target.
type shipment struct {
	ShipOptions
	where  string
	repo   *incremental.Repository
	chains []incremental.Chain
	others []incremental.Problem // what belongs to no chain
	fence  *sync.Mutex           // guards the repository's fence among the targets
	epoch  int                   // of whoever backs up into the repository
	branch incremental.Branch    // the promotions that led to that
	target Target
	res    TargetResult
	plan   plan
	// strays are what a stale master wrote there; fenced is the epoch of the fence there.
	strays []incremental.Stamp
	fenced int
}

func (s *shipment) run(ctx context.Context) error {
	h := fnv.New32a()
	h.Write([]byte(TargetName(s.where)))
	name := s.Repository.Path(fmt.Sprintf("zodbrepl.ship-%08x.lock", h.Sum32()))
	_, err := os.Lstat(name)
	first := errors.Is(err, fs.ErrNotExist) // no run has shipped there before
	lock, err := incremental.LockFile(name, "target "+s.where)
	if err != nil {
		return err
	}
	defer lock.Close()
	if s.target, err = s.open(ctx, s.where); err != nil {
		return err
	}
	defer s.target.Close()
	defer s.tellUndurable(first)
	there, err := s.inspect(ctx)
	if err != nil {
		return err
	}
	s.makePlan(there)
	for _, c := range s.chains {
		if c.Stamp < there.oldest {
			continue // it was pruned there, or never wanted
		}
		if err := s.chain(ctx, c, there); err != nil {
			return err
		}
	}
	if err := s.incomplete(); err != nil {
		return err
	}
	s.sweep(ctx, there)
	return nil
}

// tellUndurable says when the target cannot make files durable: as a warning once, since cron mails each, and to who
// wants to know all.
func (s *shipment) tellUndurable(first bool) {
	t, ok := s.target.(interface{ Durable() bool })
	if !ok || t.Durable() {
		return
	}
	level := slog.LevelInfo
	if first {
		level = slog.LevelWarn
	}
	s.Log.Log(context.Background(), level, "this server cannot make files durable (no fsync@openssh.com): what arrived last may be lost when the power fails there",
		"target", s.where)
}

// incomplete reports what could not be sent because it is missing or damaged here. What hinders no recovery of the
// newest state is only logged.
func (s *shipment) incomplete() error {
	newest := s.chains[len(s.chains)-1]
	var problems []incremental.Problem
	for _, c := range s.chains {
		problems = append(problems, c.Problems...)
	}
	problems = append(problems, s.others...)
	for _, p := range problems {
		// A stale master's increments are no part of the history; older chains have been replaced.
		if errors.Is(p, fault.Refused) || stampOf(p) < newest.Stamp {
			s.Log.Warn("not sent", "target", s.where, "increment", p.File, "cause", p.Err)
			continue
		}
		return fault.New(nil, "everything up to %s is there; what follows could not be sent", newest.Last().File).Because(p)
	}
	return nil
}

// stampOf returns the stamp of the file that a problem is about.
func stampOf(p incremental.Problem) incremental.Stamp {
	stem, _, _ := strings.Cut(p.File, ".")
	return incremental.Stamp(stem)
}

// chain sends what the target lacks of a chain. The .dat there lists, at any time, only what is there whole.
func (s *shipment) chain(ctx context.Context, c incremental.Chain, there *inventory) error {
	var incs []incremental.Increment
	for _, inc := range c.Increments {
		if inc.Manifest == nil {
			break // repozo's, in an old chain that zodbrepl never continued
		}
		incs = append(incs, inc)
	}
	if len(incs) == 0 {
		return nil
	}
	have := make([]bool, len(incs))
	for i, inc := range incs {
		have[i] = there.sizes[inc.File] == inc.Manifest.StoredSize && s.looksSame(inc.Manifest, there)
	}
	name := string(c.Stamp) + ".dat"
	sentDat := false
	for i, inc := range incs {
		if have[i] {
			continue
		}
		if err := s.data(ctx, inc, there); err != nil {
			return err
		}
		s.plan.done(inc.Manifest)
		have[i], sentDat = true, true
		if err := s.small(ctx, name, dat(incs, have)); err != nil {
			return err
		}
		if err := s.manifest(ctx, inc.Stamp); err != nil {
			return err
		}
		s.res.Increments = append(s.res.Increments, inc.Stamp)
		s.Log.Info("shipped", "target", s.where, "increment", inc.File, "position", inc.End, "tid", inc.Manifest.LastTID)
	}
	if lines := dat(incs, have); !sentDat && there.sizes[name] != int64(len(lines)) {
		return s.small(ctx, name, lines)
	}
	return nil
}

// dat returns repozo's .dat for those increments of a chain that are there.
func dat(incs []incremental.Increment, there []bool) []byte {
	var b bytes.Buffer
	for i, inc := range incs {
		if there[i] {
			b.WriteString(inc.Manifest.DatLine())
		}
	}
	return b.Bytes()
}

// data brings the stored file of an increment to the target. A run that died after it was published has left it
// there without its manifest: then it is compared by its hash, not sent.
func (s *shipment) data(ctx context.Context, inc incremental.Increment, there *inventory) error {
	m := inc.Manifest
	if there.sizes[m.File] == m.StoredSize {
		_, err := there.repo.VerifyStored(ctx, inc)
		if err == nil {
			s.res.Resumed += m.StoredSize
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		s.Log.Warn("a file on the target is not what it should be: it is sent again", "target", s.where, "increment", m.File, "cause", err)
	}
	if _, err := s.repo.VerifyStored(ctx, inc); err != nil {
		return err
	}
	f, err := s.Repository.OpenAt(ctx, m.File)
	if err != nil {
		return err
	}
	defer f.Close()
	sent, err := s.target.Put(ctx, m.File, f, m.StoredSize, func(done, total int64) {
		s.tell(m.File, done, total)
	})
	s.res.Sent += sent
	if err != nil {
		return err
	}
	s.res.Resumed += max(0, m.StoredSize-sent) // after a cut, more than all of it may have travelled
	return publish(ctx, s.target, m.File)
}

// manifest brings the manifest of an increment to the target, as it is here: with many blobs it is long.
func (s *shipment) manifest(ctx context.Context, stamp incremental.Stamp) error {
	name := incremental.ManifestName(stamp)
	f, err := s.Repository.OpenAt(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := s.target.Put(ctx, name, f, fi.Size(), nil); err != nil {
		return err
	}
	return publish(ctx, s.target, name)
}

func (s *shipment) small(ctx context.Context, name string, content []byte) error {
	return WriteFile(ctx, s.target, name, content)
}
