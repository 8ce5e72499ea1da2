"""Writes a Data.fs such as a web site with a history leaves it, with the real ZODB.

    generate.py FILE MIB            a new file of at least so many MiB
    generate.py --grow FILE MIB     goes on with it, by so many MiB

Transactions are edits of pages: a page is written or a paragraph of it changed, its folder, catalog and metadata with it,
and now and then an image is uploaded. The images are random bytes, as little compressible as a JPEG. gzip makes the file
about 2.8 times smaller, and a longer window than gzip's finds about what it finds in a site's history: older
revisions and older parts of the catalog, not the same text again and again.
"""

import gc
import os
import random
import re
import sys
import sysconfig
from collections import Counter

import transaction
import ZODB
from BTrees.IIBTree import IITreeSet
from BTrees.IOBTree import IOBTree
from BTrees.OIBTree import OIBTree
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping
from ZODB.FileStorage import FileStorage

NEW_SHARE = 0.5  # of the edits that write a new page; the others change one
AGAIN_SHARE = 0.25  # of the others: the page that was edited just before, as editors do
IMAGE_SHARE = 0.037  # of the edits that upload one
IMAGE_CHUNK = 1 << 16  # bytes of a persistent part of an image
WORDS_INDEXED = 6  # of an edit
PARAGRAPH = '<p class="documentDescription">'


class Prose:
    """Endless real text: what the standard library says of itself, which every machine with Python has.

    It is a few MB long. Each time that it comes round, words have changed places with others as long and as frequent:
    it reads and compresses like text, but no passage comes twice.
    """

    def __init__(self, rng):
        self.random = rng
        self.paragraphs = [re.split("([A-Za-z]{3,})", p) for p in documentation()]
        count = Counter(w for p in self.paragraphs for w in p[1::2])
        self.words = sorted(count, key=lambda w: (len(w), -count[w], w))
        self.next = rng.randrange(len(self.paragraphs))
        self.turn()

    def turn(self):
        self.now = {}
        for i in range(0, len(self.words), 32):
            like = self.words[i:i + 32]
            self.now.update(zip(like, self.random.sample(like, len(like))))

    def paragraph(self):
        if self.next == len(self.paragraphs):
            self.next = 0
            self.turn()
        p = self.paragraphs[self.next]
        self.next += 1
        now = self.now
        return "".join([now.get(t, t) for t in p])


def documentation():
    """The paragraphs of the standard library's doc strings, in a fixed order, as HTML has them."""
    top = sysconfig.get_paths()["stdlib"]
    for directory, subdirectories, names in os.walk(top):
        subdirectories[:] = sorted(d for d in subdirectories if d not in ("site-packages", "__pycache__", "test", "tests"))
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as f:
                source = f.read()
            texts = [source.replace("\\n", "\n")] if name == "topics.py" else re.findall('"""(.*?)"""', source, re.S)
            for text in texts:
                for p in text.split("\n\n"):
                    p = " ".join(p.split())
                    if len(p) > 60:
                        yield p.replace("&", "&amp;").replace("<", "&lt;")


class Site:
    def __init__(self, root, seed):
        self.random = random.Random(seed)
        self.prose = Prose(self.random)
        self.root = root
        if "pages" not in root:
            root["pages"] = IOBTree()
            root["folders"] = IOBTree()
            root["metadata"] = IOBTree()
            root["words"] = OOBTree()
            root["modified"] = IOBTree()
            root["paths"] = OIBTree()
            root["images"] = IOBTree()
        self.pages, self.folders, self.count = root["pages"], root["folders"], len(root["pages"])
        self.last = 0

    def edit(self):
        r = self.random
        new = self.count < 50 or r.random() < NEW_SHARE
        if new:
            number = self.count
            self.count += 1
            page = self.create(number)
            paragraph = page["text"][len(PARAGRAPH):400]
        else:
            number = self.last if r.random() < AGAIN_SHARE else int(self.count * (1 - r.random() ** 2))
            page = self.pages[number]
            paragraph = self.prose.paragraph()
            parts = page["text"].split("\n")
            parts[r.randrange(len(parts))] = "%s%s</p>" % (PARAGRAPH, paragraph)
            page["text"] = "\n".join(parts)
        self.last = number
        now = "2024-03-%02dT%02d:%02d:%02d" % (r.randrange(1, 29), r.randrange(24), r.randrange(60), r.randrange(60))
        page["modified"] = now
        page["workflow_history"] = page["workflow_history"][-9:] + [
            {"action": "publish", "actor": "editor%d" % r.randrange(40), "time": now, "review_state": "published"}]
        path = "/site/folder-%d/page-%d" % (number // 100, number)
        self.catalog(number, path, page, now, paragraph)
        if r.random() < IMAGE_SHARE:
            self.upload(number)
        t = transaction.get()
        t.note(path)
        t.setUser("editor%d" % r.randrange(40))
        t.commit()

    def create(self, number):
        r = self.random
        folder = self.folders.get(number // 100)
        if folder is None:
            folder = self.folders[number // 100] = OOBTree()
        size, parts, made = min(r.lognormvariate(8.7, 0.8), 60000), [], 0
        while made < size:
            parts.append("%s%s</p>" % (PARAGRAPH, self.prose.paragraph()))
            made += len(parts[-1])
        page = self.pages[number] = folder["page-%d" % number] = PersistentMapping(
            title=parts[0][len(PARAGRAPH):len(PARAGRAPH) + r.randrange(20, 70)], text="\n".join(parts),
            portal_type="Document", language="en", creators=("editor%d" % r.randrange(40),),
            uid="%032x" % r.getrandbits(128), layout="document_view", exclude_from_nav=False,
            local_roles={"editor%d" % r.randrange(40): ["Owner", "Editor"]}, workflow_history=[])
        return page

    def catalog(self, number, path, page, now, paragraph):
        root = self.root
        root["metadata"][number] = (page["title"], path, now, "Document", "published", len(page["text"]))
        if path not in root["paths"]:
            root["paths"][path] = number
        root["modified"][number] = int(now[8:10]) * 86400 + int(now[11:13]) * 3600
        words = [w for w in paragraph.lower().split() if w.isalpha()]
        for word in words[:WORDS_INDEXED]:
            known = root["words"].get(word)
            if known is None:
                known = root["words"][word] = IITreeSet()
            known.insert(number)

    def upload(self, number):
        image = PersistentMapping(filename="image-%d.jpg" % number, content_type="image/jpeg")
        left = int(min(max(self.random.lognormvariate(10.8, 0.9), 2000), 1 << 20))
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
    db = ZODB.DB(storage, cache_size=50000)
    connection = db.open()
    site = Site(connection.root(), seed=start)
    gc.freeze()
    gc.set_threshold(50000)
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
