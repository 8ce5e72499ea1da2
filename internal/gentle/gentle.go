// Package gentle reads files that somebody else lives on, without pushing what he needs out of the page cache, and writes
// files that nobody will read soon.
//
// A page that was in the cache before is used and stays, whoever needs it. One that had to be read from the disk is given
// back at once.
package gentle

import (
	"errors"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dontCache is RWF_DONTCACHE (Linux 6.14): of what it reads, the kernel drops what was not in the cache before; of what it
// writes, everything as soon as it is on the disk.
const dontCache = 0x80

// File reads and writes a file. It may be used by several goroutines.
type File struct {
	f      *os.File
	unable atomic.Bool // the kernel, or this file system, does not know dontCache
}

// Open returns a File for f, which stays the caller's.
func Open(f *os.File) *File { return &File{f: f} }

// Size returns the size that the file has now, in bytes.
func (g *File) Size() (int64, error) {
	fi, err := g.f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// ReadAt is os.File's.
func (g *File) ReadAt(p []byte, off int64) (n int, err error) {
	for !g.unable.Load() && n < len(p) {
		k, err := g.try(func(fd int) (int, error) { return unix.Preadv2(fd, [][]byte{p[n:]}, off+int64(n), dontCache) })
		if refused(err) {
			g.unable.Store(true)
			break
		}
		if err != nil || k == 0 { // at the end, or broken: let it be told as usual
			break
		}
		n += k
	}
	if n == len(p) {
		return n, nil
	}
	k, err := g.readBack(p[n:], off+int64(n))
	return n + k, err
}

// try calls a system call with the descriptor, which cannot be closed meanwhile.
func (g *File) try(call func(fd int) (int, error)) (n int, err error) {
	raw, err := g.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		for {
			if n, err = call(int(fd)); err != unix.EINTR {
				return
			}
		}
	})
	if n < 0 {
		n = 0
	}
	return n, errors.Join(err, cerr)
}

func refused(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

// readBack reads, and gives back the pages that were not in the cache before. One that somebody else has read between
// the two looks is given back too; he reads it again.
func (g *File) readBack(p []byte, off int64) (int, error) {
	there := g.resident(off, len(p))
	n, err := g.f.ReadAt(p, off)
	first := off / pageSize
	for i := 0; i < len(there); {
		k := i
		for k < len(there) && there[k]&1 == there[i]&1 {
			k++
		}
		if there[i]&1 == 0 {
			_, _ = g.try(func(fd int) (int, error) {
				return 0, unix.Fadvise(fd, (first+int64(i))*pageSize, int64(k-i)*pageSize, unix.FADV_DONTNEED)
			})
		}
		i = k
	}
	return n, err
}

var pageSize = int64(os.Getpagesize())

// resident returns for each page that holds some of the bytes whether it is in the cache, nil when that cannot be known.
func (g *File) resident(off int64, length int) []byte {
	if length == 0 {
		return nil
	}
	from := off / pageSize * pageSize
	size := int(off - from + int64(length))
	var there []byte
	_, _ = g.try(func(fd int) (int, error) {
		// Without it the kernel would read further ahead than asked, and what is there would not tell any more who needs it.
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil {
			return 0, err
		}
		m, err := unix.Mmap(fd, from, size, unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return 0, err
		}
		defer unix.Munmap(m)
		pages := make([]byte, (int64(size)+pageSize-1)/pageSize)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0])))
		if errno != 0 {
			return 0, errno
		}
		there = pages
		return 0, nil
	})
	return there
}
