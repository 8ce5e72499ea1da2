"""The real runzeo, with its options. Says on standard error from where to where FileStorage had to scan its file, which
it does for what Data.fs.index does not cover.
"""

import functools
import importlib
import sys

from ZEO import runzeo

module = importlib.import_module("ZODB.FileStorage.FileStorage")
original = module.read_index


@functools.wraps(original)
def watched(file, name, index, tindex, *args, **options):
    start = options.get("start", args[2] if len(args) > 2 else 4)
    pos, maxoid, ltid = original(file, name, index, tindex, *args, **options)
    print("scanned from %d to %d" % (start, pos), file=sys.stderr, flush=True)
    return pos, maxoid, ltid


module.read_index = watched
runzeo.main(sys.argv[1:])
