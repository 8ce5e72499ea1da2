"""Measures zodbrepl against the real repozo, ZODB and cp, in one run, and prints one table. See: make bench

    bench.py [--size MIB] [--runs N] [--only TEXT]

Every number is the median of N runs; the contenders of a row take turns. The data is in the page cache, what was written is
flushed before the next run begins. Times are of whole processes, from start to end. Memory is the peak resident size.
"""

import argparse
import glob
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
DATA = os.path.join(TOP, "bench-data")
WORK = os.path.join(DATA, "work")
ZODBREPL = os.path.join(TOP, "bin", "zodbrepl")
SCAN = os.path.join(TOP, "bin", "scan")
PYTHON = sys.executable
REPOZO = os.path.join(os.path.dirname(PYTHON), "repozo")
GENERATE = os.path.join(HERE, "generate.py")
CHANGE = 10  # MiB
MEMORY_GOAL = 100  # MiB

OPEN_WITHOUT_INDEX = "import sys; from ZODB.FileStorage import FileStorage; FileStorage(sys.argv[1], read_only=True)"


class Failed(Exception):
    pass


def timed(argv):
    """Runs a process; returns seconds, peak MiB and what it printed.

    The kernel counts this process's own size into the peak of its children, so it must stay small.
    """
    os.sync()
    out = open(os.path.join(WORK, "output"), "w+b")
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    out.seek(0)
    text = out.read().decode(errors="replace")
    out.close()
    if process.returncode != 0:
        raise Failed("%s\nended with %d:\n%s" % (" ".join(argv), process.returncode, text[-2000:]))
    return seconds, usage.ru_maxrss / 1024, text


def path(*names):
    return os.path.join(WORK, *names)


def fresh(name):
    """An empty directory."""
    shutil.rmtree(path(name), ignore_errors=True)
    os.makedirs(path(name))
    return path(name)


def clone(name, to):
    """A copy of a repository that shares the bytes of its increments, which nobody changes."""
    fresh(to)
    for entry in os.scandir(path(name)):
        share = entry.name.endswith((".fs", ".fsz", ".deltafs", ".deltafsz"))
        (os.link if share else shutil.copy)(entry.path, path(to, entry.name))


def remove(*names):
    for name in names:
        for file in glob.glob(path(name)):
            os.remove(file)


class Contender:
    """A command line, with what comes before and after each of its runs; after may return what to print for the time."""

    def __init__(self, argv, before=lambda: None, after=lambda out: None):
        self.argv, self.before, self.after = argv, before, after
        self.seconds, self.memory, self.note = [], 0, None

    def run(self):
        self.before()
        seconds, memory, out = timed(self.argv)
        self.note = self.after(out) or self.note
        self.seconds.append(seconds)
        self.memory = max(self.memory, memory)

    @property
    def median(self):
        return statistics.median(self.seconds)


class Table:
    COLUMNS = ("what", "zodbrepl", "repozo", "ratio", "goal", "", "limit", "MiB", "MiB")
    WIDTHS = (38, 12, 12, 7, 12, 6, 22, 6, 6)

    def __init__(self, runs, only):
        self.runs, self.only, self.missed = runs, only, []
        self.line(("", "", "or ZODB", "", "", "", "", "ours", "theirs"))
        self.line(self.COLUMNS)
        print("-" * (sum(self.WIDTHS) + len(self.WIDTHS) - 1), flush=True)

    def line(self, cells):
        print(" ".join("%-*s" % (w, c) if i in (0, 4, 5, 6) else "%*s" % (w, c)
                       for i, (w, c) in enumerate(zip(self.WIDTHS, cells))).rstrip(), flush=True)

    def wants(self, what):
        return not self.only or self.only in what

    def row(self, what, ours, theirs=None, limit=None, limit_name="", goal="", good=None, needed=False):
        """Runs the contenders in turns and prints a line. good(ours, theirs) says whether the goal is met, in seconds."""
        if not needed and not self.wants(what):
            return
        contenders = [c for c in (ours, theirs, limit) if c]
        for c in contenders:
            c.seconds, c.memory = [], 0
        for n in range(self.runs):
            for c in contenders if n % 2 == 0 else contenders[::-1]:
                c.run()
        met = ""
        if good:
            met = "met" if good(ours, theirs) else "MISSED"
        if ours.memory > MEMORY_GOAL:
            self.missed.append("%s: %.0f MiB of memory, the goal is %d" % (what, ours.memory, MEMORY_GOAL))
        if met == "MISSED":
            self.missed.append("%s: goal %s" % (what, goal))
        self.line((
            what, ours.note or show(ours.median), show(theirs.median) if theirs else "-",
            "%.1f" % (theirs.median / ours.median) if theirs else "-", goal, met,
            "%s %s" % (limit_name, limit.note or show(limit.median)) if limit else "",
            "%.0f" % ours.memory, "%.0f" % theirs.memory if theirs else "",
        ))


