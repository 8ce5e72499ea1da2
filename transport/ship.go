package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// ShipOptions says what to carry where.
type ShipOptions struct {
	Repository incremental.Dir
	Targets    []string // what OpenTarget takes
	Log        *slog.Logger
	// Progress is told of a file's bytes; the name of the target and of the file are given. Calls for one target
	// come one after the other. nil: none.
	Progress func(target, file string, done, total int64)

	open func(ctx context.Context, where string) (Target, error) // in tests
}

// TargetResult says what became of one target.
type TargetResult struct {
	Target     string               `json:"target"`
	Increments []incremental.Stamp  `json:"increments"` // that were published there by this run
	Sent       int64                `json:"sent"`       // bytes of data files that travelled
	Resumed    int64                `json:"resumed"`    // bytes that were there already of a former run
	Standbys   []incremental.Answer `json:"standbys"`
	Error      string               `json:"error,omitempty"`
}

// Ship brings every target up to date with the repository, all at once. The results are in the order of the targets;
// the error joins those of the targets that failed.
func Ship(ctx context.Context, o ShipOptions) ([]TargetResult, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(string, string, int64, int64) {}
	}
	if o.open == nil {
		o.open = OpenTarget
	}
	// What is wrong with the repository or a name is said before anything is sent.
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
	results := make([]TargetResult, len(o.Targets))
	errs := make([]error, len(o.Targets))
	var wg sync.WaitGroup
	for i, where := range o.Targets {
		wg.Go(func() {
			s := &shipment{ShipOptions: o, where: where, repo: repo, chains: chains,
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

// shipment is a run for one target.
type shipment struct {
	ShipOptions
	where  string
	repo   *incremental.Repository
	chains []incremental.Chain
	target Target
	res    TargetResult
}

func (s *shipment) run(ctx context.Context) error {
	h := fnv.New32a()
	h.Write([]byte(s.where))
	lock, err := incremental.LockFile(s.Repository.Path(fmt.Sprintf("zodbrepl.ship-%08x.lock", h.Sum32())), "target "+s.where)
	if err != nil {
		return err
	}
	defer lock.Close()
	if s.target, err = s.open(ctx, s.where); err != nil {
		return err
	}
	defer s.target.Close()
	there, err := s.inspect(ctx)
	if err != nil {
		return err
	}
	for _, c := range s.chains {
		if c.Stamp < there.oldest {
			continue // it was pruned there, or never wanted
		}
		if err := s.chain(ctx, c, there); err != nil {
			return err
		}
	}
	// What is missing here cannot be sent; what is behind it was not.
	if c := s.chains[len(s.chains)-1]; len(c.Problems) > 0 {
		return fault.New(nil, "the newest chain could be sent up to %s only", c.Last().File).Because(c.Problems[0])
	}
	return nil
}

func (s *shipment) chain(ctx context.Context, c incremental.Chain, there *inventory) error {
	var dat bytes.Buffer
	for _, inc := range c.Increments {
		m := inc.Manifest
		if m == nil {
			break // repozo's, in an old chain that zodbrepl never continued
		}
		dat.WriteString(m.DatLine())
		doc, err := m.Encode()
		if err != nil {
			return err
		}
		if there.has(m, doc) {
			continue
		}
		if err := s.data(ctx, inc); err != nil {
			return err
		}
		if err := s.small(ctx, string(c.Stamp)+".dat", dat.Bytes()); err != nil {
			return err
		}
		if err := s.small(ctx, incremental.ManifestName(m.Stamp), doc); err != nil {
			return err
		}
		s.res.Increments = append(s.res.Increments, m.Stamp)
		s.Log.Info("shipped", "target", s.where, "increment", m.File, "position", m.End, "tid", m.LastTID)
	}
	return nil
}

// data sends the stored file of an increment, unless it is there already.
func (s *shipment) data(ctx context.Context, inc incremental.Increment) error {
	m := inc.Manifest
	if _, err := s.repo.VerifyStored(ctx, inc); err != nil {
		return err
	}
	f, err := s.Repository.OpenAt(ctx, m.File)
	if err != nil {
		return err
	}
	defer f.Close()
	sent, err := s.target.Put(ctx, m.File, f, m.StoredSize, func(done, total int64) {
		s.Progress(s.where, m.File, done, total)
	})
	s.res.Sent += sent
	if err != nil {
		return err
	}
	s.res.Resumed += m.StoredSize - sent
	return s.target.Publish(ctx, m.File)
}

func (s *shipment) small(ctx context.Context, name string, content []byte) error {
	if _, err := s.target.Put(ctx, name, bytes.NewReader(content), int64(len(content)), func(int64, int64) {}); err != nil {
		return err
	}
	return s.target.Publish(ctx, name)
}

// inventory is what a target has.
type inventory struct {
	oldest incremental.Stamp // of its chains; "" when it has none
	sizes  map[string]int64
}

// has says whether the increment is there and is the same, as far as sizes tell.
func (v *inventory) has(m *incremental.Manifest, doc []byte) bool {
	data, ok1 := v.sizes[m.File]
	manifest, ok2 := v.sizes[incremental.ManifestName(m.Stamp)]
	return ok1 && ok2 && data == m.StoredSize && manifest == int64(len(doc))
}

// inspect reads what the target has and refuses one that must not be written to.
func (s *shipment) inspect(ctx context.Context) (*inventory, error) {
	entries, err := s.target.List(ctx)
	if err != nil {
		return nil, err
	}
	v := &inventory{sizes: make(map[string]int64)}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			v.sizes[e.Name()] = fi.Size()
		}
	}
	there, err := incremental.Open(ctx, s.target)
	if err != nil {
		return nil, err
	}
	own := s.chains[len(s.chains)-1].Last().Manifest
	mine := make(map[incremental.Stamp]incremental.Stamp) // the chain of each increment
	for _, c := range s.chains {
		for _, inc := range c.Increments {
			mine[inc.Stamp] = c.Stamp
		}
	}
	stamps := there.ManifestStamps()
	for i, stamp := range stamps {
		if mine[stamp] != "" && i < len(stamps)-1 || stamp < s.chains[0].Stamp {
			continue
		}
		m, err := incremental.ReadManifest(ctx, s.target, stamp)
		if err != nil {
			if mine[stamp] != "" {
				continue // it is sent again
			}
			return nil, err
		}
		if err := s.compatible(own, m, mine[stamp] != ""); err != nil {
			return nil, err
		}
	}
	if len(stamps) > 0 {
		if v.oldest = mine[stamps[0]]; v.oldest == "" {
			v.oldest = stamps[0]
		}
	}
	return v, s.answers(ctx, own)
}

// compatible refuses a target whose manifest m shows another history than ours.
func (s *shipment) compatible(own, m *incremental.Manifest, mine bool) error {
	switch {
	case m.Lineage != own.Lineage:
		return fault.New(fault.Diverged, "holds lineage %s (%s of host %s), this repository is of lineage %s", m.Lineage, m.File, m.Host, own.Lineage).
			Keeping("nothing was sent there").Remedy("give every database a target directory of its own")
	case m.Epoch > own.Epoch:
		return s.superseded(m.Lineage, m.Epoch, fmt.Sprintf("%s on %s, written by host %s", m.File, s.where, m.Host))
	case mine || m.Epoch < own.Epoch:
		return nil
	}
	return fault.New(fault.Diverged, "holds %s, written by host %s in this epoch (%d), which this repository does not have", m.File, m.Host, m.Epoch).
		Keeping("nothing was sent there").Remedy("find out which host is the master; one repository feeds one target")
}

// superseded records a higher epoch and refuses.
func (s *shipment) superseded(lineage string, epoch int, where string) error {
	fence := incremental.Fence{Lineage: lineage, Epoch: epoch, Where: where, Seen: time.Now()}
	if err := fence.Raise(s.Repository); err != nil {
		return err
	}
	return fault.New(fault.Refused, "another host was promoted: epoch %d was seen at %s", epoch, where).
		Keeping("nothing was sent there").
		Remedy("stop the ZEO server here; keep this Data.fs, it may hold transactions that the new master lacks; backup refuses from now on")
}

// answers reads what the standbys say that read the target.
func (s *shipment) answers(ctx context.Context, own *incremental.Manifest) error {
	answers, problems, err := incremental.ReadAnswers(ctx, s.target)
	if err != nil {
		return err
	}
	for _, p := range problems {
		s.Log.Warn("a standby's answer cannot be read", "target", s.where, "cause", p)
	}
	for _, a := range answers {
		s.res.Standbys = append(s.res.Standbys, a)
		if a.Lineage == own.Lineage && a.Epoch > own.Epoch {
			return s.superseded(a.Lineage, a.Epoch, fmt.Sprintf("the standby %s on host %s", a.Data, a.Host))
		}
		if a.Condition != "" && a.Condition != "current" {
			s.Log.Warn("a standby does not follow", "target", s.where, "standby", a.Host, "condition", a.Condition, "cause", a.Message)
		}
	}
	return nil
}
