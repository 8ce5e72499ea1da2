package restore

import (
	"context"
	"errors"
	"io"
	"iter"

	"zodbrepl/filestorage"
	"zodbrepl/internal/fault"
)

// maxOIDs bounds the oids that are told of one transaction; the objects come with their own list.
const maxOIDs = 1000

// diffMerge goes through both sides at once, in the order of the tids.
type diffMerge struct {
	DiffOptions
	res  *DiffResult
	a, b *stream
	// same: all has been the same bytes so far
	same bool
	// whole: no position is common, so both have been read from the first transaction on.
	whole bool
	// uneven: a common transaction has records of other objects, so revisions that both had once may be on one side only.
	uneven bool
	// parted: a transaction was seen that the other side has never had. From then on they have none in common.
	parted bool
}

// stream is one side of the merge: a transaction whose records are still to come.
type stream struct {
	side  *Side
	res   *SideResult
	next  func() (diffEvent, error, bool)
	end   func()
	txn   diffEvent // its beginning
	more  bool      // txn is one
	ahead diffEvent // the event that is next
	has   bool      // ahead is one
	sum   dataSum   // of txn, from a repository, when its records have been read

	// tidied: a pack has touched the transaction before txn, or that cannot be seen. Then it may have removed all that stood
	// between the two: it touches every transaction up to its time that it leaves.
	tidied   bool
	packedTo filestorage.TID // the last transaction that a pack has touched here, or may have removed

	before filestorage.Index // oid: tid of the last before the other side begins, which is a part
	only   filestorage.Index // oid: tid of the last transaction that only this side has
	shared filestorage.Index // oid: tid of the last that both have
	gone   filestorage.Index // oid: tid of the last that says that the object is no more
	sure   filestorage.Index // tids of unsure transactions that the other side has never had, as an object shows
}

func newDiffMerge(o DiffOptions, res *DiffResult) *diffMerge {
	return &diffMerge{DiffOptions: o, res: res, same: true,
		a: &stream{side: o.A, res: &res.A}, b: &stream{side: o.B, res: &res.B}}
}

func (m *diffMerge) stop() {
	for _, s := range []*stream{m.a, m.b} {
		if s.end != nil {
			s.end()
		}
	}
}

// start goes to the first transaction behind the common position. Without one, when the other side is a part only, it
// goes to where that begins; meets says that it has the transaction that stands there before the part.
func (s *stream) start(ctx context.Context, common int64, other Mark) (meets bool, err error) {
	from := common
	if common == 0 {
		from = s.side.boundaryBefore(other)
	}
	s.tidied = from > 0 || s.side.kept != nil
	s.next, s.end = iter.Pull2(s.side.events(ctx, from))
	if err := errors.Join(s.read(), s.advance()); err != nil || common > 0 {
		return false, err
	}
	for s.more && s.txn.header.TID <= other.LastTID {
		h := s.txn.header
		meets = h.TID == other.LastTID && s.txn.pos+h.RecordLen() == other.Position
		// What an object was before tells whether a pack has removed what the part has of it.
		if err := s.records(func(r filestorage.Record) error { s.note(&s.before, r, h.TID); return nil }); err != nil {
			return false, err
		}
		if err := s.advance(); err != nil {
			return false, err
		}
	}
	return meets, nil
}

// read fetches the event that is next.
func (s *stream) read() error {
	e, err, ok := s.next()
	s.ahead, s.has = e, ok
	return err
}

// advance goes to the next transaction; the records of the last one have been read.
func (s *stream) advance() error {
	last := s.txn.header.TID
	if s.more {
		s.tidied = s.txn.header.Status == filestorage.StatusPacked
	}
	if s.txn, s.more = s.ahead, s.has; !s.more {
		return nil
	}
	if s.txn.header.TID <= last {
		return fault.New(fault.Unverified, "%s: the tid of the transaction at %d, %s, is not greater than the one before it, %s: it cannot be compared by tids",
			s.side.name, s.txn.pos, s.txn.header.TID, last).Remedy("zodbrepl check-fs tells all that is wrong with a file")
	}
	if s.txn.header.Status == filestorage.StatusPacked {
		s.res.PackedTo, s.packedTo = s.txn.header.TID, s.txn.header.TID
	}
	return s.read()
}

// record returns the next record of the transaction; ok is false when there is none left.
func (s *stream) record() (r filestorage.Record, ok bool, err error) {
	if s.has && s.ahead.ends {
		s.sum = s.ahead.sum
		if err := s.read(); err != nil {
			return r, false, err
		}
	}
	if !s.has || s.ahead.begins {
		return r, false, nil
	}
	r = s.ahead.record
	return r, true, s.read()
}

func (s *stream) records(each func(filestorage.Record) error) error {
	for {
		r, ok, err := s.record()
		if err == nil && ok {
			err = each(r)
		}
		if err != nil || !ok {
			return err
		}
	}
}

