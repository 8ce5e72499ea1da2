package incremental

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

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
	repo.Jobs = o.Jobs
	v := &verifier{VerifyOptions: o, repo: repo, res: &res}
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

func (v *verifier) chain(ctx context.Context, c Chain) error {
	cr := ChainResult{Chain: c.Stamp, Increments: []IncrementResult{}}
	tail := &TailKeeper{}
	last := filestorage.TID(0)
	broken := false
	for _, inc := range c.Increments {
		ir := IncrementResult{Stamp: inc.Stamp, File: inc.File, Start: inc.Start, End: inc.End, Checked: true}
		var err error
		if v.Quick {
			ir.Checked, err = v.repo.VerifyStored(ctx, inc)
			if err == nil && !ir.Checked {
				v.res.NotChecked = append(v.res.NotChecked, inc.File+": repozo wrote it, so there is no hash of the stored file; verify without --quick")
			}
		} else {
			if broken { // what was before is not known, so neither is the tail
				tail = nil
			}
			last, err = v.increment(ctx, inc, tail, last)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			broken = true
			v.fail(err)
			ir.Problem = err.Error()
		}
		cr.Increments = append(cr.Increments, ir)
	}
	v.res.Chains = append(v.res.Chains, cr)
	return nil
}

// increment decodes one and holds it to its manifest. last is the tid before it; the tid after it is returned.
func (v *verifier) increment(ctx context.Context, inc Increment, tail *TailKeeper, last filestorage.TID) (filestorage.TID, error) {
	check := filestorage.NewChecker(inc.File, inc.Start)
	out := io.Writer(check)
	if tail != nil {
		out = io.MultiWriter(check, tail)
	}
	if v.Progress != nil {
		out = io.MultiWriter(out, &progressWriter{v.Progress, v.done, v.total})
	}
	v.done += inc.End - inc.Start
	err := v.repo.Copy(ctx, inc, out)
	if err == nil {
		err = check.Close()
	}
	ext := check.Extent()
	if err != nil {
		var corrupt *filestorage.CorruptError
		if errors.As(err, &corrupt) {
			err = inc.bad(v.repo.src.String(), err)
		}
		return ext.Last, err
	}
	if n := check.Reversed(); n > 0 || ext.First != 0 && ext.First <= last {
		v.res.Warnings = append(v.res.Warnings, fmt.Sprintf("%s: tids that do not grow (%d); FileStorage cannot pack such a file", inc.File, max(n, 1)))
	}
	if inc.Manifest == nil {
		return max(ext.Last, last), nil
	}
	if err := inc.Manifest.Describes(check); err != nil {
		return ext.Last, inc.bad(v.repo.src.String(), err)
	}
	if tail != nil && tail.Proof() != inc.Manifest.Tail {
		return ext.Last, inc.bad(v.repo.src.String(), errors.New("the tail proof in the manifest is not that of the bytes before its end"))
	}
	return inc.Manifest.LastTID, nil
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

type progressWriter struct {
	tell        Progress
	done, total int64
}

func (p *progressWriter) Write(b []byte) (int, error) {
	p.done += int64(len(b))
	p.tell(p.done, p.total)
	return len(b), nil
}
