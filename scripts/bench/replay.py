"""How long a standby takes from seeing a delta to having it on disk, against writing as many bytes."""

import glob
import json
import os
import statistics
import subprocess
import time

from measure import Failed

PATIENCE = 600  # seconds


class Write:
    """Writes and fsyncs a new file of so many MiB."""

    def __init__(self, path, mib):
        self.path, self.mib = path, mib
        self.seconds, self.cpu, self.memory = [], [], 0

    def run(self, scratch):
        if os.path.exists(self.path):
            os.remove(self.path)
        block = os.urandom(1 << 20)
        os.sync()
        began = time.perf_counter()
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for _ in range(self.mib):
            os.write(fd, block)
        os.fsync(fd)
        self.seconds.append(time.perf_counter() - began)
        os.close(fd)

    @property
    def median(self):
        return statistics.median(self.seconds)


class Standby:
    """A running watch. Increments are there already; what it waits for are their manifests, which come one by one.

    The time of a run is from the moment that a manifest has its name to the one when the standby's state claims
    its increment, which it does after the last fsync.
    """

    def __init__(self, tools, repository, data):
        self.tools, self.repository, self.data = tools, repository, data
        self.hidden, self.seconds, self.cpu, self.memory = [], [], [], 0
        self.process = None

    def manifests(self):
        return sorted(glob.glob(os.path.join(self.repository, "*.manifest")))

    def hide_newest(self):
        """Takes the manifest of the newest increment away until its turn comes."""
        self.hidden.append(self.manifests()[-1])

    def __enter__(self):
        for manifest in self.hidden:
            os.rename(manifest, manifest + ".later")
        self.log = open(self.tools.path("watch.log"), "w+")
        self.process = subprocess.Popen(
            [self.tools.zodbrepl, "watch", "--from", self.repository, "--data", self.data], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.wait(os.path.basename(self.manifests()[-1]))
        return self

    def __exit__(self, *_):
        with open("/proc/%d/status" % self.process.pid) as f:
            self.memory = next((int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM:")), 0)
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def wait(self, manifest):
        stamp = manifest.removesuffix(".manifest")
        until, known = time.monotonic() + PATIENCE, None
        while True:
            try:
                st = os.stat(self.data + ".zodbrepl")
                if (st.st_ino, st.st_mtime_ns) != known:  # it is read only then, to leave the cores alone
                    with open(self.data + ".zodbrepl") as f:
                        state = json.load(f)
                    if state["applied"]["stamp"] == stamp:
                        return
                    known = st.st_ino, st.st_mtime_ns
            except FileNotFoundError:
                pass
            if self.process.poll() is not None or time.monotonic() > until:
                self.log.seek(0)
                raise Failed("the standby did not reach %s:\n%s" % (stamp, self.log.read()[-2000:]))
            time.sleep(0.0005)

    def run(self, scratch):
        manifest = self.hidden.pop(0)
        os.sync()
        time.sleep(0.3)  # it waits for the next one again
        began = time.perf_counter()
        os.rename(manifest + ".later", manifest)
        self.wait(os.path.basename(manifest))
        self.seconds.append(time.perf_counter() - began)

    @property
    def median(self):
        return statistics.median(self.seconds)
