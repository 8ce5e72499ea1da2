package filestorage

import (
	"iter"
	"slices"
)

// Index says where the current record of every object stands. The zero value is empty and ready to use.
//
// The objects stand in leaves of up to leafMax, sorted by oid; an oid is kept as its distance to the leaf's first:
//
//	first   [ 0x00        | 0x0200      | ...        the first oid of each leaf, sorted
//	leaves  [ *           | *           | ...
//	          |             +- off 0 1 2 ..  pos 52 5210 97 ..
//	          +- off 0 1 2 ..  pos 4011 ..
//
// That is 12 bytes an object when the oids come in order, as they do when ZODB hands them out or an index file is
// read, and about 16 when they come in any order; however far apart they are, unless there are fewer than some dozen
// in a range of 2^32.
type Index struct {
	first  []OID
	leaves []*indexLeaf
	n      int
}

type indexLeaf struct {
	off []uint32 // sorted: oid - first
	pos []uint64
}

const (
	leafMax  = 512
	leafSpan = 1<<32 - 1 // how far the last oid of a leaf may be from its first
)

// Set records that the current record of oid stands at pos.
func (x *Index) Set(oid OID, pos int64) { x.Swap(oid, pos) }

// Swap is Set, and returns where the current record stood before, if there was one.
func (x *Index) Swap(oid OID, pos int64) (old int64, ok bool) {
	i, ok := x.leaf(oid)
	if !ok { // before all others
		x.begin(0, oid, pos)
		return 0, false
	}
	l := x.leaves[i]
	d := uint64(oid - x.first[i])
	if d > leafSpan {
		x.begin(i+1, oid, pos)
		return 0, false
	}
	off := uint32(d)
	if n := len(l.off); l.off[n-1] < off { // the usual case when an index is built
		if n == leafMax {
			x.begin(i+1, oid, pos)
			return 0, false
		}
		l.off, l.pos = append(l.off, off), append(l.pos, uint64(pos))
		x.n++
		return 0, false
	}
	k := lowerBound(l.off, off)
	if l.off[k] == off {
		old, l.pos[k] = int64(l.pos[k]), uint64(pos)
		return old, true
	}
	if len(l.off) == leafMax {
		x.split(i)
		return x.Swap(oid, pos)
	}
	l.off, l.pos = slices.Insert(l.off, k, off), slices.Insert(l.pos, k, uint64(pos))
	x.n++
	return 0, false
}

// lowerBound returns the number of elements of sorted that are less than v. It has no branch that a processor could guess
// wrong: with slices.BinarySearch half the time of building an index goes there.
func lowerBound[T uint32 | OID](sorted []T, v T) int {
	base, n := 0, len(sorted)
	for n > 1 {
		half := n / 2
		step := 0
		if sorted[base+half-1] < v {
			step = half
		}
		base += step
		n -= half
	}
	if n == 1 && sorted[base] < v {
		base++
	}
	return base
}

// leaf returns the number of the leaf in which oid is, or would be; ok is false when oid is before all leaves.
func (x *Index) leaf(oid OID) (i int, ok bool) {
	if n := len(x.first); n > 0 && oid >= x.first[n-1] {
		return n - 1, true
	}
	i = lowerBound(x.first, oid)
	if i < len(x.first) && x.first[i] == oid {
		return i, true
	}
	return i - 1, i > 0
}

// begin makes a leaf of one object at the place i.
func (x *Index) begin(i int, oid OID, pos int64) {
	x.insertLeaf(i, oid, &indexLeaf{off: []uint32{0}, pos: []uint64{uint64(pos)}})
	x.n++
}

func (x *Index) insertLeaf(i int, first OID, l *indexLeaf) {
	x.first, x.leaves = slices.Insert(x.first, i, first), slices.Insert(x.leaves, i, l)
}

// split makes two leaves of the leaf i. Both are copied, so that neither keeps the other's memory.
func (x *Index) split(i int) {
	const half = leafMax / 2
	l := x.leaves[i]
	low := &indexLeaf{off: slices.Clone(l.off[:half]), pos: slices.Clone(l.pos[:half])}
	high := &indexLeaf{off: slices.Clone(l.off[half:]), pos: slices.Clone(l.pos[half:])}
	base := high.off[0]
	for k := range high.off {
		high.off[k] -= base
	}
	x.leaves[i] = low
	x.insertLeaf(i+1, x.first[i]+OID(base), high)
}

// Get returns the position of the current record of oid.
func (x *Index) Get(oid OID) (pos int64, ok bool) {
	i, ok := x.leaf(oid)
	if !ok || uint64(oid-x.first[i]) > leafSpan {
		return 0, false
	}
	l := x.leaves[i]
	off := uint32(oid - x.first[i])
	k := lowerBound(l.off, off)
	if k == len(l.off) || l.off[k] != off {
		return 0, false
	}
	return int64(l.pos[k]), true
}

// Len returns the number of objects.
func (x *Index) Len() int { return x.n }

// All iterates over the objects in the order of their oids. The index must not be changed meanwhile.
func (x *Index) All() iter.Seq2[OID, int64] {
	return func(yield func(OID, int64) bool) {
		for i, l := range x.leaves {
			for k, off := range l.off {
				if !yield(x.first[i]+OID(off), int64(l.pos[k])) {
					return
				}
			}
		}
	}
}
