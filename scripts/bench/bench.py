"""Measures zodbrepl against the real repozo, ZODB and cp, in one run. See: make bench

    bench.py [--size MIB] [--sizes MIB,...] [--runs N] [--dir DIR] [--bin DIR] [--keep] [--tables commands,growth,latency,cache]

commands   every command against repozo, with the goals, and what the machine leaves no way around
growth     the same commands of zodbrepl alone on files of other sizes
latency    commits on a ZEO server, alone and beside a backup
cache      what a backup leaves of a server's pages in the page cache

Every number is the median of N runs; the contenders of a row take turns. The data is in the page cache, what was written is
flushed before the next run begins. Times are of whole processes, from start to end. Memory is the peak resident size.
What is made for all this is in DIR, and is removed at the end, and when it is interrupted; --keep leaves the generated
files for the next time.
"""

import argparse
import glob
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import cache
import commands
import latency
from measure import Failed, Table, end_children, show

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
GENERATE = os.path.join(HERE, "generate.py")
TABLES = ("commands", "growth", "latency", "cache")
SMALLEST = 4  # MiB; less than that is all start and end

# Seconds that a GiB takes on one middling machine, to say beforehand how long all will take.
GENERATING, RUN, RUN_ALONE = 110, 150, 55


class Tools:
    """What is run, and where its files are."""

    def __init__(self, directory, binaries):
        self.data = os.path.abspath(directory)
        self.work = os.path.join(self.data, "work")
        self.zodbrepl = os.path.join(binaries, "zodbrepl")
        self.limit = os.path.join(binaries, "limit")
        self.python = sys.executable
        self.repozo = os.path.join(os.path.dirname(self.python), "repozo")
        self.runzeo = os.path.join(os.path.dirname(self.python), "runzeo")
        self.here = HERE

    def path(self, *names):
        return os.path.join(self.work, *names)

    def scratch(self):
        return self.path("output")

    def grow(self, path, mib):
        subprocess.run([self.python, GENERATE, "--grow", path, str(mib)], check=True)


def generate(tools, size):
    """The generated Data.fs of so many MiB, made once for every version of the generator."""
    with open(GENERATE, "rb") as f:
        version = hashlib.sha256(f.read()).hexdigest()[:8]
    name = os.path.join(tools.data, "site-%s-%s.fs" % (size, version))
    if not os.path.exists(name):
        print("making a Data.fs of %d MiB; about %d s" % (size, size * GENERATING // 1024 + 1), flush=True)
        subprocess.run([tools.python, GENERATE, name + ".new", str(size)], check=True)
        os.rename(name + ".new.index", name + ".index")
        os.rename(name + ".new", name)
        for left in glob.glob(name + ".new*"):
            os.remove(left)
    return name


def output(argv):
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def facts(tools):
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            model = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    mount = output(["df", "--output=fstype", tools.data]).splitlines()[-1] if shutil.which("df") else ""
    versions = output([tools.python, "-c", "from importlib.metadata import version as v; print('ZODB', v('ZODB'), 'ZEO', v('ZEO'))"])
    print("%d cores (%s), %s on %s; Python %s, %s" % (
        commands.cores(), model or platform.machine(), platform.system() + " " + platform.release(), mount, platform.python_version(), versions))
    print(output([tools.zodbrepl, "version"]))
    load = os.getloadavg()[0]
    if load > 0.5:
        print("this machine is busy with other work (load %.1f): all times are longer than they could be" % load)
    print(flush=True)


def check_room(tools, size):
    """Refuses to begin what the disk or the memory cannot hold: the times would be those of the disk, or there would be none."""
    need = 6 * size + 300
    free = shutil.disk_usage(tools.data).free >> 20
    if free < need:
        raise Failed("a Data.fs of %d MiB needs about %d MiB in %s, where %d are free; nothing was done" % (size, need, tools.data, free))


def memory_available():
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) >> 10 for line in f if line.startswith("MemAvailable:"))


