"""Random writes to collections, each told before and after; killed by the test that started it.

A process that has imported everything waits for lines ``SEED ROUND DATA_DIR`` on standard input and forks for each of
them. The fork opens the collection and writes until it is killed. Lines on standard output: the fork's ``pid``, for
each write ``begin`` with all that is to happen as JSON, then ``end`` once it was acknowledged; ``dead`` by the parent.
"""

import json
import os
import random
import sys
from pathlib import Path

from indexing import Collection, Document, build_collection
from indexing.collections.aliases import set_alias
from indexing.collections.catalog import collection_path
from indexing.collections.snapshots import list_snapshots, restore
from tests.indexing.bag import BagEncoder, make_documents

ENCODER = BagEncoder()
IDS = [f"id-{n}" for n in range(40)]
FLUSH_ROWS = 12


def tell(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def planned(rng, number, data_dir):
    """What is to be done next, as plain values."""
    kind = rng.choices(
        ["upsert", "delete", "delete-matching", "flush", "compact", "snapshot", "alias", "build", "restore"],
        weights=[40, 15, 4, 4, 5, 3, 4, 3, 2],
    )[0]
    step = {"kind": kind}
    if kind == "upsert":
        step["documents"] = [
            [name, f"text {number} {name}", {"n": number}] for name in rng.sample(IDS, rng.randint(1, 8))
        ]
    elif kind == "delete":
        step["ids"] = rng.sample(IDS, rng.randint(1, 5))
    elif kind == "delete-matching":
        step["lte"] = number - rng.randint(20, 60)
    elif kind == "compact":
        step["full"] = rng.random() < 0.5
    elif kind in ("snapshot", "restore"):
        step["name"] = f"s{number}" if kind == "snapshot" else rng.choice(list_snapshots(data_dir, "docs") or [""])
    elif kind == "alias":
        step["to"] = rng.choice(["docs", "built"])
    elif kind == "build":
        step["count"] = rng.randint(1, 30)
    return step


def do(collection, data_dir, step):
    """Run one planned step; return the collection, which a restore reopens."""
    kind = step["kind"]
    if kind == "upsert":
        collection.upsert([Document(name, text, metadata=metadata) for name, text, metadata in step["documents"]])
    elif kind == "delete":
        collection.delete(step["ids"])
    elif kind == "delete-matching":
        collection.delete(filter={"field": "n", "lte": step["lte"]})
    elif kind == "flush":
        collection.flush()
    elif kind == "compact":
        collection.compact(full=step["full"])
    elif kind == "snapshot":
        collection.snapshot(step["name"])
    elif kind == "alias":
        set_alias(data_dir, "current", step["to"])
    elif kind == "build":
        build_collection(make_documents(step["count"]), ENCODER, collection_path(data_dir, "built"), index="exact")
    elif kind == "restore" and step["name"]:
        collection.close()
        restore(data_dir, "docs", step["name"])
        return opened(data_dir)
    return collection


def opened(data_dir):
    collection = Collection.open(collection_path(data_dir, "docs"), ENCODER, writable=True)
    collection._writer.flush_rows = FLUSH_ROWS
    return collection


def work(seed, first, data_dir):
    rng = random.Random(seed)
    collection = opened(data_dir)
    number = first
    while True:
        step = planned(rng, number, data_dir)
        tell("begin", json.dumps(step))
        collection = do(collection, data_dir, step)
        tell("end")
        number += 1


if __name__ == "__main__":
    for line in sys.stdin:
        seed, first, data_dir = line.split(maxsplit=2)
        child = os.fork()
        if not child:
            tell("pid", os.getpid())
            work(int(seed), int(first), Path(data_dir.strip()))
        os.waitpid(child, 0)
        tell("dead")
