package restore

import (
	"iter"

	"zodbrepl/filestorage"
)

// objects tells of the objects whose current revision is another one. What both have from a common transaction is the
// same, so only those that one side has changed alone are looked at, unless such a transaction is not the same on both
// sides: then a pack has removed some of it, and all are.
func (m *diffMerge) objects() error {
	indexes := []*filestorage.Index{&m.a.only, &m.b.only}
	if m.uneven {
		indexes = append(indexes, &m.a.shared, &m.b.shared)
	}
	for oid := range union(indexes) {
		if err := m.object(oid); err != nil {
			return err
		}
	}
	m.res.A.Unsure -= int64(m.a.sure.Len())
	m.res.B.Unsure -= int64(m.b.sure.Len())
	return nil
}

// union iterates over the oids of several indexes, in order, each once.
func union(indexes []*filestorage.Index) iter.Seq[filestorage.OID] {
	return func(yield func(filestorage.OID) bool) {
		type cursor struct {
			next func() (filestorage.OID, int64, bool)
			oid  filestorage.OID
			more bool
		}
		var cursors []*cursor
		for _, x := range indexes {
			c := &cursor{}
			next, stop := iter.Pull2(x.All())
			defer stop()
			c.next = next
			c.oid, _, c.more = next()
			cursors = append(cursors, c)
		}
		for {
			var least *cursor
			for _, c := range cursors {
				if c.more && (least == nil || c.oid < least.oid) {
					least = c
				}
			}
			if least == nil {
				return
			}
			oid := least.oid
			for _, c := range cursors {
				if c.more && c.oid == oid {
					c.oid, _, c.more = c.next()
				}
			}
			if !yield(oid) {
				return
			}
		}
	}
}

func (m *diffMerge) object(oid filestorage.OID) error {
	c := ChangedObject{OID: oid}
	var byA, byB bool
	c.A, c.DeletedA, byA = m.a.current(oid)
	c.B, c.DeletedB, byB = m.b.current(oid)
	if c.A == c.B {
		return nil
	}
	// A pack keeps of every object what was current then. So who was packed after a revision, and has an older one, has
	// never had it. Who has a newer one may have; and who does not have the object any more.
	unsureA := c.A <= m.b.packedTo && (c.B == 0 || c.B > c.A)
	unsureB := c.B <= m.a.packedTo && (c.A == 0 || c.A > c.B)
	if byA && !unsureA && c.A <= m.b.packedTo {
		m.a.sure.Set(filestorage.OID(c.A), 0)
	}
	if byB && !unsureB && c.B <= m.a.packedTo {
		m.b.sure.Set(filestorage.OID(c.B), 0)
	}
	// Without a transaction of it an object is as it was at the common position, so it may be there. Only where a pack has
	// removed it from a common transaction it is not.
	common := !byA && !byB
	goneA, goneB := c.A == 0 || c.DeletedA, c.B == 0 || c.DeletedB
	switch {
	case (m.whole || common) && goneA && goneB:
		return nil
	case byA && byB:
		c.Side, c.Unsure = "both", unsureA || unsureB
		m.res.Both++
	case byA, common && c.A > c.B:
		c.Side, c.Unsure = "a", unsureA || common
		m.res.A.Objects++
	default:
		c.Side, c.Unsure = "b", unsureB || common
		m.res.B.Objects++
	}
	return m.Object(c)
}

// current returns the transaction of the current revision, whether that is a deletion, and whether only this side has it.
func (s *stream) current(oid filestorage.OID) (tid filestorage.TID, deleted, alone bool) {
	only, _ := s.only.Get(oid)
	shared, _ := s.shared.Get(oid)
	gone, _ := s.gone.Get(oid)
	before, _ := s.before.Get(oid)
	last := max(only, shared, before)
	return filestorage.TID(last), last != 0 && gone == last, only > shared
}
