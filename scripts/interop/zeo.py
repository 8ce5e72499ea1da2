"""Clients of a real ZEO server.

    zeo.py write ADDRESS NAME   commits and aborts until standard input ends; prints the tid of every commit
    zeo.py pack ADDRESS         packs
    zeo.py read ADDRESS         loads every object; prints the server's last tid and how many there are
"""

import itertools
import os
import sys
import threading
import time

import transaction
import ZEO
from persistent.mapping import PersistentMapping
from ZODB.POSException import ConflictError


class Refusing:
    """Joins a transaction and makes it fail after the server has voted: FileStorage takes back what it wrote."""

    def __init__(self):
        self.transaction_manager = transaction.manager

    def sortKey(self):
        return "~~~~~~~"  # votes last

    def tpc_vote(self, t):
        raise RuntimeError("no")

    def nothing(self, t):
        pass

    abort = commit = tpc_begin = tpc_finish = tpc_abort = nothing


def write(db, name):
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    connection = db.open()
    root = connection.root()
    for n in itertools.count():
        if done.is_set():
            break
        try:
            if name not in root:
                root[name] = PersistentMapping()
            elif n % 5 == 1:
                root[name]["aborted"] = os.urandom(2000)
                transaction.get().join(Refusing())
            else:
                root[name]["k%d" % (n % 20)] = PersistentMapping({"data": os.urandom(n % 7 * 3000)})
                root[name]["n"] = n
            transaction.get().note("%s %d" % (name, n))
            transaction.commit()
        except (ConflictError, RuntimeError):
            transaction.abort()
        else:
            if name in root and root[name]._p_serial:
                print(root[name]._p_serial.hex(), flush=True)


def pack(db):
    db.pack(time.time())


def read(db):
    connection = db.open()
    seen = set()
    todo = [connection.root()]
    while todo:
        obj = todo.pop()
        if obj._p_oid in seen:
            continue
        seen.add(obj._p_oid)
        obj._p_activate()
        todo.extend(v for v in obj.values() if isinstance(v, PersistentMapping))
    print(db.lastTransaction().hex() if hasattr(db, "lastTransaction") else db.storage.lastTransaction().hex(), len(seen))


def main(what, address, *args):
    db = ZEO.DB(address, wait=True, wait_timeout=30)
    {"write": write, "pack": pack, "read": read}[what](db, *args)
    transaction.abort()
    os._exit(0 if sys.stdout.flush() is None else 1)  # a server that is gone must not hold us


main(*sys.argv[1:])
