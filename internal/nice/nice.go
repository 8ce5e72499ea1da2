// Package nice lowers the priority of this process, so that a server beside it does not have to wait for it.
package nice

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Level says how far this process stands back.
type Level string

// The levels.
const (
	None Level = "none" // not at all
	Low  Level = "low"  // nice 10, and the lowest of the usual I/O priorities
	Idle Level = "idle" // it gets what nobody else wants, of the processors and of the disks
)

const (
	lowNice  = 10
	idleNice = 19

	// linux/ioprio.h: the class in the upper bits, the priority within it below.
	whoProcess   = 1
	classShift   = 13
	bestEffort   = 2 << classShift
	lowestEffort = bestEffort | 7
	idleClass    = 3 << classShift
)

// Parse returns the level of that name.
func Parse(s string) (Level, error) {
	switch l := Level(s); l {
	case None, Low, Idle:
		return l, nil
	}
	return "", fmt.Errorf("%q: want %s, %s or %s", s, None, Low, Idle)
}

// Apply lowers the priorities of every thread of this process; those that are made later inherit them. What is lower
// already stays so.
func Apply(l Level) error {
	if l == None {
		return nil
	}
	done := make(map[int]bool)
	// A thread may have made another one just before its turn came.
	for changed := true; changed; {
		changed = false
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil || done[id] {
				continue
			}
			if err := lower(id, l); err != nil && !errors.Is(err, unix.ESRCH) { // it has ended
				return fmt.Errorf("priority of thread %d: %w", id, err)
			}
			done[id], changed = true, true
		}
	}
	return nil
}

func lower(thread int, l Level) error {
	to, io := lowNice, lowestEffort
	if l == Idle {
		to, io = idleNice, idleClass
	}
	// The system call tells 20 less the nice value.
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, thread); err != nil {
		return err
	} else if 20-now < to {
		if err := unix.Setpriority(unix.PRIO_PROCESS, thread, to); err != nil {
			return err
		}
	}
	was, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, whoProcess, uintptr(thread), 0)
	if errno == 0 && int(was)>>classShift == idleClass>>classShift {
		return nil
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(thread), uintptr(io)); errno != 0 {
		return errno
	}
	return nil
}
