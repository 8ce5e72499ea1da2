package incremental

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// VerifyOptions says how thoroughly.
type VerifyOptions struct {
	// Quick checks stored sizes and SHA-256 only, without decoding.
	Quick    bool
	Jobs     int      // pieces that are decoded at once; 0: as many as there are cores
	Progress Progress // raw bytes, or stored increments when Quick; nil: none
}

// VerifyResult is what Verify found. Every chain is checked; what could not be is in NotChecked.
type VerifyResult struct {
	Repository string        `json:"repository"`
	Quick      bool          `json:"quick"`
	Chains     []ChainResult `json:"chains"`
	// Problems are those that belong to no increment: gaps, strays, what a .dat lists and is not there.
	Problems    []string `json:"problems"`
	Warnings    []string `json:"warnings"`
	NotChecked  []string `json:"not_checked"`
	Unpublished []string `json:"unpublished"` // written by a run that died, or being written now
	OK          bool     `json:"ok"`
}

// ChainResult is the part of VerifyResult about a chain.
type ChainResult struct {
	Chain      Stamp             `json:"chain"`
	Increments []IncrementResult `json:"increments"`
}

// IncrementResult is the part about an increment. Problem is empty when it is good.
type IncrementResult struct {
	Stamp   Stamp  `json:"stamp"`
	File    string `json:"file"`
	Start   int64  `json:"start"`
	End     int64  `json:"end"`
	Checked bool   `json:"checked"`
	Problem string `json:"problem,omitempty"`
}

// Verify checks a repository and changes nothing. The error is nil only when all is good; its kind is that of the
// first problem. The result is complete in both cases.
func Verify(ctx context.Context, src Source, o VerifyOptions) (VerifyResult, error) {
	res := VerifyResult{Repository: src.String(), Quick: o.Quick,
		Chains: []ChainResult{}, Problems: []string{}, Warnings: []string{}, NotChecked: []string{}, Unpublished: []string{}}
	repo, err := Open(ctx, src)
	if err != nil {
		return res, err
	}
	chains, others, err := repo.Chains(ctx)
	if err != nil {
		return res, err
	}
	v := &verifier{VerifyOptions: o, repo: repo, res: &res, crew: newCrew(jobs(o.Jobs, verifyJobs))}
	for _, c := range chains {
		v.total += c.End()
	}
	v.problems(others)
	for _, c := range chains {
		if err := v.chain(ctx, c); err != nil {
			return res, err
		}
		v.problems(c.Problems)
	}
	if found := repo.families(); len(found) > 1 {
		res.Warnings = append(res.Warnings, fmt.Sprintf("it holds increments both of zstd (%s) and of repozo's codecs (%s): repozo takes no notice of the former, and backup adds to neither",
			found[zstdFamily], found[repozoFamily]))
	}
	for _, name := range repo.names {
		if isOurs(name) && strings.HasSuffix(name, unpublishedExt) {
			res.Warnings = append(res.Warnings, name+": set aside by a backup, as it fitted nowhere; remove it when you are sure that nobody needs it")
		}
	}
	unpublished, err := repo.Unpublished(ctx)
	if err != nil {
		v.problems([]Problem{{src.String(), err}})
	}
	res.Unpublished = append(res.Unpublished, unpublished...)
	if v.first != nil {
		return res, fault.New(nil, "repository %s: %d found; the first", src, v.count).Because(v.first)
	}
	if len(chains) == 0 {
		return res, fault.New(fault.Gap, "repository %s holds no increment", src).Remedy("make one: zodbrepl backup")
	}
	res.OK = true
	return res, nil
}

type verifier struct {
	VerifyOptions
	repo  *Repository
	res   *VerifyResult
	first error
	count int
	crew  *crew

	mu    sync.Mutex // guards done
	done  int64
	total int64
}

func (v *verifier) fail(err error) {
	if v.first == nil {
		v.first = err
	}
	v.count++
}

func (v *verifier) problems(ps []Problem) {
	for _, p := range ps {
		v.fail(p)
		v.res.Problems = append(v.res.Problems, p.Error())
	}
}

// visit is an increment that is being read in a goroutine.
type visit struct {
	Increment
	done    chan struct{} // closed when the following are set
	checked bool
	check   *filestorage.Checker
	tail    *TailKeeper
	err     error
}

