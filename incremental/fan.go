package incremental

import (
	"io"
	"sync"
	"sync/atomic"
)

const (
	slabSize = 1 << 20
	// slabsEncoded are as many as are read ahead of a codec, which has buffers of its own.
	slabsEncoded = 4
	// slabsDecoded are as many as the file that is recovered may be behind md5.
	slabsDecoded = 8
	// slabsStored are as many as md5 needs to go on while the disk makes the writer wait.
	slabsStored = 24
)

// slab is a stretch of bytes that several work on at once.
type slab struct {
	bytes []byte
	users atomic.Int32
}

// fanOut reads in to its end and gives what it read to each of the writers, in order and without a copy. Every writer is called
// in a goroutine of its own, so that the slowest is the limit, and the others may fall so many slabs behind it. No goroutine is
// left when it returns. The error is the first writer's that failed, or else the reader's.
func fanOut(in io.Reader, slabs int, writers ...io.Writer) (n int64, err error) {
	free := make(chan *slab, slabs)
	for range slabs {
		free <- &slab{}
	}
	var failed atomic.Bool
	errs := make([]error, len(writers))
	lanes := make([]chan *slab, len(writers))
	var working sync.WaitGroup
	for i, w := range writers {
		lane := make(chan *slab, slabs)
		lanes[i] = lane
		working.Go(func() {
			for s := range lane {
				if errs[i] == nil {
					if _, errs[i] = w.Write(s.bytes); errs[i] != nil {
						failed.Store(true)
					}
				}
				if s.users.Add(-1) == 0 {
					free <- s
				}
			}
		})
	}
	for err == nil && !failed.Load() {
		s := <-free
		if s.bytes == nil {
			s.bytes = slabBuffers.Get()
		}
		s.bytes, err = fill(in, s.bytes[:0])
		n += int64(len(s.bytes))
		s.users.Store(int32(len(lanes)))
		for _, lane := range lanes {
			lane <- s
		}
	}
	for _, lane := range lanes {
		close(lane)
	}
	working.Wait()
	close(free)
	for s := range free {
		if s.bytes != nil {
			slabBuffers.Put(s.bytes)
		}
	}
	for _, failure := range errs {
		if failure != nil {
			return n, failure
		}
	}
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// fill reads until b is full, or in at its end or broken.
func fill(in io.Reader, b []byte) (_ []byte, err error) {
	for err == nil && len(b) < cap(b) {
		var k int
		k, err = in.Read(b[len(b):cap(b)])
		b = b[:len(b)+k]
	}
	return b, err
}

var slabBuffers = pool[[]byte]{make: func() []byte { return make([]byte, slabSize) }}
