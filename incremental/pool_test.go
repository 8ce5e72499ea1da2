package incremental

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAPoolHasNoMoreThanWereInUseAtOnce(t *testing.T) {
	made := 0
	p := pool[*int]{make: func() *int { made++; return new(int) }}
	for range 100 { // three at once, in goroutines that come and go
		given := make(chan *int, 3)
		for range 3 {
			v := p.Get()
			go func() { given <- v }()
		}
		for range 3 {
			p.Put(<-given)
		}
	}
	require.Equal(t, 3, made)
	require.Len(t, p.free, 3)
}

func TestAPoolThatMakesNothingGivesZeroValues(t *testing.T) {
	var p pool[*int]
	require.Nil(t, p.Get())
	one := new(int)
	p.Put(one)
	require.Same(t, one, p.Get())
	require.Nil(t, p.Get())
}
