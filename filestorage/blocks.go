package filestorage

import (
	"context"
	"iter"
)

// Blocks that are read ahead of who looks at them: one is being read, one waits, one is looked at.
const (
	blockSize  = 512 << 10
	blockCount = 3
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
		free, read := make(chan []byte, blockCount), make(chan block, blockCount)
		for range blockCount {
			free <- nil
		}
		go func() {
			defer close(read)
			for pos := from; pos < to; {
				buf := <-free
				if err := ctx.Err(); err != nil {
					read <- block{err: err}
					return
				}
				n := min(blockSize, to-pos)
				if buf == nil {
					buf = make([]byte, n)
				}
				buf = buf[:n]
				err := f.readFull(buf, pos)
				read <- block{buf, err}
				if err != nil {
					return
				}
				pos += n
			}
		}()
		defer func() {
			cancel()
			for b := range read { // until the goroutine has ended
				free <- b.b
			}
		}()
		for b := range read {
			if !yield(b.b, b.err) || b.err != nil {
				return
			}
			free <- b.b
		}
	}
}
