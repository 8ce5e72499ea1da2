package inflate

import "math/bits"

// noCode is the entry of bits that no code begins with.
const noCode = special

// The smallest length or distance of each symbol and its extra bits (RFC 1951, 3.2.5).
var (
	lengthBase  = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	codeOrder   = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

func litEntry(symbol int) uint32 {
	switch {
	case symbol < 256:
		return literal | uint32(symbol)<<16
	case symbol == 256:
		return special | endOfBlock
	case symbol-257 < len(lengthBase):
		return uint32(lengthBase[symbol-257])<<16 | uint32(lengthExtra[symbol-257])
	}
	return noCode
}

func distEntry(symbol int) uint32 {
	if symbol < len(distBase) {
		return uint32(distBase[symbol])<<16 | uint32(distExtra[symbol])
	}
	return noCode
}

func codeEntry(symbol int) uint32 { return uint32(symbol) << 16 }

// fixedCodes makes the tables of a block with fixed codes.
func (d *Decoder) fixedCodes() {
	if d.fixed {
		return
	}
	l := &d.lengths
	for i := range maxLit {
		switch {
		case i < 144:
			l[i] = 8
		case i < 256:
			l[i] = 9
		case i < 280:
			l[i] = 7
		default:
			l[i] = 8
		}
	}
	build(d.lit[:], litBits, l[:maxLit], litEntry)
	for i := range maxDist {
		l[i] = 5
	}
	build(d.dist[:], distBits, l[:maxDist], distEntry)
	d.fixed = true
}

// dynamicCodes reads the codes of a block and makes its tables.
func (d *Decoder) dynamicCodes(b *bitReader) bool {
	d.fixed = false
	if !b.need(14) {
		return false
	}
	lits, dists, codes := 257+int(b.take(5)), 1+int(b.take(5)), 4+int(b.take(4))
	if lits > maxLit-2 || dists > maxDist-2 {
		return false
	}
	var lengths [len(codeOrder)]uint8
	for _, symbol := range codeOrder[:codes] {
		if !b.need(3) {
			return false
		}
		lengths[symbol] = uint8(b.take(3))
	}
	if !build(d.code[:], codeBits, lengths[:], codeEntry) {
		return false
	}
	for i := 0; i < lits+dists; {
		b.fill()
		e, ok := b.entry(d.code[:], codeBits)
		if !ok {
			return false
		}
		var length uint8
		times := 1
		switch symbol := e >> 16; symbol {
		case 16:
			if i == 0 || b.have < 2 {
				return false
			}
			length, times = d.lengths[i-1], 3+int(b.take(2))
		case 17:
			if b.have < 3 {
				return false
			}
			times = 3 + int(b.take(3))
		case 18:
			if b.have < 7 {
				return false
			}
			times = 11 + int(b.take(7))
		default:
			length = uint8(symbol)
		}
		if i+times > lits+dists {
			return false
		}
		for range times {
			d.lengths[i] = length
			i++
		}
	}
	return d.lengths[256] != 0 && build(d.lit[:], litBits, d.lengths[:lits], litEntry) &&
		build(d.dist[:], distBits, d.lengths[lits:lits+dists], distEntry)
}

// build makes the table of a code with those lengths, of which the first table takes so many bits. It fails on lengths
// that are no code, or one that leaves bits without a meaning; but for a single symbol, or none, which the codes of
// distances may have.
func build(table []uint32, first int, lengths []uint8, entry func(symbol int) uint32) bool {
	var count, next [maxBits + 1]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	code, used := 0, 0
	for n := 1; n <= maxBits; n++ {
		code = (code + count[n-1]) << 1
		next[n] = code
		used += count[n] << (maxBits - n)
	}
	if used != 1<<maxBits {
		if used > 1<<maxBits || count[1] > 1 || used-count[1]<<(maxBits-1) != 0 {
			return false
		}
		for i := range 1 << first {
			table[i] = noCode
		}
	}
	// Where a code is longer, its first bits lead to a table of all that may follow.
	free, rest := 1<<first, maxBits-first
	if rest > 0 && used == 1<<maxBits {
		for i := range 1 << first {
			table[i] = 0
		}
	}
	for symbol, n := range lengths {
		if n == 0 {
			continue
		}
		n := int(n)
		reversed := int(bits.Reverse16(uint16(next[n])) >> (16 - n))
		next[n]++
		e := entry(symbol)
		if n <= first {
			e += uint32(n) | uint32(n)<<8
			for i := reversed; i < 1<<first; i += 1 << n {
				table[i] = e
			}
			continue
		}
		at := &table[reversed&(1<<first-1)]
		if *at == 0 {
			*at = pointer | uint32(free)<<16
			free += 1 << rest
		}
		n -= first
		e += uint32(n) | uint32(n)<<8
		sub := table[*at>>16:][:1<<rest]
		for i := reversed >> first; i < 1<<rest; i += 1 << n {
			sub[i] = e
		}
	}
	return true
}
