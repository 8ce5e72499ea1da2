package filestorage

import "golang.org/x/sys/unix"

const openNonblock = unix.O_NONBLOCK | unix.O_CLOEXEC
