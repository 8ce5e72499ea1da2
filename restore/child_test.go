package restore

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"zodbrepl/filestorage"
	"zodbrepl/incremental"
)

// TestChild is no test: it is the second process of other tests.
func TestChild(t *testing.T) {
	doc := os.Getenv(childEnv)
	if doc == "" {
		t.Skip("run by other tests")
	}
	var c child
	require.NoError(t, json.Unmarshal([]byte(doc), &c))
	if c.MaxFile > 0 {
		signal.Ignore(syscall.SIGXFSZ)
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: c.MaxFile, Max: c.MaxFile}))
	}
	n := 0
	crash := func(point string) {
		if point == c.Kill {
			if n++; n == c.Nth {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
	var err error
	switch c.Do {
	case "lock":
		lock, err := filestorage.AcquireLock(c.Data)
		require.NoError(t, err)
		fmt.Println("locked")
		os.Stdin.Read(make([]byte, 1)) // until the test ends
		lock.Release()
		return
	case "watch":
		_, err = Watch(context.Background(), WatchOptions{Source: incremental.Dir(c.Source), Data: c.Data, Once: true, crash: crash})
	case "rejoin":
		_, err = Rejoin(context.Background(), RejoinOptions{Source: incremental.Dir(c.Source), Data: c.Data, crash: crash})
	case "accept":
		_, err = Watch(context.Background(), WatchOptions{Source: incremental.Dir(c.Source), Data: c.Data, Once: true, AcceptHandover: true, crash: crash})
	case "handover":
		o := handingOver(c.Data, incremental.Dir(c.Repository), incremental.Dir(c.Source))
		o.crash = crash
		_, err = HandOver(context.Background(), o)
	case "promote":
		_, err = Promote(context.Background(), PromoteOptions{Source: incremental.Dir(c.Source), Data: c.Data, crash: crash})
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(9)
	}
}
