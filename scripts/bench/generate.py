"""Writes a Data.fs such as a web site with a history leaves it, with the real ZODB.

    generate.py FILE MIB            a new file of at least so many MiB
    generate.py --grow FILE MIB     goes on with it, by so many MiB

Transactions are edits of pages: a page is made or changed, its folder, catalog and metadata with it, and now and then an
image is uploaded. The text is that of Python's own standard library, which every machine with Python has; the images
are random bytes, as little compressible as a JPEG. gzip -6 makes the file about 2.8 times smaller.
"""

import os
import random
import sys
import sysconfig

import transaction
import ZODB
from BTrees.IIBTree import IITreeSet
from BTrees.IOBTree import IOBTree
from BTrees.OIBTree import OIBTree
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage

IMAGE_SHARE = 0.02  # of the edits that upload one
IMAGE_CHUNK = 1 << 16  # bytes of a persistent part of an image
WORDS_INDEXED = 12  # of a page


def library_text():
    """The paragraphs of the standard library's sources, in a fixed order."""
    top = sysconfig.get_paths()["stdlib"]
    paragraphs = []
    for directory, subdirectories, names in os.walk(top):
        subdirectories[:] = sorted(d for d in subdirectories if d not in ("site-packages", "__pycache__", "test", "tests"))
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as f:
                    paragraphs.extend(p for p in f.read().split("\n\n") if len(p) > 40)
    return paragraphs


class Site:
    def __init__(self, root, seed):
        self.random = random.Random(seed)
        self.paragraphs = library_text()
        self.root = root
        if "pages" not in root:
            root["pages"] = IOBTree()
            root["folders"] = IOBTree()
            root["metadata"] = IOBTree()
            root["words"] = OOBTree()
            root["modified"] = IOBTree()
            root["paths"] = OIBTree()
            root["images"] = IOBTree()
        self.pages, self.folders = root["pages"], root["folders"]

    def text(self):
        """Some paragraphs that follow each other, as HTML."""
        r = self.random
        count = min(int(r.lognormvariate(1.8, 0.7)) + 1, 60)
        at = r.randrange(len(self.paragraphs) - count)
        return self.paragraphs[at:at + count], "\n".join(
            '<p class="documentDescription">%s</p>' % p.replace("&", "&amp;").replace("<", "&lt;")
            for p in self.paragraphs[at:at + count])

    def edit(self):
        r = self.random
        new = len(self.pages) < 50 or r.random() < 0.4
        number = len(self.pages) if new else int(len(self.pages) * (1 - r.random() ** 2))
        if new:
            folder = self.folders.get(number // 100)
            if folder is None:
                folder = self.folders[number // 100] = OOBTree()
            page = self.pages[number] = PersistentMapping()
            folder["page-%d" % number] = page
        else:
            page = self.pages[number]
        paragraphs, html = self.text()
        words = sorted(set(w.lower() for w in " ".join(paragraphs).split() if w.isalpha()))
        title = " ".join(r.sample(words, min(6, len(words)))) or "page %d" % number
        now = "2024-03-%02dT%02d:%02d:%02d" % (r.randrange(1, 29), r.randrange(24), r.randrange(60), r.randrange(60))
        page.update(
            title=title, text=html, portal_type="Document", modified=now, effective=now, language="en",
            creators=("editor%d" % r.randrange(40),), subject=tuple(words[:3]),
            uid="%032x" % r.getrandbits(128), layout="document_view", exclude_from_nav=False,
            local_roles={"editor%d" % r.randrange(40): ["Owner", "Editor"]},
            workflow_history=[{"action": "publish", "actor": "admin", "time": now, "review_state": "published"}],
        )
        path = "/site/folder-%d/page-%d" % (number // 100, number)
        self.root["metadata"][number] = (title, path, now, "Document", "published", len(html))
        self.root["paths"][path] = number
        self.root["modified"][number] = int(now[8:10]) * 86400 + int(now[11:13]) * 3600
        for word in r.sample(words, min(WORDS_INDEXED, len(words))):
            known = self.root["words"].get(word)
            if known is None:
                known = self.root["words"][word] = IITreeSet()
            known.insert(number)
        if r.random() < IMAGE_SHARE:
            self.upload(number)
        transaction.get().note(path)
        transaction.get().setUser("editor%d" % r.randrange(40))
        transaction.commit()

    def upload(self, number):
        image = PersistentMapping(filename="image-%d.jpg" % number, content_type="image/jpeg")
        left = int(min(max(self.random.lognormvariate(10.2, 0.9), 2000), 1 << 20))
        while left > 0:
            part = PersistentMapping(data=self.random.randbytes(min(left, IMAGE_CHUNK)))
            image[len(image)] = part
            left -= IMAGE_CHUNK
        self.root["images"][number] = image


def main(arguments):
    grow = arguments[:1] == ["--grow"]
    path, mib = arguments[grow:]
    storage = FileStorage(path, create=not grow)
    start = storage.getSize() if grow else 0
    target = start + int(float(mib) * (1 << 20))
    db = ZODB.DB(storage, cache_size=20000)
    connection = db.open()
    site = Site(connection.root(), seed=start)
    fsync, os.fsync = os.fsync, lambda fd: None  # nobody needs this file after a crash
    edits = 0
    while storage.getSize() < target:
        site.edit()
        edits += 1
        if edits % 100 == 0:
            connection.cacheGC()
    os.fsync = fsync
    db.close()


if __name__ == "__main__":
    main(sys.argv[1:])
