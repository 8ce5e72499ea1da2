package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"

	"zodbrepl/incremental"
)

// faulty passes calls on to a target, records those that change it, and fails one of them.
type faulty struct {
	Target
	at    int    // number of the call that fails, from 1; 0: none
	how   moment // how it fails
	then  error  // what it fails with
	calls int
	dead  bool
	log   []string // "put NAME", "publish NAME", "remove NAME"
	// before is called before each call, optional.
	before func(call string)
}

type moment int

const (
	beforeEffect moment = iota // the call does nothing
	afterEffect                // the call did everything, and nobody learns of it
	inTheMiddle                // a put writes half of what it should; other calls do nothing
)

func (f moment) String() string { return [...]string{"before", "after", "in the middle of"}[f] }

var errDead = errors.New("the target died")

// call counts a call. fails is set for the one that must fail; err when the target is dead already.
func (f *faulty) call(name string) (fails bool, err error) {
	if f.before != nil {
		f.before(name)
	}
	if f.dead {
		return false, errDead
	}
	f.calls++
	if f.at != 0 && f.calls == f.at {
		f.dead = f.then == errDead
		return true, nil
	}
	return false, nil
}

// around does what between them call and effect decide.
func (f *faulty) around(name string, effect func() error) error {
	fails, err := f.call(name)
	if err != nil {
		return err
	}
	if fails && f.how != afterEffect {
		return f.then
	}
	err = effect()
	if err == nil && fails {
		return f.then
	}
	return err
}

func (f *faulty) List(ctx context.Context) (entries []fs.DirEntry, err error) {
	return entries, f.around("list", func() error { entries, err = f.Target.List(ctx); return err })
}

func (f *faulty) Open(ctx context.Context, name string) (r io.ReadCloser, err error) {
	err = f.around("open "+name, func() error { r, err = f.Target.Open(ctx, name); return err })
	if err != nil && r != nil {
		r.Close()
	}
	return r, err
}

func (f *faulty) Stat(ctx context.Context, name string) (size int64, exists bool, err error) {
	err = f.around("stat "+name, func() error { size, exists, err = f.Target.Stat(ctx, name); return err })
	return size, exists, err
}

func (f *faulty) Put(ctx context.Context, name string, content io.ReaderAt, size int64, progress incremental.Progress) (sent int64, err error) {
	fails, err := f.call("put " + name)
	if err != nil {
		return 0, err
	}
	f.log = append(f.log, "put "+name)
	switch {
	case fails && f.how == beforeEffect:
		return 0, f.then
	case fails && f.how == inTheMiddle:
		sent, err = f.Target.Put(ctx, name, halfOf{content, size / 2, f.then}, size, progress)
		if !errors.Is(err, f.then) {
			return sent, fmt.Errorf("half a put did not fail: %w", err)
		}
		return sent, err
	}
	sent, err = f.Target.Put(ctx, name, content, size, progress)
	if fails && err == nil {
		err = f.then
	}
	return sent, err
}

// halfOf is content that fails at byte n.
type halfOf struct {
	io.ReaderAt
	n   int64
	err error
}

func (h halfOf) ReadAt(p []byte, off int64) (int, error) {
	if off >= h.n {
		return 0, h.err
	}
	n, err := h.ReaderAt.ReadAt(p[:min(int64(len(p)), h.n-off)], off)
	if err == nil && n < len(p) {
		err = h.err
	}
	return n, err
}

func (f *faulty) Publish(ctx context.Context, name string) error {
	f.log = append(f.log, "publish "+name)
	return f.around("publish "+name, func() error { return f.Target.Publish(ctx, name) })
}

func (f *faulty) Rename(ctx context.Context, from, to string) error {
	f.log = append(f.log, "rename "+from)
	return f.around("rename "+from, func() error { return f.Target.Rename(ctx, from, to) })
}

func (f *faulty) Remove(ctx context.Context, name string) error {
	f.log = append(f.log, "remove "+name)
	return f.around("remove "+name, func() error { return f.Target.Remove(ctx, name) })
}

var errFull = fmt.Errorf("write: %w", unix.ENOSPC)
