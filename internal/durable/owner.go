package durable

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// OwnLike gives f, when this process is root, the owner of the first of the paths that exists: a cluster manager runs
// commands as root, and must not leave files that the ZEO server's user cannot open.
func OwnLike(f *os.File, paths ...string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, p := range paths {
		fi, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		return f.Chown(int(st.Uid), int(st.Gid))
	}
	return nil
}
