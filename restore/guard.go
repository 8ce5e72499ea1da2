package restore

import (
	"os"

	"golang.org/x/sys/unix"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// promotionUnderWay says whether a promotion of the Data.fs at the path data is waiting for its lock.
func promotionUnderWay(data string) bool {
	f, err := os.OpenFile(data+promoteExt, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// announcePromotion makes a running watch step aside until the lock is closed or this process ends.
func announcePromotion(data string) (*incremental.Lock, error) {
	return incremental.LockFile(data+promoteExt, "promotion of "+data)
}

func steppedAside(data string) error {
	return fault.New(fault.Refused, "%s is being promoted", data).
		Keeping("nothing more was applied").Remedy("see zodbrepl status --data %s", data)
}