def show(seconds):
    return "%.1f ms" % (seconds * 1000) if seconds < 1 else "%.2f s" % seconds


def generate(size):
    """The generated Data.fs of so many MiB, made once for every version of the generator."""
    with open(GENERATE, "rb") as f:
        version = hashlib.sha256(f.read()).hexdigest()[:8]
    name = os.path.join(DATA, "site-%s-%s.fs" % (size, version))
    if not os.path.exists(name):
        print("making a Data.fs of %s MiB (%s); this takes about %d s" % (size, name, size // 8 + 1), flush=True)
        os.makedirs(DATA, exist_ok=True)
        for old in glob.glob(os.path.join(DATA, "site-%s-*" % size)):
            os.remove(old)
        subprocess.run([PYTHON, GENERATE, name + ".new", str(size)], check=True)
        os.rename(name + ".new.index", name + ".index")
        os.rename(name + ".new", name)
        for left in glob.glob(name + ".new*"):
            os.remove(left)
    return name


def output(argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def facts(data):
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    mount = output(["df", "--output=fstype", DATA]).splitlines()[-1] if shutil.which("df") else ""
    versions = output([PYTHON, "-c", "from importlib.metadata import version as v; print('ZODB', v('ZODB'), 'BTrees', v('BTrees'))"])
    print("%d cores (%s), %s, %s on %s; %s, Python %s, %s" % (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), model or platform.machine(),
        platform.system() + " " + platform.release(), mount, DATA, output(["go", "version"]).removeprefix("go version "),
        platform.python_version(), versions))
    print(output([ZODBREPL, "version"]))
    packed = 0
    with subprocess.Popen(["gzip", "-6", "-c", data], stdout=subprocess.PIPE) as gzip:
        for block in iter(lambda: gzip.stdout.read(1 << 20), b""):
            packed += len(block)
    size = os.path.getsize(data)
    print("Data.fs: %d bytes, %s; gzip -6 makes it %.2f times smaller\n" % (
        size, ", ".join(output([SCAN, data]).split(", ")[1:3]), size / packed), flush=True)


def unchanged_rows(table, label, data, ours, theirs, needed):
    """Repositories with a full of data, and the row of a backup that finds nothing to do."""
    if not os.path.isdir(path(ours)):
        timed([ZODBREPL, "backup", "-f", data, "-r", fresh(ours)])
    if not os.path.isdir(path(theirs)):
        timed([REPOZO, "-BFz", "-f", data, "-r", fresh(theirs)])
    table.row(
        "nothing changed, %s" % label, Contender([ZODBREPL, "backup", "-f", data, "-r", path(ours)]),
        Contender([REPOZO, "-BzQ", "-f", data, "-r", path(theirs)]),
        goal="<= 20 ms", good=lambda o, t: o.median <= 0.020, needed=needed)


def rows(table, data, small):
    size = os.path.getsize(data)
    with open(data, "rb") as f:
        while f.read(1 << 20):
            pass
    cp = Contender(["sh", "-c", "cp %s %s && sync %s" % (data, path("copy"), path("copy"))], before=lambda: remove("copy"))

    cat = Contender(["sh", "-c", "exec cat %s >/dev/null" % data])

    def rate(out):
        return out.rsplit(", ", 1)[1].strip()

    table.row("scan all headers", Contender([SCAN, data], after=rate),
              limit=cat, limit_name="cat",
              goal=">= 1 GB/s", good=lambda o, t: float(o.note.split()[0]) >= 1)
    table.row("full backup, gzip", Contender([ZODBREPL, "backup", "--full", "-f", data, "-r", path("ours")], before=lambda: fresh("ours")),
              Contender([REPOZO, "-BFz", "-f", data, "-r", path("theirs")], before=lambda: fresh("theirs")), cp, "cp+sync")
    table.row("full backup, plain", Contender([ZODBREPL, "backup", "--full", "--codec", "none", "-f", data, "-r", path("ours-plain")], before=lambda: fresh("ours-plain")),
              Contender([REPOZO, "-BF", "-f", data, "-r", path("theirs-plain")], before=lambda: fresh("theirs-plain")), cp, "cp+sync")
    unchanged_rows(table, "%d MiB" % (size >> 20), data, "ours", "theirs", False)
    unchanged_rows(table, "%d MiB" % (os.path.getsize(small) >> 20), small, "ours-small", "theirs-small", False)

    table.row("verify, gzip", Contender([ZODBREPL, "verify", "-r", path("ours")]), Contender([REPOZO, "-V", "-r", path("theirs")]),
              Contender(["md5sum", data]), "md5sum")
    table.row("verify quick", Contender([ZODBREPL, "verify", "--quick", "-r", path("ours")]), Contender([REPOZO, "-VQ", "-r", path("theirs")]))
    table.row("recover, gzip", Contender([ZODBREPL, "recover", "-r", path("ours"), "-o", path("out.fs")], before=lambda: remove("out.fs*")),
              Contender([REPOZO, "-R", "-r", path("theirs"), "-o", path("out.fs")], before=lambda: remove("out.fs*")), cp, "cp+sync")
    table.row("ship a full to a directory", Contender([ZODBREPL, "ship", "-r", path("ours"), "--to", path("shared")], before=lambda: fresh("shared")),
              limit=Contender(["sh", "-c", "cp %s %s && sync %s" % (path("ours", "*.fsz"), path("copy"), path("copy"))], before=lambda: remove("copy")),
              limit_name="cp+sync")
    table.row("a standby's first full", Contender([ZODBREPL, "watch", "--once", "--from", path("shared" if os.path.isdir(path("shared")) else "ours"), "--data", path("standby.fs")],
                                                  before=lambda: remove("standby.fs*")), limit=cp, limit_name="cp+sync")
    index = data + ".index"
    shutil.copy(index, path("index.saved"))
    table.row("index from nothing", Contender([ZODBREPL, "index", data], before=lambda: os.path.exists(index) and os.remove(index),
                                              after=lambda out: None if os.path.exists(index) else 1 / 0),
              Contender([PYTHON, "-c", OPEN_WITHOUT_INDEX, data], before=lambda: os.path.exists(index) and os.remove(index)))
    shutil.copy(path("index.saved"), index)
    table.row("structure: check-fs, fstest", Contender([ZODBREPL, "check-fs", data]), Contender([PYTHON, "-m", "ZODB.scripts.fstest", data]),
              cat, "cat")
    remove("out.fs*", "standby.fs*", "copy")

    subprocess.run([PYTHON, GENERATE, "--grow", data, str(CHANGE)], check=True)
    change = Contender(["sh", "-c", "tail -c %d %s > %s && sync %s" % (CHANGE << 20, data, path("copy"), path("copy"))], before=lambda: remove("copy"))

    def delta(what, options, **keywords):
        table.row(what, Contender([ZODBREPL, "backup", "-f", data, "-r", path("ours-delta")], before=lambda: clone("ours", "ours-delta")),
                  Contender([REPOZO, options, "-f", data, "-r", path("theirs-delta")], before=lambda: clone("theirs", "theirs-delta")),
                  change, "tail+sync", **keywords)

    delta("%d MiB changed, gzip; repozo -BzQ" % CHANGE, "-BzQ", goal=">= 5 times", good=lambda o, t: t.median / o.median >= 5)
    delta("%d MiB changed, gzip; repozo -Bz" % CHANGE, "-Bz")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the Data.fs")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="only the rows with this text in their name")
    options = parser.parse_args()
    site, little = generate(options.size), generate(4)
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    try:
        facts(site)
        for name, source in (("Data.fs", site), ("small.fs", little)):
            shutil.copy(source, path(name))
            shutil.copy(source + ".index", path(name + ".index"))
        table = Table(options.runs, options.only)
        rows(table, path("Data.fs"), path("small.fs"))
    except Failed as e:
        sys.exit("bench: %s" % e)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print("\nMedian of %d. ratio: how many times faster than repozo (or ZODB). Processes that Python starts count some MiB of Python." % options.runs)
    print("\n".join("missed: " + m for m in table.missed) or "every goal was met")


if __name__ == "__main__":
    main()
