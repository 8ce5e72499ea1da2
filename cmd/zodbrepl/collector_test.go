package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// percent returns what the collector is set to.
func percent() int {
	now := debug.SetGCPercent(-1)
	debug.SetGCPercent(now)
	return now
}

func TestTheCollectorStartsLateAndIsTightFromThenOn(t *testing.T) {
	was := percent()
	defer debug.SetGCPercent(was)
	collectLater()
	require.Equal(t, startPercent, percent())
	for range 100 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
		if percent() == gcPercent {
			return
		}
	}
	t.Fatal("the collector ran 100 times, and still comes late")
}
