package filestorage

import (
	"context"
	"iter"
)

// Blocks that are read ahead of who looks at them: one is looked at, the others are read or wait. Copying them out of the
// page cache takes longer than looking at them, so that two are read at once.
const (
	blockSize  = 512 << 10
	blockCount = 4
)

// blocks iterates over the bytes between two positions, block by block, and reads ahead meanwhile. A block is valid until the
// next. It ends after the first error; no goroutine is left when it has ended.
func (f *File) blocks(ctx context.Context, from, to int64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		type block struct {
			b   []byte
			err error
		}
		ctx, cancel := context.WithCancel(ctx)
		free, order := make(chan []byte, blockCount), make(chan chan block, blockCount)
		for range blockCount {
			free <- nil
		}
		go func() {
			defer close(order)
			for pos := from; pos < to && ctx.Err() == nil; {
				buf, n := <-free, min(blockSize, to-pos)
				if buf == nil {
					buf = make([]byte, n)
				}
				result := make(chan block, 1)
				order <- result
				go func(pos int64) {
					err := ctx.Err()
					if err == nil {
						err = f.readFull(buf[:n], pos)
					}
					result <- block{buf[:n], err}
				}(pos)
				pos += n
			}
		}()
		defer func() {
			cancel()
			for result := range order { // until the goroutines have ended
				free <- (<-result).b
			}
		}()
		for result := range order {
			b := <-result
			if !yield(b.b, b.err) || b.err != nil {
				free <- b.b
				return
			}
			free <- b.b
		}
		if err := ctx.Err(); err != nil {
			yield(nil, err)
		}
	}
}