def commands_of(tools, size, runs, table, keep):
    """The rows for a Data.fs of one size; returns (name, seconds, MiB) for each of zodbrepl's commands."""
    source = generate(tools, size)
    shutil.rmtree(tools.work, ignore_errors=True)
    os.makedirs(tools.work)
    data = tools.path("Data.fs")
    for end in ("", ".index"):
        (shutil.copy if keep else shutil.move)(source + end, data + end)
    try:
        return commands.rows(tools, data, runs, table)
    finally:
        shutil.rmtree(tools.work)


def growth_table(results):
    """Prints how the cost of each command grows with the size of Data.fs."""
    sizes = sorted(results)
    print("\nhow it grows, zodbrepl alone: seconds and peak MiB")
    print("%-40s" % "what" + "".join("%22s" % ("%d MiB" % s) for s in sizes))
    print("-" * (40 + 22 * len(sizes)))
    for n, (what, _, _) in enumerate(results[sizes[-1]]):
        cells = ""
        for s in sizes:
            _, seconds, memory = results[s][n]
            cells += "%22s" % ("%s %5s" % (show(seconds), "%.0f" % memory if memory else ""))
        print("%-40s%s" % (what, cells), flush=True)


def estimate(options, sizes):
    minutes = 0.5
    if "commands" in options.tables:
        minutes += options.size * (GENERATING + RUN * options.runs) / 1024 / 60
    if "growth" in options.tables:
        minutes += sum(s * (GENERATING + RUN_ALONE) for s in sizes) / 1024 / 60
    if "latency" in options.tables:
        minutes += latency.estimate(options.runs, min(options.size, latency.SIZE)) / 60
    if "cache" in options.tables:
        minutes += 0.5
    return minutes


def measure(tools, options):
    sizes = [s for s in options.sizes if s != options.size]
    print("this takes about %.0f minutes" % max(1, estimate(options, sizes)), flush=True)
    facts(tools)
    table, results = Table(), {}
    if "commands" in options.tables:
        check_room(tools, options.size)
        if memory_available() < 3 * options.size:
            print("little memory is free for a Data.fs of %d MiB: the disk is measured as well" % options.size)
        results[options.size] = commands_of(tools, options.size, options.runs, table, options.keep)
        print("\nMedians of %d, smallest and largest; ratio: how many times faster than repozo, or for sizes: of repozo's.\n"
              "The memory of Python's processes counts." % options.runs)
    if "growth" in options.tables:
        for size in sizes:
            check_room(tools, size)
            results[size] = commands_of(tools, size, 1, None, options.keep)
        if results:
            growth_table(results)
    for name, module in (("latency", latency), ("cache", cache)):
        if name in options.tables:
            source = generate(tools, min(options.size, module.SIZE))
            os.makedirs(tools.work, exist_ok=True)
            print(flush=True)
            module.table(tools, source, options.runs)
    if table.missed:
        print("\n" + "\n".join("missed: " + m for m in table.missed))
    elif "commands" in options.tables:
        print("\nevery goal was met")


def numbers(text):
    return [max(SMALLEST, int(n)) for n in text.replace(",", " ").split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the Data.fs")
    parser.add_argument("--sizes", type=numbers, default="", help="other sizes, for the growth")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dir", default=os.path.join(TOP, "bench-data"))
    parser.add_argument("--bin", default=os.path.join(TOP, "bin"), help="where zodbrepl and limit are")
    parser.add_argument("--keep", action="store_true", help="leave the generated files for the next time")
    parser.add_argument("--tables", type=lambda s: s.split(","), default=list(TABLES))
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error("no table %s; there are %s" % (", ".join(sorted(unknown)), ", ".join(TABLES)))
    options.size = max(SMALLEST, options.size)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tools = Tools(options.dir, options.bin)
    os.makedirs(tools.data, exist_ok=True)
    began = time.monotonic()
    try:
        measure(tools, options)
        print("took %.1f minutes" % ((time.monotonic() - began) / 60))
    except Failed as e:
        sys.exit("bench: %s" % e)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        end_children()
        shutil.rmtree(tools.work, ignore_errors=True)
        for file in glob.glob(os.path.join(tools.data, "site-*")):
            if not options.keep or ".new" in file:
                os.remove(file)
        if not os.listdir(tools.data):
            os.rmdir(tools.data)


if __name__ == "__main__":
    main()
