package incremental

import "sync"

// pool keeps what is large or dear to make, to be used again. It never has more than were in use at once; sync.Pool
// keeps one more for each processor, which is too much of pieces of some MiB, and forgets them all at times.
type pool[T any] struct {
	make func() T // what Get returns when there is none to be used again; nil: the zero value

	mu   sync.Mutex
	free []T
}

// Get returns the one that was given back last.
func (p *pool[T]) Get() (v T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		v = p.free[n-1]
		p.free = p.free[:n-1]
		return v
	}
	if p.make != nil {
		v = p.make()
	}
	return v
}

// Put gives one back.
func (p *pool[T]) Put(v T) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, v)
}
