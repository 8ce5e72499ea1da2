"""The real ZODB and repozo as a process: reads a call per line (JSON) from standard input and answers with a line.

    {"do": "grow", "data": "Data.fs", "steps": ["plain", "undo"]}  ->  {"size": ...}
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import time

import transaction
import ZODB
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage
from ZODB.POSException import POSError
from ZODB.scripts import fstest
from ZODB.scripts import repozo

module = sys.modules["ZODB.FileStorage.FileStorage"]
todays_date = repozo.gen_filedate
held = {}  # path -> FileStorage


def hexed(b):
    return b.hex()


# --- repozo, at a time ---

def run_repozo(args, now=None):
    repozo.gen_filedate = todays_date
    if now:
        repozo.gen_filedate = lambda options: tuple(time.strptime(now, "%Y-%m-%d-%H-%M-%S")[:6])
    repozo.VERBOSE = False
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            repozo.main(args)
        except SystemExit as e:
            code = e.code
            if not isinstance(code, (int, type(None))):
                print(code)
                code = 1
    return {"code": code or 0, "said": said.getvalue()}


# --- a writer ---

def plain(db, root, n):
    root["a"] = "text %d " % n * 50
    root["obj%d" % n] = PersistentMapping({"n": n})
    note("plain %d \u00fc\u4e2d" % n)


def big(db, root, n):
    root["big"] = PersistentMapping({"data": os.urandom(3 << 20)})
    note("big")


def delete(db, root, n):
    for key in [k for k in root if k.startswith("obj")][:1]:
        del root[key]
    note("delete")


def empty(db, root, n):
    note("no record")
    transaction.get().setExtendedInfo("why", "nothing")


def abort(db, root, n):
    root["a"] = "never"
    transaction.abort()


def undo(db, root, n):
    root["undone"] = n
    note("will be undone")
    transaction.commit()
    db.undo(db.undoLog(0, 1)[0]["id"])
    note("undo")


def pack(db, root, n):
    db.pack(time.time() + 1)


def note(text):
    transaction.get().note(text)


STEPS = {f.__name__: f for f in (plain, big, delete, empty, abort, undo, pack)}


def grow(data, steps):
    storage = FileStorage(data)
    db = ZODB.DB(storage)
    connection = db.open()
    root = connection.root()
    for step in steps:
        STEPS[step](db, root, len(root))
        transaction.commit()
        connection.sync()
    size, last = storage.getSize(), hexed(storage.lastTransaction())
    connection.close()
    db.close()
    return {"size": size, "last": last}


# --- a reader ---

def opened(data, read_only):
    """The storage, and from where read_index had to scan."""
    starts = []
    original = module.read_index

    def watched(file, name, index, tindex, stop=b"\377" * 8, ltid=module.z64, start=4, maxoid=module.z64, recover=0, read_only=0):
        starts.append(start)
        return original(file, name, index, tindex, stop, ltid, start, maxoid, recover, read_only)

    module.read_index = watched
    try:
        return FileStorage(data, read_only=read_only), starts
    finally:
        module.read_index = original


def objects(storage):
    """Every current object's tid and data, as one hash."""
    h = hashlib.sha256()
    n = 0
    for oid in storage._index:
        try:
            record, tid = storage.load(oid)
        except POSError:
            record, tid = b"", b"deleted"
        h.update(oid + tid + hashlib.sha256(record).digest())
        n += 1
    return {"objects": n, "digest": h.hexdigest()}


def load(data, read_only=True):
    storage, starts = opened(data, read_only)
    try:
        return dict(objects(storage), used_index=storage._used_index, start=starts[-1], end=storage.getSize(),
                    size=os.path.getsize(data), last=hexed(storage.lastTransaction()))
    finally:
        storage.close()


def hold(data):
    held[data] = FileStorage(data)
    return {"pid": os.getpid()}


def release(data):
    held.pop(data).close()
    return {}


def fs_test(data):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            fstest.chatter = lambda msg, level=1: None
            fstest.check(data)
        except Exception as e:
            return {"ok": False, "said": "%s: %s" % (type(e).__name__, e)}
    return {"ok": True, "said": said.getvalue()}


def save_index(data, to):
    """ZODB's own index of the file, scanned anew."""
    assert not os.path.exists(data + ".index")
    storage = FileStorage(data, read_only=True)
    storage._index.save(storage.getSize(), to)
    storage.close()
    return {"size": os.path.getsize(to)}


CALLS = {"repozo": run_repozo, "grow": grow, "load": load, "hold": hold, "release": release, "fstest": fs_test, "index": save_index}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = CALLS[call.pop("do")](**call)
        except Exception as e:
            answer = {"error": "%s: %s" % (type(e).__name__, e)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


main()
