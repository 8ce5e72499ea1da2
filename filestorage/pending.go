package filestorage

// pending holds the records of a transaction that is being read. They count when it has been read whole.
type pending struct {
	index      *Index
	pos        int64 // of the transaction
	status     byte
	records    []Record
	was        []int64 // where their objects were before the transaction
	mismatches int64   // records whose previous record is not that one
}

func (p *pending) begin(pos int64, h TxnHeader) {
	p.pos, p.status, p.records, p.was = pos, h.Status, p.records[:0], p.was[:0]
}

func (p *pending) add(r Record) { p.records = append(p.records, r) }

// settle brings the records into the index. A record in a packed transaction that has no previous one is no mismatch.
func (p *pending) settle() {
	for i, r := range p.records {
		was, _ := p.index.Swap(r.OID, r.Pos)
		if was >= p.pos { // the second record of the object in this transaction
			for k := range i {
				if p.records[k].OID == r.OID {
					was = p.was[k]
					break
				}
			}
		}
		p.was = append(p.was, was)
		if uint64(was) != r.Prev && !(p.status == StatusPacked && r.Prev == 0) {
			p.mismatches++
		}
	}
}
