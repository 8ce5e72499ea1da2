// Package inflate decodes deflate data (RFC 1951) that is in memory as a whole, into memory: twice as fast as a decoder
// that must be able to stop anywhere in a stream.
//
//	var d inflate.Decoder
//	n, used, ok := d.Decode(dst, src)
//
// It says only whether all was well. Who wants to know what is wrong asks another decoder.
package inflate

import "encoding/binary"

// Decoder holds the tables of the block that is being decoded. The zero value is ready; it may be used again.
type Decoder struct {
	lit     [1 << 13]uint32 // the first litBits of a code, or of a subtable the rest
	dist    [1 << 11]uint32
	code    [1 << codeBits]uint32 // of the lengths of the codes
	lengths [maxLit + maxDist]uint8
	fixed   bool // the tables are those of a block with fixed codes
}

// An entry of a table:
//
//	bits 0-5    bits to consume: of the code, and behind it the extra bits
//	     8-11   of these, the code's
//	     13     end of block
//	     14     none of the usual: end of block, a pointer to a subtable, or, all else being 0, no code
//	     15     literal
//	     16-    literal, smallest length or distance, or place of the subtable
const (
	endOfBlock = 1 << 13
	special    = 1 << 14
	literal    = 1 << 15
	pointer    = special

	litBits  = 11
	distBits = 9
	codeBits = 7
	maxBits  = 15
	maxLit   = 288
	maxDist  = 32

	maxMatch = 258
	slack    = 3 + maxMatch + 16 // what one round of the fast loop may write, at most
)

// Decode decodes the deflate stream that src begins with into dst, and returns how many bytes it made, and how many of
// src it took. ok is false when the stream is wrong, or cut, or does not fit into dst.
func (d *Decoder) Decode(dst, src []byte) (n, used int, ok bool) {
	b := bitReader{src: src}
	for last := false; !last; {
		if !b.need(3) {
			return n, 0, false
		}
		last = b.take(1) == 1
		switch b.take(2) {
		case 0:
			n, ok = b.stored(dst, n)
		case 1:
			d.fixedCodes()
			n, ok = d.block(&b, dst, n)
		case 2:
			if ok = d.dynamicCodes(&b); ok {
				n, ok = d.block(&b, dst, n)
			}
		default:
			ok = false
		}
		if !ok {
			return n, 0, false
		}
	}
	return n, b.in - int(b.have/8), true
}

// bitReader is a stream of bits, the lowest of a byte first. Above the have lowest bits of buf may stand those that follow.
type bitReader struct {
	src  []byte
	in   int // of src, the next byte
	buf  uint64
	have uint64
}

// need brings at least n bits, n being at most 48. It fails when there are fewer.
func (b *bitReader) need(n uint64) bool {
	b.fill()
	return b.have >= n
}

func (b *bitReader) fill() {
	if b.in+8 <= len(b.src) {
		b.buf |= binary.LittleEndian.Uint64(b.src[b.in:]) << (b.have & 63)
		b.in += int((63 - b.have) >> 3)
		b.have |= 56
		return
	}
	b.buf &= 1<<(b.have&63) - 1
	for b.have <= 56 && b.in < len(b.src) {
		b.buf |= uint64(b.src[b.in]) << b.have
		b.in++
		b.have += 8
	}
}

func (b *bitReader) drop(n uint64) {
	b.buf >>= n & 63
	b.have -= n
}

func (b *bitReader) take(n uint64) uint32 {
	v := uint32(b.buf & (1<<n - 1))
	b.drop(n)
	return v
}

// stored copies a stored block to dst[n:].
func (b *bitReader) stored(dst []byte, n int) (int, bool) {
	b.drop(b.have % 8)
	if !b.need(32) {
		return n, false
	}
	size := int(b.take(16))
	if b.take(16) != uint32(size)^0xffff {
		return n, false
	}
	b.in -= int(b.have / 8)
	b.buf, b.have = 0, 0
	if size > len(b.src)-b.in || size > len(dst)-n {
		return n, false
	}
	copy(dst[n:], b.src[b.in:b.in+size])
	b.in += size
	return n + size, true
}

