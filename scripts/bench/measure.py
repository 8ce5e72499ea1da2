"""How make bench measures: whole processes that take turns, and the table of what came out."""

import os
import signal
import statistics
import subprocess
import time

MEMORY_GOAL = 100  # MiB


class Failed(Exception):
    pass


def show(seconds):
    return "%.1f ms" % (seconds * 1000) if seconds < 1 else "%.2f s" % seconds


def spread(seconds):
    """The smallest and the largest, as short as the median before them allows; nothing for one run."""
    if len(seconds) < 2:
        return ""
    low, high = min(seconds), max(seconds)
    if statistics.median(seconds) < 1:
        return "%.1f..%.1f" % (low * 1000, high * 1000)
    return "%.2f..%.2f" % (low, high)


class Contender:
    """A command line that is measured, and what happens before each of its runs.

    read, when given, takes the seconds out of what the command printed; otherwise they are those of the whole process.
    """

    def __init__(self, argv, before=lambda: None, read=None):
        self.argv, self.before, self.read = argv, before, read
        self.seconds, self.cpu, self.memory = [], [], 0

    def run(self, scratch):
        self.before()
        seconds, cpu, memory, out = timed(self.argv, scratch)
        self.seconds.append(self.read(out) if self.read else seconds)
        self.cpu.append(cpu)
        self.memory = max(self.memory, memory)

    @property
    def median(self):
        return statistics.median(self.seconds)


def timed(argv, scratch):
    """Runs a process; returns its seconds, those of all its cores, peak MiB and what it printed.

    What others wrote is flushed before. The kernel counts this process's own size into the peak of its children, so it
    must stay small.
    """
    os.sync()
    with open(scratch, "w+b") as out:
        began = time.perf_counter()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode(errors="replace")
    if process.returncode != 0:
        raise Failed("%s\nended with %d:\n%s" % (" ".join(argv), process.returncode, text[-2000:]))
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text


def end_children():
    """Kills what is left of this process's children: one may have begun, and a signal come before anything held it."""
    pid = os.getpid()
    with open("/proc/%d/task/%d/children" % (pid, pid)) as f:
        children = [int(child) for child in f.read().split()]
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_turns(runs, contenders, scratch):
    """Runs all contenders so many times, each time in the opposite order, so that none has the better moments."""
    for n in range(runs):
        for c in contenders if n % 2 == 0 else contenders[::-1]:
            c.run(scratch)


class Goal:
    """What is to be reached: at_least, a ratio; at_most, a number. needs says from what size on it is meant."""

    def __init__(self, text, met):
        self.text, self.met = text, met

    @classmethod
    def times(cls, n):
        return cls(">= %g" % n, lambda ours, theirs: theirs / ours >= n)

    @classmethod
    def share(cls, n):
        return cls("<= %.2f" % n, lambda ours, theirs: ours / theirs <= n)

    @classmethod
    def below(cls, seconds):
        return cls("<= %s" % show(seconds), lambda ours, theirs: ours <= seconds)


class Table:
    """Prints rows as they come, and remembers which goals were missed."""

    HEAD = ("what", "zodbrepl", "min..max", "repozo", "min..max", "ratio", "goal", "", "limit", "CPU s", "CPU s", "MiB", "MiB")
    OVER = ("", "", "", "or ZODB", "", "", "", "", "", "ours", "theirs", "ours", "theirs")
    WIDTHS = (40, 9, 14, 9, 14, 6, 12, 6, 36, 6, 6, 5, 6)
    LEFT = (0, 2, 4, 6, 7, 8)

    def __init__(self):
        self.missed = []

    def head(self):
        self.line(self.OVER)
        self.line(self.HEAD)
        print("-" * (sum(self.WIDTHS) + len(self.WIDTHS) - 1), flush=True)

    def line(self, cells):
        print(" ".join("%-*s" % (w, c) if i in self.LEFT else "%*s" % (w, c)
                       for i, (w, c) in enumerate(zip(self.WIDTHS, cells))).rstrip(), flush=True)

    def row(self, what, ours, theirs=None, goal=None, limit=("", None), memory_goal=MEMORY_GOAL):
        """limit is a name and seconds: what the machine or the format leaves no way around."""
        met, ratio = "", ""
        if theirs:
            ratio = number(theirs.median / ours.median)
        if goal:
            met = self.judge(what, goal, ours.median, theirs.median if theirs else 0)
        if memory_goal and ours.memory > memory_goal:
            self.missed.append("%s: %.0f MiB of memory, the goal is %d" % (what, ours.memory, memory_goal))
        self.line((
            what, show(ours.median), spread(ours.seconds), show(theirs.median) if theirs else "-",
            spread(theirs.seconds) if theirs else "", ratio, goal.text if goal else "", met,
            "%s %s" % (limit[0], show(limit[1])) if limit[1] else "",
            cpu(ours), cpu(theirs) if theirs else "", memory(ours), memory(theirs) if theirs else ""))

    def size(self, what, ours, theirs, goal):
        """A row of stored sizes, in bytes; its ratio is ours of theirs."""
        mib = "%.0f MiB"
        self.line((what, mib % (ours / 2**20), "", mib % (theirs / 2**20), "", "%.3f" % (ours / theirs), goal.text,
                   self.judge(what, goal, ours, theirs), "", "", "", "", ""))

    def judge(self, what, goal, ours, theirs):
        if goal.met(ours, theirs):
            return "met"
        self.missed.append("%s: the goal is %s" % (what, goal.text))
        return "MISSED"


def number(ratio):
    return "%.0f" % ratio if ratio >= 100 else "%.1f" % ratio


def cpu(contender):
    """Seconds of all cores together: what a machine that is busy with other work does not change much."""
    return "%.2f" % statistics.median(contender.cpu) if contender.cpu else ""


def memory(contender):
    return "%.0f" % contender.memory if contender.memory else ""
