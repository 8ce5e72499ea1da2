package filestorage

import (
	"iter"
	"maps"
	"slices"
)

// Index says where the current record of every object stands. The zero value is empty and ready to use.
//
// Objects are kept in pages of 256 neighbouring oids, because ZODB hands them out one after the other: about 10
// bytes an object then.
type Index struct {
	pages map[uint64]*indexPage // by oid >> 8
	n     int
}

type indexPage struct {
	low []uint8  // sorted: the low 8 bits of the oids
	pos []uint64 // their positions
}

// Set records that the current record of oid stands at pos.
func (x *Index) Set(oid OID, pos int64) {
	if x.pages == nil {
		x.pages = make(map[uint64]*indexPage)
	}
	p := x.pages[uint64(oid)>>8]
	if p == nil {
		p = &indexPage{}
		x.pages[uint64(oid)>>8] = p
	}
	low := uint8(oid)
	if n := len(p.low); n == 0 || p.low[n-1] < low { // the usual case when an index is built
		p.low, p.pos = append(p.low, low), append(p.pos, uint64(pos))
		x.n++
		return
	}
	i, found := slices.BinarySearch(p.low, low)
	if found {
		p.pos[i] = uint64(pos)
		return
	}
	p.low, p.pos = slices.Insert(p.low, i, low), slices.Insert(p.pos, i, uint64(pos))
	x.n++
}

// Get returns the position of the current record of oid.
func (x *Index) Get(oid OID) (pos int64, ok bool) {
	p := x.pages[uint64(oid)>>8]
	if p == nil {
		return 0, false
	}
	i, ok := slices.BinarySearch(p.low, uint8(oid))
	if !ok {
		return 0, false
	}
	return int64(p.pos[i]), true
}

// Len returns the number of objects.
func (x *Index) Len() int { return x.n }

// All iterates over the objects in the order of their oids.
func (x *Index) All() iter.Seq2[OID, int64] {
	return func(yield func(OID, int64) bool) {
		for _, high := range slices.Sorted(maps.Keys(x.pages)) {
			p := x.pages[high]
			for i, low := range p.low {
				if !yield(OID(high<<8|uint64(low)), int64(p.pos[i])) {
					return
				}
			}
		}
	}
}
