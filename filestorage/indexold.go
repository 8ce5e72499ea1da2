package filestorage

import "strings"

// Before ZODB 3.10 an index file was one pickled dictionary:
//
//	{'pos': int or long, 'index': one of
//	    {oid: position, ...}                                          before fsIndex
//	    fsIndex, state {'_data': {prefix: fsBucket}}                  state version 0, a dict
//	    fsIndex, state {'_data': OOBTree {prefix: fsBucket}}          state version 0
//	    fsIndex, state {'state_version': 1, '_data': [(prefix, bucket), ...]}}
//
// The machine below knows the opcodes with which ZODB has pickled these, runs no code, and stops when what it has made
// would take too much memory.

// maxOldIndex bounds what is made of an index in the old form, in bytes: enough for some ten million objects.
const maxOldIndex = 1 << 30

type (
	pyMark   struct{}
	pyNone   struct{}
	pyTuple  []any
	pyGlobal string // "module name"
	pyList   struct{ items []any }
	pyObject struct {
		class pyGlobal
		state any
	}
	// pyDict keeps pairs of an oid and a position apart, because there may be millions of them.
	pyDict struct {
		fields  []pyField
		objects Index
	}
	pyField struct {
		key   string
		value any
	}
)

type pickleMachine struct {
	*pickleReader
	stack []any
	memo  []any
	used  int64 // estimated bytes of what was made
	limit int64 // of used
	made  int   // objects with a state
}

// oldIndex reads an index whose first opcode is op, and stops when what is made of it takes more than limit bytes.
func (p *pickleReader) oldIndex(op byte, limit int64) (*Index, int64, error) {
	m := &pickleMachine{pickleReader: p, limit: limit}
	v, err := m.run(op)
	if err != nil {
		return nil, 0, err
	}
	if err := p.end(); err != nil {
		return nil, 0, err
	}
	m.memo, m.stack = nil, nil
	d, ok := v.(*pyDict)
	if !ok {
		return nil, 0, p.bad("neither a position nor a dictionary begins the index")
	}
	pos, ok := d.field("pos").(int64)
	if !ok {
		return nil, 0, p.bad("the dictionary has no position")
	}
	x, err := m.index(d.field("index"))
	return x, pos, err
}

func (d *pyDict) field(key string) any {
	for i := len(d.fields) - 1; i >= 0; i-- { // the last one counts
		if d.fields[i].key == key {
			return d.fields[i].value
		}
	}
	return nil
}

// index makes an Index of any of the forms.
func (m *pickleMachine) index(v any) (*Index, error) {
	if d, ok := v.(*pyDict); ok && len(d.fields) == 0 {
		return &d.objects, nil
	}
	o, ok := v.(*pyObject)
	if !ok || o.class != "ZODB.fsIndex fsIndex" {
		return nil, m.bad("the dictionary has no index")
	}
	state, ok := o.state.(*pyDict)
	if !ok {
		return nil, m.bad("the index has no state")
	}
	x := &Index{}
	switch version := state.field("state_version"); version {
	case nil, int64(0):
		return x, m.version0(x, state.field("_data"))
	case int64(1):
		return x, m.version1(x, state.field("_data"))
	default:
		return nil, m.bad("state version %v of the index is unknown", version)
	}
}

func (m *pickleMachine) version1(x *Index, data any) error {
	list, ok := data.(*pyList)
	if !ok {
		return m.bad("the index has no list of buckets")
	}
	for _, item := range list.items {
		pair, ok := item.(pyTuple)
		if !ok || len(pair) != 2 {
			return m.bad("a bucket of the index is no pair")
		}
		bucket, ok := pair[1].(string)
		if !ok {
			return m.bad("a bucket of the index is no string")
		}
		prefix, err := m.prefix(pair[0])
		if err != nil {
			return err
		}
		if err := m.addBucket(x, prefix, []byte(bucket)); err != nil {
			return err
		}
	}
	return nil
}

// version0 reads a mapping of prefixes to fsBuckets: a dict, or the chain of an OOBTree's buckets.
func (m *pickleMachine) version0(x *Index, data any) error {
	if d, ok := data.(*pyDict); ok {
		for _, f := range d.fields {
			if err := m.fsBucket(x, f.key, f.value); err != nil {
				return err
			}
		}
		return nil
	}
	// An OOBTree's state: None; ((bucket's state,),); or (children, first bucket).
	// A bucket's: ((key, value, key, value, ...),), and the next bucket if there is one.
	tree, ok := data.(*pyObject)
	if !ok || !tree.class.named("OOBTree") {
		return m.bad("the index has neither a dictionary nor an OOBTree")
	}
	if tree.state == nil || tree.state == (pyNone{}) {
		return nil
	}
	state, _ := tree.state.(pyTuple)
	var next any
	switch {
	case len(state) == 2:
		next = state[1]
	case len(state) == 1:
		if inner, ok := state[0].(pyTuple); ok && len(inner) == 1 {
			next = &pyObject{class: "BTrees.OOBTree OOBucket", state: inner[0]}
		}
	}
	for steps := 0; ; steps++ {
		bucket, ok := next.(*pyObject)
		if !ok || !bucket.class.named("OOBucket") || steps > m.made {
			return m.bad("the OOBTree of the index is broken")
		}
		state, _ := bucket.state.(pyTuple)
		if len(state) < 1 || len(state) > 2 {
			return m.bad("the OOBTree of the index is broken")
		}
		items, ok := state[0].(pyTuple)
		if !ok || len(items)%2 != 0 {
			return m.bad("the OOBTree of the index is broken")
		}
		for i := 0; i < len(items); i += 2 {
			if err := m.fsBucket(x, items[i], items[i+1]); err != nil {
				return err
			}
		}
		if len(state) == 1 {
			return nil
		}
		next = state[1]
	}
}

// fsBucket adds one mapping of suffixes to positions, as a BTree's bucket keeps it.
func (m *pickleMachine) fsBucket(x *Index, key, value any) error {
	prefix, err := m.prefix(key)
	if err != nil {
		return err
	}
	o, ok := value.(*pyObject)
	if !ok || !o.class.named("fsBucket") {
		return m.bad("a bucket of the index is no fsBucket")
	}
	state, _ := o.state.(pyTuple)
	if len(state) != 1 {
		return m.bad("a bucket of the index has no state")
	}
	items, ok := state[0].(pyTuple)
	if !ok || len(items)%2 != 0 || len(items) > 2*oidsPerBucket {
		return m.bad("a bucket of the index is broken")
	}
	for i := 0; i < len(items); i += 2 {
		k, _ := items[i].(string)
		v, _ := items[i+1].(string)
		if len(k) != suffixSize || len(v) != prefixSize {
			return m.bad("a bucket of the index is broken")
		}
		x.Set(prefix|OID(be16([]byte(k))), int64(be48([]byte(v))))
	}
	return nil
}

func (m *pickleMachine) prefix(v any) (OID, error) {
	s, ok := v.(string)
	if !ok || len(s) != prefixSize {
		return 0, m.bad("a key of the index is not the start of an oid")
	}
	return OID(be48([]byte(s))) << 16, nil
}

// named says whether a class has that name; its module was BTrees.OOBTree or BTrees._OOBTree.
func (g pyGlobal) named(name string) bool {
	return strings.HasPrefix(string(g), "BTrees.") && strings.HasSuffix(string(g), " "+name)
}
