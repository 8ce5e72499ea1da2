package filestorage

// run reads one pickle, of which the first opcode has been read.
func (m *pickleMachine) run(op byte) (any, error) {
	for {
		if op == opStop {
			if len(m.stack) != 1 {
				return nil, m.bad("the pickle leaves %d values", len(m.stack))
			}
			return m.stack[0], nil
		}
		if err := m.step(op); err != nil {
			return nil, err
		}
		if m.used > m.limit {
			return nil, m.bad("the index takes too much memory in this old form")
		}
		var err error
		if op, err = m.byte(); err != nil {
			return nil, err
		}
	}
}

func (m *pickleMachine) step(op byte) error {
	if n, ok, err := m.intAfter(op); err != nil {
		return err
	} else if ok {
		m.push(n, 8)
		return nil
	}
	switch op {
	case opShortBytes, opBytes, opShortString, opString4, opUnicode:
		b, err := m.stringAfter(op)
		if err == nil {
			m.push(string(b), len(b)+16)
		}
		return err
	case opMark:
		m.push(pyMark{}, 0)
	case opNone:
		m.push(pyNone{}, 0)
	case opDict0:
		m.push(&pyDict{}, 80)
	case opList0:
		m.push(&pyList{}, 24)
	case opTuple0:
		m.push(pyTuple{}, 24)
	case opTuple1, opTuple2, opTuple3:
		return m.tuple(len(m.stack)-int(op-opTuple1+1), 0)
	case opTuple:
		return m.tuple(m.mark(), 1)
	case opDict:
		at := m.mark()
		if at < 0 {
			return m.underflow()
		}
		d := &pyDict{}
		err := m.setItems(d, m.stack[at+1:])
		m.stack = m.stack[:at]
		m.push(d, 80)
		return err
	case opList:
		at := m.mark()
		if at < 0 {
			return m.underflow()
		}
		l := &pyList{items: append([]any(nil), m.stack[at+1:]...)}
		m.stack = m.stack[:at]
		m.push(l, 24+16*len(l.items))
	case opSetItem, opSetItems, opAppend, opAppends:
		return m.extend(op)
	case opGlobal, opInst:
		return m.global(op)
	case opObj, opNewObj, opReduce:
		return m.object(op)
	case opBuild:
		if n := len(m.stack); n < 2 {
			return m.underflow()
		} else if o, ok := m.stack[n-2].(*pyObject); !ok {
			return m.bad("a state for what is no object")
		} else {
			o.state = m.stack[n-1]
			m.stack = m.stack[:n-1]
		}
	case opPut, opPut1, opPut4, opGet, opGet1, opGet4:
		return m.remember(op)
	default:
		return m.bad("opcode %#02x, which no index has", op)
	}
	return nil
}

// push puts a value on the stack and notes about how much memory it takes.
func (m *pickleMachine) push(v any, bytes int) {
	m.stack = append(m.stack, v)
	m.used += int64(bytes) + 16
}

func (m *pickleMachine) underflow() error { return m.bad("a value is missing on the stack") }

// mark returns where the topmost mark is, -1 for nowhere.
func (m *pickleMachine) mark() int {
	for i := len(m.stack) - 1; i >= 0; i-- {
		if m.stack[i] == (pyMark{}) {
			return i
		}
	}
	return -1
}

// tuple replaces what is on the stack from at by a tuple of it, without the first drop values.
func (m *pickleMachine) tuple(at, drop int) error {
	if at < 0 {
		return m.underflow()
	}
	t := append(pyTuple(nil), m.stack[at+drop:]...)
	m.stack = m.stack[:at]
	m.push(t, 24+16*len(t))
	return nil
}