func (m *diffMerge) run(ctx context.Context, common Applied) error {
	metA, err := m.a.start(ctx, common.Position, m.B.first())
	if err != nil {
		return err
	}
	metB, err := m.b.start(ctx, common.Position, m.A.first())
	if err != nil {
		return err
	}
	// From the first byte on they may be the same still: a repository that repozo made has no proofs.
	if part := m.A.kept != nil || m.B.kept != nil; common.Position == 0 && part {
		if m.same = metA || metB; m.same {
			begin := m.A.first()
			if metA {
				begin = m.B.first()
			}
			m.res.Common, m.res.LastCommon = begin, begin.LastTID
		}
	}
	m.whole = m.res.Common.Position == 0 && m.A.kept == nil && m.B.kept == nil
	if m.res.Common.Position > 0 {
		packed, err := m.packedBefore(m.res.Common.Position)
		if err != nil {
			return err
		}
		m.a.tidied, m.b.tidied = packed, packed
	}
	for m.a.more || m.b.more {
		var err error
		switch a, b := m.a, m.b; {
		case !b.more || a.more && a.txn.header.TID < b.txn.header.TID:
			err = m.alone("a", a, b)
		case !a.more || b.txn.header.TID < a.txn.header.TID:
			err = m.alone("b", b, a)
		default:
			err = m.shared(a, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// packedBefore says whether a pack has touched the last transaction before a common position; true when that cannot be seen.
func (m *diffMerge) packedBefore(pos int64) (bool, error) {
	if pos <= filestorage.MagicSize {
		return false, nil
	}
	for _, s := range []*Side{m.A, m.B} {
		if s.file == nil {
			continue
		}
		if t, ok, err := s.file.LastBefore(pos); err != nil || ok {
			return t.Status == filestorage.StatusPacked, err
		}
	}
	return true, nil
}

// alone takes a transaction that only one side has. A pack of the other may have removed it when what comes next there was
// packed. It may as well when only what came before was: the pack's time lies between. But then it has removed all that the
// transaction wrote, which was in use by nothing, and all that its objects were before.
func (m *diffMerge) alone(name string, s, other *stream) error {
	m.same = false
	h := s.txn.header
	t := OnlyTransaction{Side: name,
		Change: Change{Position: s.txn.pos, TID: h.TID, Time: h.TID.Time(), Length: h.RecordLen(), User: s.txn.user, Description: s.txn.text,
			OIDs: []filestorage.OID{}}}
	shown := m.parted
	err := s.records(func(r filestorage.Record) error {
		shown = shown || m.hadBefore(r, other)
		s.note(&s.only, r, h.TID)
		if t.Records++; t.Records <= maxOIDs {
			t.OIDs = append(t.OIDs, r.OID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.res.Transactions++
	t.Unsure = other.more && other.txn.header.Status == filestorage.StatusPacked || other.tidied && !shown
	if t.Unsure {
		s.res.Unsure++
		other.packedTo = max(other.packedTo, h.TID)
	} else {
		m.parted = true
	}
	if err := m.Transaction(t); err != nil {
		return err
	}
	return s.advance()
}

// hadBefore says whether the other side still has an object as it was before a record of it. What says that the object is
// no more shows nothing: when it was undone later, a pack keeps what the object is again.
func (m *diffMerge) hadBefore(r filestorage.Record, other *stream) bool {
	if deletes(r) {
		return false
	}
	tid, _, _ := other.current(r.OID)
	return tid != 0 || r.Prev != 0 && int64(r.Prev) < m.res.Common.Position
}

// shared takes a transaction that both have.
func (m *diffMerge) shared(a, b *stream) error {
	x, y := a.txn, b.txn
	bytes := m.same && x.pos == y.pos && x.header == y.header && x.user == y.user && x.text == y.text
	content := x.user == y.user && x.text == y.text
	packed := x.header.Status == filestorage.StatusPacked || y.header.Status == filestorage.StatusPacked
	for {
		ra, oka, err := a.record()
		if err != nil {
			return err
		}
		rb, okb, err := b.record()
		if err != nil {
			return err
		}
		if !oka && !okb {
			break
		}
		m.uneven = m.uneven || oka != okb || ra.OID != rb.OID
		bytes = bytes && oka == okb && ra == rb
		content = content && oka == okb && ra.OID == rb.OID && ra.DataLen == rb.DataLen && (ra.Back == 0) == (rb.Back == 0)
		if oka {
			a.note(&a.shared, ra, x.header.TID)
		}
		if okb {
			b.note(&b.shared, rb, x.header.TID)
		}
	}
	altered := false
	if bytes {
		// The proofs have failed behind the common position, and the headers do not say why.
		var err error
		if bytes, err = sameBytes(a, b); err != nil {
			return err
		}
		altered = !bytes // no pack does that
	}
	m.res.LastCommon = x.header.TID
	switch m.same = bytes; {
	case bytes:
		m.res.Common = markAt(x.pos+x.header.RecordLen(), x.header.TID)
	case altered, !content && !packed:
		m.res.Altered++
	case packed && (!content || x.header.Status != y.header.Status):
		m.res.Packed++
	}
	if err := a.advance(); err != nil {
		return err
	}
	return b.advance()
}

// sameBytes compares the bytes of a transaction that stands at the same position of both, when its records have been read.
func sameBytes(a, b *stream) (bool, error) {
	start, end := a.txn.pos, a.txn.pos+a.txn.header.RecordLen()
	if fa, fb := a.side.file, b.side.file; fa != nil && fb != nil {
		u := &untilDifferent{r: fa, pos: start, end: end}
		_, err := io.CopyBuffer(u, struct{ io.Reader }{fb.Section(start, end)}, make([]byte, 256<<10))
		if err != nil && !errors.Is(err, errEnough) {
			return false, err
		}
		return u.pos == end, nil
	}
	for _, s := range []*stream{a, b} {
		if s.side.file == nil {
			continue
		}
		var err error
		if s.sum, err = fileSum(s.side.file, start, end); err != nil {
			return false, err
		}
	}
	return a.sum == b.sum, nil
}

func (s *stream) note(in *filestorage.Index, r filestorage.Record, tid filestorage.TID) {
	in.Set(r.OID, int64(tid))
	if deletes(r) {
		s.gone.Set(r.OID, int64(tid))
	}
}

// deletes says whether a record says that its object is no more.
func deletes(r filestorage.Record) bool { return r.DataLen == 0 && r.Back == 0 }
