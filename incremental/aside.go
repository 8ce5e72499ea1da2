package incremental

import (
	"hash"
	"sync"
)

// asideHash is a hash that runs beside its writer, in a goroutine. It takes copies, at most about 1 MiB at a time. One
// goroutine at a time may write to it; Sum belongs to the same. Whoever made it calls end.
type asideHash struct {
	hash.Hash // the goroutine's, while there is one
	piece     *[asidePiece]byte
	n         int // of piece
	pieces    chan *[asidePiece]byte
	done      chan struct{}
}

const (
	asidePiece  = 256 << 10
	asidePieces = 2 // that wait; one more is hashed and one is filled
)

var pieceBuffers = sync.Pool{New: func() any { return new([asidePiece]byte) }}

func aside(h hash.Hash) *asideHash { return &asideHash{Hash: h} }

func (a *asideHash) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if a.piece == nil {
			a.piece = pieceBuffers.Get().(*[asidePiece]byte)
		}
		k := copy(a.piece[a.n:], rest)
		a.n += k
		rest = rest[k:]
		if a.n == asidePiece {
			a.hand()
		}
	}
	return len(p), nil
}

// hand gives a full piece to the goroutine. What is smaller than one never needs any.
func (a *asideHash) hand() {
	if a.pieces == nil {
		a.pieces, a.done = make(chan *[asidePiece]byte, asidePieces), make(chan struct{})
		go a.run(a.pieces, a.done)
	}
	a.pieces <- a.piece
	a.piece, a.n = nil, 0
}

func (a *asideHash) run(pieces <-chan *[asidePiece]byte, done chan<- struct{}) {
	defer close(done)
	for p := range pieces {
		a.Hash.Write(p[:])
		pieceBuffers.Put(p)
	}
}

// end waits until all is hashed; no goroutine is left. More may be written after it.
func (a *asideHash) end() {
	if a.pieces != nil {
		close(a.pieces)
		<-a.done
		a.pieces, a.done = nil, nil
	}
	if a.piece != nil {
		a.Hash.Write(a.piece[:a.n])
		pieceBuffers.Put(a.piece)
		a.piece, a.n = nil, 0
	}
}

// Sum is the sum of all that was written.
func (a *asideHash) Sum(b []byte) []byte {
	a.end()
	return a.Hash.Sum(b)
}