// extend does SETITEM, SETITEMS, APPEND and APPENDS.
func (m *pickleMachine) extend(op byte) error {
	at, from := 0, 0 // of the container, and of what goes into it
	switch op {
	case opSetItem:
		at, from = len(m.stack)-3, len(m.stack)-2
	case opAppend:
		at, from = len(m.stack)-2, len(m.stack)-1
	default:
		from = m.mark() + 1
		at = from - 2
	}
	if at < 0 {
		return m.underflow()
	}
	items := m.stack[from:]
	m.stack = m.stack[:at+1]
	switch c := m.stack[at].(type) {
	case *pyDict:
		if op == opSetItem || op == opSetItems {
			return m.setItems(c, items)
		}
	case *pyList:
		if op == opAppend || op == opAppends {
			c.items = append(c.items, items...)
			m.used += 16 * int64(len(items))
			return nil
		}
	}
	return m.bad("an item for what holds no items")
}

func (m *pickleMachine) setItems(d *pyDict, items []any) error {
	if len(items)%2 != 0 {
		return m.bad("a key without a value")
	}
	m.used += 24 * int64(len(items))
	for i := 0; i < len(items); i += 2 {
		key, ok := items[i].(string)
		if !ok {
			return m.bad("a key that is no string")
		}
		if pos, ok := items[i+1].(int64); ok && len(key) == 8 {
			d.objects.Set(OID(be64([]byte(key))), pos)
			continue
		}
		d.fields = append(d.fields, pyField{key, items[i+1]})
	}
	return nil
}

// global does GLOBAL and INST.
func (m *pickleMachine) global(op byte) error {
	module, err := m.line()
	if err != nil {
		return err
	}
	name, err := m.line()
	if err != nil {
		return err
	}
	g := pyGlobal(module + " " + name)
	if op == opInst {
		at := m.mark()
		if at < 0 {
			return m.underflow()
		}
		m.stack = m.stack[:at]
		m.pushObject(g)
		return nil
	}
	m.push(g, len(g)+16)
	return nil
}

// object does the three ways of making an object of a class: OBJ, NEWOBJ, and REDUCE with the functions of copy_reg.
func (m *pickleMachine) object(op byte) error {
	if op == opObj {
		at := m.mark()
		if at < 0 || at+1 >= len(m.stack) {
			return m.underflow()
		}
		class := m.stack[at+1]
		m.stack = m.stack[:at]
		return m.instance(class)
	}
	n := len(m.stack)
	if n < 2 {
		return m.underflow()
	}
	class, args := m.stack[n-2], m.stack[n-1]
	m.stack = m.stack[:n-2]
	t, ok := args.(pyTuple)
	if !ok {
		return m.bad("arguments that are no tuple")
	}
	if g, ok := class.(pyGlobal); ok && op == opReduce && len(t) > 0 {
		switch g {
		case "copy_reg _reconstructor", "copy_reg __newobj__", "copyreg _reconstructor", "copyreg __newobj__":
			class = t[0]
		}
	}
	return m.instance(class)
}

func (m *pickleMachine) instance(class any) error {
	g, ok := class.(pyGlobal)
	if !ok {
		return m.bad("an object without a class")
	}
	m.pushObject(g)
	return nil
}

func (m *pickleMachine) pushObject(g pyGlobal) {
	m.made++
	m.push(&pyObject{class: g}, 32)
}

// remember does PUT and GET in their three widths.
func (m *pickleMachine) remember(op byte) error {
	n, _, err := m.memoAfter(op)
	if err != nil {
		return err
	}
	switch op {
	case opGet, opGet1, opGet4:
		if int64(n) >= int64(len(m.memo)) {
			return m.bad("value %d is recalled, but was never put", n)
		}
		m.push(m.memo[n], 0)
		return nil
	}
	if len(m.stack) == 0 {
		return m.underflow()
	}
	// Picklers count, from 0 or from 1: a number far away is no reason to make room for it.
	if int64(n) > int64(len(m.memo))+1 {
		return m.bad("value %d is put before value %d", n, len(m.memo))
	}
	for len(m.memo) <= int(n) {
		m.memo = append(m.memo, nil)
		m.used += 16
	}
	m.memo[n] = m.stack[len(m.stack)-1]
	return nil
}
