"""How long commits take on a real ZEO server, alone and beside a backup of its Data.fs.

A client commits small transactions to a server of its own, one every PACE seconds, as a site with some traffic does. The
conditions take turns. A backup is begun again when it ends, so that one always runs.

    latency.py client SOCKET SECONDS      prints the latencies of its commits, as JSON
"""

import json
import os
import signal
import shutil
import socket
import subprocess
import sys
import time

from measure import Failed

SIZE = 512  # MiB, at most: it is the rate of a backup that counts
SECONDS = 12  # of each condition, each time; less when the Data.fs is small
PACE = 0.01
OBJECTS = 500
WARM_UP = 20  # commits that do not count


def seconds(size):
    return max(1.5, min(SECONDS, size / 16))


def estimate(runs, size):
    return seconds(size) + runs * 7 * (seconds(size) + 1)


def client(address, duration):
    import transaction
    import ZODB
    from persistent.mapping import PersistentMapping
    from ZEO.ClientStorage import ClientStorage

    storage = ClientStorage(address, wait_timeout=60)
    db = ZODB.DB(storage)
    root = db.open().root()
    if "latency" not in root:
        root["latency"] = PersistentMapping({n: PersistentMapping() for n in range(OBJECTS)})
        transaction.commit()
    objects = root["latency"]
    took, n = [], 0
    until = time.perf_counter() + duration
    while (now := time.perf_counter()) < until:
        n += 1
        objects[n * 7 % OBJECTS]["text"] = "%d of some bytes " % n * 20
        transaction.commit()
        done = time.perf_counter()
        if n > WARM_UP:
            took.append(done - now)
        time.sleep(max(0, PACE - (done - now)))
    db.close()
    print(json.dumps(took))


class Server:
    """A ZEO server on a Data.fs."""

    def __init__(self, tools, data):
        self.address = tools.path("zeo.sock")
        self.log = open(tools.path("zeo.log"), "w+")
        self.process = subprocess.Popen([tools.runzeo, "-a", self.address, "-f", data], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        cwd=tools.work)
        until = time.monotonic() + 60
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(self.address)
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.stop()
                    self.log.seek(0)
                    raise Failed("the ZEO server did not start:\n" + self.log.read()[-2000:])
                time.sleep(0.05)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Condition:
    """A name, and the backup that runs meanwhile: argv of repository, or None for none."""

    def __init__(self, name, argv=None):
        self.name, self.argv = name, argv
        self.took, self.rounds, self.backups = [], [], []

    def run(self, tools, address, duration):
        repository = tools.path("repository")
        os.sync()
        committing = subprocess.Popen([tools.python, os.path.join(tools.here, "latency.py"), "client", address, str(duration)], stdout=subprocess.PIPE, text=True)
        backup = None
        try:
            while committing.poll() is None:
                if self.argv and (backup is None or backup.poll() is not None):
                    if backup:
                        self.ended(backup, began)
                    shutil.rmtree(repository, ignore_errors=True)
                    os.makedirs(repository)
                    began = time.perf_counter()
                    backup = subprocess.Popen(self.argv + ["-r", repository], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
                time.sleep(0.05)
        finally:
            for process in (backup, committing):
                if process and process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
        if committing.returncode != 0:
            raise Failed("the client of the ZEO server ended with %d" % committing.returncode)
        took = json.loads(committing.stdout.read())
        self.took.extend(took)
        self.rounds.append(percentile(took, 99))

    def ended(self, backup, began):
        if backup.returncode != 0:
            raise Failed("%s\nended with %d:\n%s" % (" ".join(self.argv), backup.returncode, backup.stdout.read().decode()[-2000:]))
        self.backups.append(time.perf_counter() - began)


def percentile(values, n):
    return sorted(values)[min(len(values) - 1, len(values) * n // 100)]


def table(tools, source, runs):
    size = os.path.getsize(source) >> 20
    duration = seconds(size)
    data = tools.path("live.fs")
    for end in ("", ".index"):
        shutil.copy(source + end, data + end)
    ours = [tools.zodbrepl, "backup", "--full", "-f", data]
    conditions = [Condition("no backup")]
    for nice in ("low", "idle", "none"):
        conditions.append(Condition("zodbrepl, gzip, --nice %s" % nice, ours + ["--nice", nice]))
    conditions.append(Condition("zodbrepl, none", ours + ["--codec", "none"]))
    for options in ("-BFz", "-BF"):
        conditions.append(Condition("repozo %s" % options, [tools.repozo, options, "-f", data]))
    server = Server(tools, data)
    try:
        for n in range(runs):
            for c in conditions if n % 2 == 0 else conditions[::-1]:
                c.run(tools, server.address, duration)
    finally:
        server.stop()
        shutil.rmtree(tools.work)
    print("commits on a ZEO server (one every %d ms) while a full backup of its Data.fs of %d MiB runs: ms" % (PACE * 1000, size))
    print("%-28s%9s%9s%9s%16s%9s%12s" % ("beside it", "median", "p99", "max", "p99 of rounds", "commits", "a backup"))
    print("-" * 92)
    for c in conditions:
        print("%-28s%9.1f%9.1f%9.1f%16s%9d%12s" % (
            c.name, percentile(c.took, 50) * 1000, percentile(c.took, 99) * 1000, max(c.took) * 1000,
            "%.0f..%.0f" % (min(c.rounds) * 1000, max(c.rounds) * 1000), len(c.took),
            "%.1f s" % (sum(c.backups) / len(c.backups)) if c.backups else "> %.0f s" % duration if c.argv else ""), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "client":
        client(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(__doc__)