// block decodes a block with the codes in the tables to dst[n:].
func (d *Decoder) block(b *bitReader, dst []byte, n int) (int, bool) {
	src, in, buf, have := b.src, b.in, b.buf, b.have
	lit, dist := &d.lit, &d.dist
	for in+16 <= len(src) && n+slack <= len(dst) {
		buf |= binary.LittleEndian.Uint64(src[in:]) << (have & 63)
		in += int((63 - have) >> 3)
		have |= 56
		// Up to three literals with codes in the first table take 33 bits of at least 56.
		e := lit[buf&(1<<litBits-1)]
		if e&literal != 0 {
			buf >>= e & 63
			have -= uint64(e & 63)
			dst[n] = byte(e >> 16)
			n++
			if e = lit[buf&(1<<litBits-1)]; e&literal != 0 {
				buf >>= e & 63
				have -= uint64(e & 63)
				dst[n] = byte(e >> 16)
				n++
				if e = lit[buf&(1<<litBits-1)]; e&literal != 0 {
					buf >>= e & 63
					have -= uint64(e & 63)
					dst[n] = byte(e >> 16)
					n++
					continue
				}
			}
		}
		if e&special != 0 {
			if e&(special|endOfBlock) == pointer && e>>16 != 0 {
				buf >>= litBits
				have -= litBits
				e = lit[(e>>16+uint32(buf&(1<<(maxBits-litBits)-1)))&(1<<13-1)]
				if e&literal != 0 {
					buf >>= e & 63
					have -= uint64(e & 63)
					dst[n] = byte(e >> 16)
					n++
					continue
				}
			}
			if e&special != 0 {
				b.in, b.buf, b.have = in, buf, have
				b.drop(uint64(e & 63))
				return n, e&endOfBlock != 0
			}
		}
		k := uint64(e & 63)
		length := int(e>>16) + int(buf&(1<<k-1)>>(e>>8&15))
		buf >>= k & 63
		have -= k

		buf |= binary.LittleEndian.Uint64(src[in:]) << (have & 63)
		in += int((63 - have) >> 3)
		have |= 56
		e = dist[buf&(1<<distBits-1)]
		if e&special != 0 {
			if e>>16 == 0 {
				return n, false
			}
			buf >>= distBits
			have -= distBits
			if e = dist[(e>>16+uint32(buf&(1<<(maxBits-distBits)-1)))&(1<<11-1)]; e&special != 0 {
				return n, false
			}
		}
		k = uint64(e & 63)
		back := int(e>>16) + int(buf&(1<<k-1)>>(e>>8&15))
		buf >>= k & 63
		have -= k
		if back > n {
			return n, false
		}
		n = repeat(dst, n, back, length)
	}
	b.in, b.buf, b.have = in, buf, have
	return d.blockEnd(b, dst, n)
}

// repeat copies length bytes that begin back before dst[n]. It may write up to 16 more than that.
func repeat(dst []byte, n, back, length int) int {
	from, end := n-back, n+length
	if back < 8 {
		if back == 1 {
			v := uint64(dst[from]) * 0x0101010101010101
			for i := n; i < end; i += 8 {
				binary.LittleEndian.PutUint64(dst[i:], v)
			}
			return end
		}
		for i := n; i < end; i++ {
			dst[i] = dst[i-back]
		}
		return end
	}
	for i := n; ; {
		binary.LittleEndian.PutUint64(dst[i:], binary.LittleEndian.Uint64(dst[from:]))
		if i += 8; i >= end {
			return end
		}
		from += 8
	}
}

// blockEnd is block where src or dst is near its end: it looks at each step whether there is enough.
func (d *Decoder) blockEnd(b *bitReader, dst []byte, n int) (int, bool) {
	for {
		b.fill()
		e, ok := b.entry(d.lit[:], litBits)
		switch {
		case !ok:
			return n, false
		case e&literal != 0:
			if n == len(dst) {
				return n, false
			}
			dst[n] = byte(e >> 16)
			n++
			continue
		case e&endOfBlock != 0:
			return n, true
		}
		length := int(e >> 16)
		b.fill()
		if e, ok = b.entry(d.dist[:], distBits); !ok {
			return n, false
		}
		back := int(e >> 16)
		if back > n || length > len(dst)-n {
			return n, false
		}
		for range length {
			dst[n] = dst[n-back]
			n++
		}
	}
}

// entry takes a code and its extra bits, and returns its entry, to which these are added.
func (b *bitReader) entry(table []uint32, first uint64) (e uint32, ok bool) {
	e = table[b.buf&(1<<first-1)]
	if e&(special|endOfBlock) == pointer {
		if e>>16 == 0 || b.have < first {
			return 0, false
		}
		b.drop(first)
		e = table[e>>16+uint32(b.buf&(1<<(maxBits-first)-1))]
		if e&(special|endOfBlock) == special {
			return 0, false
		}
	}
	k := uint64(e & 63)
	if b.have < k {
		return 0, false
	}
	extra := uint32(b.buf & (1<<k - 1) >> (e >> 8 & 15))
	b.drop(k)
	if e&(literal|special) == 0 {
		e += extra << 16
	}
	return e, true
}
