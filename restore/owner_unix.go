package restore

import (
	"os"
	"syscall"
)

// chownLike gives f the owner of old, when this process may: as root it should not take the file from ZEO's user.
func chownLike(f *os.File, old os.FileInfo) {
	if st, ok := old.Sys().(*syscall.Stat_t); ok {
		_ = f.Chown(int(st.Uid), int(st.Gid))
	}
}
