package incremental

import "sync"

// verifyJobs bounds the pieces that a verification decodes at once, and so its memory to some 6 MiB each.
const verifyJobs = 8

// crew is a number of hands that increments share: a large one wants all, many small ones are worked on side by side.
type crew struct {
	size int

	mu   sync.Mutex
	back *sync.Cond // hands became free
	free int
}

func newCrew(size int) *crew {
	c := &crew{size: size, free: size}
	c.back = sync.NewCond(&c.mu)
	return c
}

// hire waits for hands for so many raw bytes: one for each piece, as far as there are any. Who comes first is served first.
func (c *crew) hire(raw int64) (hands int) {
	hands = int(min(int64(c.size), 1+raw/memberSize))
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.free < hands {
		c.back.Wait()
	}
	c.free -= hands
	return hands
}

func (c *crew) release(hands int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.free += hands
	c.back.Broadcast()
}
