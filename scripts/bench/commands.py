"""The rows of make bench: zodbrepl's commands against repozo's, and what the machine leaves no way around."""

import glob
import os
import shutil

import replay
from measure import Contender, Goal, in_turns, show, timed

CHANGE = 10  # MiB, of the delta; less for a small file

OPEN_WITHOUT_INDEX = "import sys; from ZODB.FileStorage import FileStorage; FileStorage(sys.argv[1], read_only=True)"


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def rows(tools, data, runs, table):
    """Measures everything; returns (name, seconds, MiB) of zodbrepl's rows. Without a table it runs alone."""
    bench = Rows(tools, data, runs, table)
    with open(data, "rb") as f: # into the page cache
        while f.read(1 << 20):
            pass
    if table:
        print("Data.fs of %.0f MiB" % (os.path.getsize(data) / 2**20))
        table.head()
    for step in (bench.fulls, bench.verify, bench.recover, bench.index, bench.nothing_changed, bench.delta, bench.replay):
        step()
    return bench.results


class Rows:
    def __init__(self, tools, data, runs, table):
        self.tools, self.data, self.runs, self.table = tools, data, runs, table
        self.alone = table is None
        self.results = []
        self.cores = {}  # by step: what core() made
        self.change = min(CHANGE, max(1, os.path.getsize(data) >> 22))

    # what the rows are made of

    def path(self, *names):
        return self.tools.path(*names)

    def fresh(self, name):
        shutil.rmtree(self.path(name), ignore_errors=True)
        os.makedirs(self.path(name))

    def remove(self, *names):
        for name in names:
            for file in glob.glob(self.path(name)):
                os.remove(file)

    def clone(self, name, to):
        """A copy of a repository that shares the bytes of its increments, which nobody changes."""
        self.fresh(to)
        for entry in os.scandir(self.path(name)):
            share = ".fs" in entry.name or ".deltafs" in entry.name
            (os.link if share else shutil.copy)(entry.path, self.path(to, entry.name))

    def stored(self, name):
        return sum(e.stat().st_size for e in os.scandir(self.path(name)) if ".fs" in e.name or ".deltafs" in e.name)

    def ours(self, *arguments, before=lambda: None):
        return Contender([self.tools.zodbrepl, *arguments], before)

    def backup(self, *arguments, before=lambda: None):
        """Not standing back: that is of the other work on this machine, which is not what is measured."""
        return self.ours("backup", "--nice", "none", *arguments, before=before)

    def repozo(self, *arguments, before=lambda: None):
        return None if self.alone else Contender([self.tools.repozo, *arguments], before)

    def shell(self, script, *arguments, before=lambda: None):
        return None if self.alone else Contender(["sh", "-ec", script, "sh", *arguments], before)

    def copy(self):
        return self.shell('cp "$1" "$2"; sync "$2"', self.data, self.path("copy"), before=lambda: self.remove("copy"))

    def core(self, *step):
        """One core at one step of the work."""
        if not self.alone:
            self.cores[step] = Contender([self.tools.limit, *step, self.data], read=float)
        return self.cores.get(step)

    def codec_limit(self, step, codec, share=1):
        """A limit, (name, seconds): md5 is one stream, and on all cores together there is that and the codec's step to be done."""
        if self.alone:
            return "", 0
        md5, coding = self.cores["md5",].median, self.cores[step, codec].median
        name = "md5 and %s, %d cores" % ({"encode": "packing", "decode": "unpacking"}[step], cores())
        one, all_of_them = ("md5", md5 * share), (name, (md5 + coding) / cores() * share)
        return max(one, all_of_them, key=lambda limit: limit[1])

    def changed(self):
        """What a delta has of all bytes."""
        return (self.change << 20) / os.path.getsize(self.data)

    def read(self):
        return self.shell('dd if="$1" of=/dev/null bs=512k 2>/dev/null', self.data)

    def run(self, *contenders, often=1):
        """often is for what is so short that a few runs do not tell much."""
        in_turns(often * self.runs, [c for c in contenders if c], self.tools.scratch())

    def row(self, what, ours, theirs=None, goal=None, *limits, **keywords):
        """limits are (name, seconds or a contender): the largest of them is the limit."""
        self.results.append((what, ours.median, ours.memory))
        if self.table:
            floors = [(name, getattr(limit, "median", limit)) for name, limit in limits]
            self.table.row(what, ours, theirs, goal, max(floors, key=lambda f: f[1], default=("", None)), **keywords)

    # the rows

    def fulls(self):
        def backup(codec):
            return self.backup("--full", "--codec", codec, "-f", self.data, "-r", self.path(codec), before=lambda: self.fresh(codec))

        gzip, zstd, none = backup("gzip"), backup("zstd"), backup("none")
        packed = self.repozo("-BFz", "-f", self.data, "-r", self.path("repozo"), before=lambda: self.fresh("repozo"))
        plain = self.repozo("-BF", "-f", self.data, "-r", self.path("repozo-plain"), before=lambda: self.fresh("repozo-plain"))
        copy, md5 = self.copy(), self.core("md5")
        deflate, compress = self.core("encode", "gzip"), self.core("encode", "zstd")
        self.run(gzip, zstd, packed, deflate, compress, md5)
        self.run(none, plain, copy)
        self.remove("copy")
        self.row("full backup, gzip", gzip, packed, Goal.times(10), self.codec_limit("encode", "gzip"))
        self.row("full backup, zstd", zstd, packed, Goal.times(18), self.codec_limit("encode", "zstd"))
        self.row("full backup, none", none, plain, Goal.times(1.7), ("cp+sync", copy), ("md5", md5))
        if self.table:
            theirs = self.stored("repozo")
            self.table.size("stored, gzip", self.stored("gzip"), theirs, Goal.share(1.06))
            self.table.size("stored, zstd", self.stored("zstd"), theirs, Goal.share(0.80))

    def unpacking(self):
        return [self.core("md5"), self.core("decode", "gzip"), self.core("decode", "zstd")]

    def verify(self):
        gzip, zstd = (self.ours("verify", "-r", self.path(codec)) for codec in ("gzip", "zstd"))
        packed = self.repozo("-V", "-r", self.path("repozo"))
        self.run(gzip, zstd, packed, *self.unpacking())
        self.row("verify, gzip", gzip, packed, Goal.times(4), self.codec_limit("decode", "gzip"))
        self.row("verify, zstd", zstd, packed, Goal.times(8), self.codec_limit("decode", "zstd"))

    def recover(self):
        def recover(codec):
            return self.ours("recover", "-r", self.path(codec), "-o", self.path("out.fs"), before=lambda: self.remove("out.fs*"))

        def repozo(name):
            return self.repozo("-R", "-r", self.path(name), "-o", self.path("out.fs"), before=lambda: self.remove("out.fs*"))

        gzip, zstd, none, packed, plain = recover("gzip"), recover("zstd"), recover("none"), repozo("repozo"), repozo("repozo-plain")
        copy = self.copy()
        self.run(gzip, zstd, packed, none, plain, copy, *self.unpacking())
        self.remove("out.fs*", "copy")
        self.row("recover, gzip; verified, index", gzip, packed, Goal.times(4), self.codec_limit("decode", "gzip"), ("cp+sync", copy))
        self.row("recover, zstd; verified, index", zstd, packed, Goal.times(8), self.codec_limit("decode", "zstd"), ("cp+sync", copy))
        self.row("recover, none; verified, index", none, plain, Goal.times(2.5), ("cp+sync", copy), ("md5", self.cores.get(("md5",))))
        for name in ("none", "repozo-plain", "zstd"):
            shutil.rmtree(self.path(name), ignore_errors=True)

    def index(self):
        index = self.data + ".index"

        def without():
            if os.path.exists(index):
                os.remove(index)

        ours = self.ours("index", self.data, before=without)
        theirs = None if self.alone else Contender([self.tools.python, "-c", OPEN_WITHOUT_INDEX, self.data], without)
        read = self.read()
        self.run(ours, theirs, read, often=3)
        limit = "dd, %d cores" % cores(), read.median / cores() if read else 0
        self.row("index from scratch; FileStorage", ours, theirs, Goal.times(10), limit)
        without()
        timed([self.tools.zodbrepl, "index", self.data], self.tools.scratch())
        check = self.ours("check-fs", self.data)
        fstest = None if self.alone else Contender([self.tools.python, "-m", "ZODB.scripts.fstest", self.data])
        self.run(check, fstest, often=3)
        self.row("structure check; fstest", check, fstest, Goal.times(10), limit)

    def backups(self):
        """A backup of what is new, on both sides."""
        timed([self.tools.zodbrepl, "backup", "-f", self.data, "-r", self.path("gzip")], self.tools.scratch())
        if not self.alone:
            timed([self.tools.repozo, "-BzQ", "-f", self.data, "-r", self.path("repozo")], self.tools.scratch())

    def nothing_changed(self):
        self.tools.grow(self.data, 0.1)
        self.backups()
        ours = self.backup("-f", self.data, "-r", self.path("gzip"))
        quick, usual = (self.repozo(o, "-f", self.data, "-r", self.path("repozo")) for o in ("-BzQ", "-Bz"))
        start = None if self.alone else self.ours("version")
        self.run(ours, quick, start, often=5)
        self.run(usual)
        self.results.append(("nothing changed", ours.median, ours.memory))
        if self.table:
            limit = "starting a process", start.median
            self.table.row("nothing changed; -Q after a small delta", ours, quick, Goal.times(50), limit)
            self.table.row("nothing changed; default", ours, usual, Goal.times(500), limit)
            self.table.row("nothing changed, time", ours, None, Goal.below(0.010), limit)

    def delta(self):
        self.tools.grow(self.data, self.change)
        ours = self.backup("-f", self.data, "-r", self.path("ours-delta"), before=lambda: self.clone("gzip", "ours-delta"))
        quick, usual = (self.repozo(o, "-f", self.data, "-r", self.path("theirs-delta"), before=lambda: self.clone("repozo", "theirs-delta"))
                        for o in ("-BzQ", "-Bz"))
        self.run(ours, quick, often=3)
        self.run(usual)
        limit = self.codec_limit("encode", "gzip", self.changed())
        self.results.append(("%d MiB changed, gzip" % self.change, ours.median, ours.memory))
        if self.table:
            self.table.row("%d MiB changed, gzip; -Q" % self.change, ours, quick, Goal.times(8), limit)
            self.table.row("%d MiB changed, gzip; default" % self.change, ours, usual, Goal.times(100), limit)
        for name in ("ours-delta", "theirs-delta", "repozo"):
            shutil.rmtree(self.path(name), ignore_errors=True)

    def replay(self):
        """Deltas come one by one to a standby that follows, of either codec."""
        codecs, often = ("gzip", "zstd"), 3

        def back_up():
            for codec in codecs:
                timed([self.tools.zodbrepl, "backup", "--codec", codec, "-f", self.data, "-r", self.path(codec)], self.tools.scratch())

        self.fresh("zstd")
        back_up()
        standbys = {codec: replay.Standby(self.tools, self.path(codec), self.path("standby.fs")) for codec in codecs}
        for _ in range(often * self.runs):
            self.tools.grow(self.data, self.change)
            back_up()
            for standby in standbys.values():
                standby.hide_newest()
        for codec, standby in standbys.items():
            write = replay.Write(self.path("copy"), self.change)
            with standby:
                self.run(standby, write, often=often)
            self.remove("standby.fs*", "copy")
            what = "replay of %d MiB on a standby, %s" % (self.change, codec)
            self.results.append((what, standby.median, standby.memory))
            if self.table:
                three = Goal("<= 3 x write", lambda ours, theirs: ours <= 3 * write.median)
                check = self.codec_limit("decode", codec, self.changed())[1]
                limit = "%s of that and write+fsync" % show(check), check + write.median
                self.table.row(what, standby, None, three, limit, memory_goal=None)
