package restore

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"zodbrepl/incremental"
	"zodbrepl/internal/fault"
)

// refuseAddresses refuses when this host has one of the addresses, which only the master may have.
func refuseAddresses(addresses []string) error {
	if len(addresses) == 0 {
		return nil
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range addresses {
		want, err := netip.ParseAddr(a)
		if err != nil {
			return fault.New(fault.Usage, "--refuse-if-address %q is no IP address", a)
		}
		for _, o := range own {
			p, err := netip.ParsePrefix(o.String())
			if err == nil && p.Addr().Unmap() == want.Unmap() {
				return &addressError{fault.New(fault.Refused, "this host has the address %s, which only the master may have", want).
					Keeping("nothing was applied").
					Remedy("if this host is to be the master: zodbrepl promote; otherwise move the address to the other host")}
			}
		}
	}
	return nil
}

// addressError says that this host has the master's address.
type addressError struct{ err error }

func (e *addressError) Error() string { return e.err.Error() }
func (e *addressError) Unwrap() error { return e.err }

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