// chain reads the increments of a chain, several at once, and judges them in order.
func (v *verifier) chain(ctx context.Context, c Chain) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := make(chan *visit, v.crew.size)
	go func() {
		defer close(read)
		for _, inc := range c.Increments {
			r := &visit{Increment: inc, done: make(chan struct{}), checked: true}
			hands := v.crew.hire(r.End - r.Start)
			go func() {
				defer close(r.done)
				defer v.crew.release(hands)
				v.read(ctx, r, hands)
			}()
			read <- r
		}
	}()
	cr := ChainResult{Chain: c.Stamp, Increments: []IncrementResult{}}
	judge := judge{verifier: v, tail: &TailKeeper{}}
	for r := range read {
		<-r.done
		if ctx.Err() != nil { // the others end soon
			continue
		}
		cr.Increments = append(cr.Increments, judge.increment(r))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v.res.Chains = append(v.res.Chains, cr)
	return nil
}

// read reads an increment whole, with so many jobs, and checks what can be known without those before it.
func (v *verifier) read(ctx context.Context, r *visit, jobs int) {
	if v.Quick {
		r.checked, r.err = v.repo.VerifyStored(ctx, r.Increment)
		return
	}
	r.check, r.tail = filestorage.NewChecker(r.File, r.Start), &TailKeeper{}
	out := io.MultiWriter(r.check, r.tail)
	if v.Progress != nil {
		out = io.MultiWriter(out, v)
	}
	repo := *v.repo
	repo.Jobs = jobs
	if r.err = repo.Copy(ctx, r.Increment, out); r.err == nil {
		r.err = r.check.Close()
	}
	var corrupt *filestorage.CorruptError
	switch {
	case errors.As(r.err, &corrupt):
		r.err = r.bad(v.repo.src.String(), r.err)
	case r.err == nil && r.Manifest != nil:
		if err := r.Manifest.Describes(r.check); err != nil {
			r.err = r.bad(v.repo.src.String(), err)
		}
	}
}

// Write tells the progress of all increments that are being read.
func (v *verifier) Write(b []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done += int64(len(b))
	v.Progress(v.done, v.total)
	return len(b), nil
}

// judge holds the increments of a chain to those before them.
type judge struct {
	*verifier
	last filestorage.TID // before the increment
	tail *TailKeeper     // of the bytes before it; nil when they are not known
}

func (j *judge) increment(r *visit) IncrementResult {
	ir := IncrementResult{Stamp: r.Stamp, File: r.File, Start: r.Start, End: r.End, Checked: r.checked}
	err := r.err
	switch {
	case j.Quick && err == nil && !r.checked:
		j.res.NotChecked = append(j.res.NotChecked, r.File+": repozo wrote it, so there is no hash of the stored file; verify without --quick")
	case !j.Quick:
		err = j.continues(r)
	}
	if err != nil {
		j.fail(err)
		ir.Problem = err.Error()
	}
	return ir
}

// continues says whether an increment that was read follows those before it.
func (j *judge) continues(r *visit) error {
	ext := r.check.Extent()
	before := j.last
	j.last = max(ext.Last, before)
	if r.err != nil {
		j.tail, j.last = nil, ext.Last // what was before is not known, so neither is the tail
		return r.err
	}
	if n := r.check.Reversed(); n > 0 || ext.First != 0 && ext.First <= before {
		j.res.Warnings = append(j.res.Warnings, fmt.Sprintf("%s: tids that do not grow (%d); FileStorage cannot pack such a file", r.File, max(n, 1)))
	}
	if j.tail != nil {
		j.tail.Write(r.tail.buf)
	}
	if r.Manifest == nil {
		return nil
	}
	j.last = r.Manifest.LastTID
	if j.tail != nil && j.tail.Proof() != r.Manifest.Tail {
		j.tail, j.last = nil, ext.Last
		return r.bad(j.repo.src.String(), errors.New("the tail proof in the manifest is not that of the bytes before its end"))
	}
	return nil
}

// Describes says whether the transactions that a Checker has read are those that the manifest tells of.
func (m *Manifest) Describes(check *filestorage.Checker) error {
	ext := check.Extent()
	if m.Transactions != ext.Transactions || m.FirstTID != ext.First || ext.Transactions > 0 && m.LastTID != ext.Last || m.PackedTo != check.LastPacked() {
		return fmt.Errorf("the manifest tells of %d transactions from %s to %s, packed to %s; there are %d from %s to %s, packed to %s",
			m.Transactions, m.FirstTID, m.LastTID, m.PackedTo, ext.Transactions, ext.First, ext.Last, check.LastPacked())
	}
	return nil
}
