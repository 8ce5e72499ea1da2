"""What a backup leaves of a server's pages in the page cache.

A memory cgroup stands for a host whose memory is smaller than its Data.fs. In it, the hot part of Data.fs and the whole of
another file are read some times, as a server does; then a full backup runs in the same cgroup, and mincore tells
how many of those pages are still there. That needs root and a cgroup that can be made; without, nothing is measured.

    cache.py run CGROUP ARGV...                    runs ARGV in the cgroup
    cache.py touch CGROUP FILE EVERY               reads every EVERY-th stretch of the file, three times, in the cgroup
"""

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import time

from measure import Failed

SIZE = 256  # MiB, at most, of the Data.fs
STRETCH = 256 << 10  # bytes that are read together
HOT = 8  # one stretch in so many is hot
OTHER = 24  # MiB, of the other file


class Cgroup:
    """A memory cgroup with a limit, of version 1 or 2; None from make when there can be none."""

    def __init__(self, path, limit_file):
        self.path, self.limit_file = path, limit_file

    @classmethod
    def make(cls, limit):
        for parent, limit_file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            path = os.path.join(parent, "zodbrepl-bench-%d" % os.getpid())
            try:
                os.mkdir(path)
            except OSError:
                continue
            try:
                with open(os.path.join(path, limit_file), "w") as f:
                    f.write(str(limit))
                return cls(path, limit_file)
            except OSError:
                os.rmdir(path)
        return None

    def remove(self):
        for _ in range(100):
            try:
                return os.rmdir(self.path)
            except OSError: # a process is still ending in it
                time.sleep(0.05)


def enter(path):
    with open(os.path.join(path, "cgroup.procs"), "w") as f:
        f.write(str(os.getpid()))


def touch(path, every):
    """Reads one stretch in so many, three times over, so that the kernel counts it as in use."""
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for _ in range(3):
        for at in range(0, size, STRETCH * every):
            os.pread(fd, STRETCH, at)
    os.close(fd)


def resident(path, every):
    """The share of the hot pages that is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = os.path.getsize(path)
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), size, access=mmap.ACCESS_COPY) as m:
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        seen = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(m))
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), seen) != 0:
            raise Failed("mincore %s: %s" % (path, os.strerror(ctypes.get_errno())))
        per = STRETCH // mmap.PAGESIZE
        hot = [bool(seen[n] & 1) for n in range(pages) if n // per % every == 0]
    return sum(hot) / len(hot)


def forget(*paths):
    os.sync()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def table(tools, source, runs):
    data, other, repository = tools.path("live.fs"), tools.path("other"), tools.path("repository")
    shutil.copy(source, data)
    with open(other, "wb") as f:
        f.write(os.urandom(OTHER << 20))
    hot = (os.path.getsize(data) // HOT >> 20) + OTHER
    limit = hot + 64
    print("pages of a server that are still cached after a full backup of %d MiB, with %d MiB of memory for both (%d are in use)" % (
        os.path.getsize(data) >> 20, limit, hot))
    backup = ["backup", "--full", "-f", data, "-r", repository]
    contenders = (
        ("nothing", None), ("zodbrepl, gzip", [tools.zodbrepl, *backup]), ("zodbrepl, none", [tools.zodbrepl, *backup, "--codec", "none"]),
        ("repozo -BFz", [tools.repozo, "-BFz", "-f", data, "-r", repository]), ("repozo -BF", [tools.repozo, "-BF", "-f", data, "-r", repository]))
    for name, argv in contenders:
        group = Cgroup.make(limit << 20)
        if group is None:
            print("not measured: no memory cgroup can be made here (it needs root)")
            break
        try:
            forget(data, other)
            shutil.rmtree(repository, ignore_errors=True)
            os.makedirs(repository)
            script = [tools.python, os.path.join(tools.here, "cache.py")]
            for path, every in ((data, HOT), (other, 1)):
                subprocess.run([*script, "touch", group.path, path, str(every)], check=True)
            before = resident(data, HOT), resident(other, 1)
            if argv:
                done = subprocess.run([*script, "run", group.path, *argv], capture_output=True, text=True)
                if done.returncode != 0:
                    raise Failed("%s\nended with %d in %d MiB:\n%s" % (" ".join(argv), done.returncode, limit, (done.stdout + done.stderr)[-2000:]))
            after = resident(data, HOT), resident(other, 1)
        finally:
            group.remove()
        if name == "nothing":
            print("%-20s%22s%22s" % ("after", "hot part of Data.fs", "another file"))
            print("-" * 64)
        print("%-20s%21.0f%%%21.0f%%" % (name, 100 * after[0], 100 * after[1]), flush=True)
        if min(before) < 0.9:
            raise Failed("the pages did not stay in the cache even before the backup (%.0f%%, %.0f%%)" % (before[0] * 100, before[1] * 100))
    shutil.rmtree(tools.work)


if __name__ == "__main__":
    if len(sys.argv) > 3 and sys.argv[1] == "run":
        enter(sys.argv[2])
        os.execv(sys.argv[3], sys.argv[3:])
    elif len(sys.argv) == 5 and sys.argv[1] == "touch":
        enter(sys.argv[2])
        touch(sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(__doc__)
