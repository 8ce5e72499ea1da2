package restore

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
	"zodbrepl/internal/durable"
	"zodbrepl/internal/fault"
)

// adopt takes a Data.fs that has no state: one that is a verified prefix of the newest chain.
func (s *standby) adopt(ctx context.Context, repo *incremental.Repository) error {
	chains, _, err := repo.Chains(ctx)
	if err != nil {
		return unreadable(err)
	}
	if len(chains) == 0 {
		return fault.New(fault.Gap, "%s holds no chain to compare %s with, which has no state file", repo.Source(), s.data).
			Keeping("it was not changed").Remedy("run on the master: zodbrepl backup, then zodbrepl ship")
	}
	chain := chains[len(chains)-1]
	if err := s.refuseMaster(chain.Last()); err != nil {
		return err
	}
	ext, err := s.file.Committed(ctx, filestorage.MagicSize)
	if err != nil {
		return err
	}
	s.log.Info("comparing a Data.fs that has no state with the chain", "storage", s.data, "bytes", ext.End, "chain", chain.Stamp)
	st := State{Role: Standby}
	for _, inc := range chain.Increments {
		m := inc.Manifest
		if m == nil {
			return s.refuse(fmt.Sprintf("%s of the chain has no manifest", inc.File),
				fmt.Sprintf("run on the master: zodbrepl backup, which gives it one, then zodbrepl ship; or move %s away", s.data))
		}
		st.Lineage = m.Lineage
		if m.Epoch >= st.Epoch {
			st.Epoch, st.Promotions = m.Epoch, m.Promotions
		}
		if inc.End > ext.End {
			same, err := prefixOf(ctx, s.file, ext.End, repo, inc)
			if err != nil {
				return err
			}
			if !same {
				return s.differs(chain, inc)
			}
			return s.adopted(st, ext)
		}
		sum := md5.New()
		if _, err := io.Copy(sum, &ctxReader{ctx, s.file.Section(inc.Start, inc.End)}); err != nil {
			return err
		}
		if hex.EncodeToString(sum.Sum(nil)) != inc.MD5 {
			return s.differs(chain, inc)
		}
		st.Applied = Applied{Chain: m.Chain, Stamp: m.Stamp, Position: m.End, LastTID: m.LastTID, Tail: m.Tail, Time: s.now().UTC()}
	}
	if ext.End == chain.End() {
		return s.adopted(st, ext)
	}
	for _, p := range chain.Problems {
		if errors.Is(p, fault.Gap) || errors.Is(p, fault.Unverified) {
			return fault.New(fault.Gap, "%s ends at position %d, the chain %s can be compared up to %d only", s.data, ext.End, chain.Stamp, chain.End()).
				Because(p).Keeping("it was not changed").Remedy(bringAgain)
		}
	}
	return s.refuse(fmt.Sprintf("it has transactions up to %s, but the chain %s ends at %s: it is ahead of the repository", ext.Last, chain.Stamp, st.Applied.LastTID),
		"if it is a copy of the master's, back up and ship there, then start watch again; if this host was the master: zodbrepl rejoin --data "+s.data+" --from DIR")
}

// refuseMaster refuses a Data.fs that the newest increment was made of: a watch that is started on the master by mistake
// must not make it a standby.
func (s *standby) refuseMaster(newest incremental.Increment) error {
	m := newest.Manifest
	if m == nil || s.promoting || m.Source.Inode == 0 {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	fi, err := s.osf.Stat()
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || m.Host != host || m.Source.Path != s.data || m.Source.Inode != st.Ino {
		return nil
	}
	return fault.New(fault.Refused, "%s was made of this very file, %s on %s: this host is the master", newest.File, s.data, host).
		Keeping("nothing was changed").
		Remedy("run watch on the standby; to exchange the two: zodbrepl handover; if another host was promoted since: zodbrepl rejoin")
}

func (s *standby) refuse(how, next string) error {
	return fault.New(fault.Diverged, "%s has no state file, and %s", s.data, how).Keeping("it was not changed").Remedy("%s", next)
}

func (s *standby) differs(chain incremental.Chain, inc incremental.Increment) error {
	return s.refuse(fmt.Sprintf("it differs from the chain %s between positions %d and %d", chain.Stamp, inc.Start, inc.End),
		fmt.Sprintf("if this host was the master: zodbrepl rejoin --data %s --from DIR; if it is an old copy, move it away, and watch builds it anew", s.data))
}

// adopted records the state of an adopted Data.fs and cuts off what belongs to an increment that is not whole here.
func (s *standby) adopted(st State, ext filestorage.Extent) error {
	size, err := s.file.Size()
	if err != nil {
		return err
	}
	st.Condition = s.state.Condition
	if st.Applied.Position == 0 {
		s.state, s.found = st, size
		return nil // a prefix of the full only: the full will replace it
	}
	if size > st.Applied.Position {
		st.Next = &Applied{Position: size, LastTID: ext.Last, Tail: st.Applied.Tail}
	}
	// Whoever brought it here need not have waited for the disk.
	if err := s.osf.Sync(); err != nil {
		return s.unwritable(err)
	}
	if err := durable.SyncDir(filepath.Dir(s.data)); err != nil {
		return s.unwritable(err)
	}
	if err := st.write(s.data); err != nil {
		return s.unwritable(err)
	}
	s.state = st
	s.log.Info("adopted", "storage", s.data, "position", st.Applied.Position, "tid", st.Applied.LastTID)
	if s.state.Next != nil {
		return s.cut()
	}
	return nil
}

// prefixOf says whether the bytes of f from inc.Start to end are those that inc begins with.
func prefixOf(ctx context.Context, f *filestorage.File, end int64, repo *incremental.Repository, inc incremental.Increment) (bool, error) {
	c := &comparer{r: f, pos: inc.Start, end: end, same: true}
	err := repo.Copy(ctx, inc, c)
	return c.same && c.err == nil, errors.Join(err, c.err)
}

// comparer compares what is written to it with a part of a file.
type comparer struct {
	r        io.ReaderAt
	pos, end int64
	buf      []byte
	same     bool
	err      error
}

func (c *comparer) Write(p []byte) (int, error) {
	n := len(p)
	p = p[:min(int64(len(p)), max(0, c.end-c.pos))]
	if cap(c.buf) < len(p) {
		c.buf = make([]byte, len(p))
	}
	if len(p) > 0 && c.same {
		if _, err := c.r.ReadAt(c.buf[:len(p)], c.pos); err != nil {
			c.err = err
		}
		c.same = bytes.Equal(c.buf[:len(p)], p)
	}
	c.pos += int64(n)
	return n, nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
