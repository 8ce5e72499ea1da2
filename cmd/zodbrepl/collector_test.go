package main

import (
	"runtime"
	"testing"
	"time"
)

func TestTheCollectorIsTightenedOnlyWhenItRuns(t *testing.T) {
	done := make(chan struct{})
	atFirstCollection(func() { close(done) })
	for range 100 {
		runtime.GC()
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatal("the collector ran 100 times, and nothing was done")
}
