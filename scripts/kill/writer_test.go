package kill

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"zodbrepl/filestorage"
	"zodbrepl/fixtures"
)

// writerEnv makes this test binary the process that writes to the master: "DATA.FS HISTORY SEED".
const (
	writerEnv  = "ZODBREPL_KILL_WRITER"
	historyEnv = "ZODBREPL_KILL_HISTORY"
	seedEnv    = "ZODBREPL_KILL_SEED"
)

func TestMain(m *testing.M) {
	if data := os.Getenv(writerEnv); data != "" {
		seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
		if err == nil {
			err = write(data, os.Getenv(historyEnv), seed)
		}
		fmt.Fprintln(os.Stderr, "writer:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// write commits, aborts and packs until it is killed, as fixtures/cmd/grow does. Before every pack it links the file
// into the directory history: what was ever the master's Data.fs can be compared with afterwards. After every
// commit it prints the position.
func write(data, history string, seed uint64) error {
	g, err := fixtures.Open(data, fixtures.Options{NoSync: true}) // a kill loses nothing that was written
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	var recent []filestorage.TID
	for {
		t := g.BeginRandom(rng, 1+rng.IntN(4), 400)
		if err := t.Vote(); err != nil {
			return err
		}
		pause(rng, 4*time.Millisecond)
		if rng.IntN(6) == 0 {
			if err := t.Abort(); err != nil {
				return err
			}
			continue
		}
		tid, err := t.Finish()
		if err != nil {
			return err
		}
		fmt.Println(g.Size())
		recent = append(recent, tid)
		if rng.IntN(60) == 0 {
			if err := keep(data, history); err != nil {
				return err
			}
			if err := g.Pack(recent[rng.IntN(len(recent))]); err != nil {
				return err
			}
			recent = nil
		}
		pause(rng, 8*time.Millisecond)
	}
}

// keep links a generation of the master's file into history, under the number of its inode: as long as it is linked
// there, no other file has the number.
func keep(data, history string) error {
	fi, err := os.Stat(data)
	if err != nil {
		return err
	}
	if err := os.Link(data, filepath.Join(history, fmt.Sprint(inode(fi)))); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

func pause(rng *rand.Rand, upTo time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(upTo)))) }
