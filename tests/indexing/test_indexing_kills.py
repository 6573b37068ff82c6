"""Writers that are killed at any moment: what was acknowledged is there, and nothing is there by half."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from indexing import Collection, Document, build_collection, create_collection, verify
from indexing.collections.aliases import list_aliases, resolve, set_alias
from indexing.collections.catalog import collection_path
from indexing.collections.snapshots import list_snapshots, snapshots_path
from indexing.segments.fields import default_fields
from tests.indexing.bag import BagEncoder, make_documents
from tests.indexing.model import Model

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", "50"))  # make test-crash kills 1,000 times
ENCODER = BagEncoder()


class World:
    """What the collections, aliases and snapshots should hold."""

    def __init__(self):
        self.docs, self.snapshots, self.alias, self.built = Model(), {}, "docs", 1

    def copy(self):
        other = World()
        other.docs, other.snapshots = self.docs.copy(), dict(self.snapshots)
        other.alias, other.built = self.alias, self.built
        return other

    def do(self, step):
        kind = step["kind"]
        if kind == "upsert":
            self.docs.upsert(Document(name, text, metadata=values) for name, text, values in step["documents"])
        elif kind == "delete":
            self.docs.delete(step["ids"])
        elif kind == "delete-matching":
            self.docs.delete_matching({"field": "n", "lte": step["lte"]})
        elif kind == "snapshot":
            self.snapshots[step["name"]] = list(self.docs.documents.values())
        elif kind == "alias":
            self.alias = step["to"]
        elif kind == "build":
            self.built = step["count"]
        elif kind == "restore" and step["name"]:
            self.docs = Model(self.snapshots[step["name"]])


def found_in(data_dir):
    """What they do hold, every byte checked."""
    world = World()
    directory = collection_path(data_dir, "docs")
    assert [check for check in verify(directory) if not check.ok] == []
    with Collection.open(directory, ENCODER) as collection:
        documents = list(collection.documents())
        world.docs = Model(documents)
        for document in documents[:2]:
            assert document.id in {hit.id for hit in collection.search([document.content], 3)[0]}
    for name in list_snapshots(data_dir, "docs"):
        with Collection.open(snapshots_path(data_dir, "docs") / name) as collection:
            world.snapshots[name] = list(collection.documents())
    world.alias = list_aliases(data_dir)["current"]
    with Collection.open(collection_path(data_dir, "built")) as collection:
        documents = list(collection.documents())
        assert documents == make_documents(len(documents))
        world.built = len(documents)
    return world


def same(one, other):
    return (
        list(one.docs.documents.values()) == list(other.docs.documents.values())
        and one.snapshots == other.snapshots
        and (one.alias, one.built) == (other.alias, other.built)
    )


class Zygote:
    """The process that forks the writers."""

    def __init__(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.indexing.kill_child"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, seed, first, data_dir):
        self.process.stdin.write(f"{seed} {first} {data_dir}\n")
        self.process.stdin.flush()
        word, pid = self.line()
        assert word == "pid"
        return int(pid)

    def line(self):
        line = self.process.stdout.readline()
        assert line, "the process that forks writers ended"
        word, _, rest = line.rstrip("\n").partition(" ")
        return word, rest

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def zygote():
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.mark.timeout(0 if KILLS > 100 else 600)
def test_what_was_acknowledged_survives_kills_at_any_moment(data_dir, zygote):
    """Each kill comes at a random moment of a random write: within the time that this kind took before."""
    seed = int(os.environ.get("KILLS_SEED", random.randrange(2**32)))
    rng = random.Random(seed)
    world, seconds, killed, first = World(), defaultdict(lambda: 0.002), Counter(), 0
    create_collection(collection_path(data_dir, "docs"), default_fields(ENCODER, index="exact"))
    build_collection(make_documents(1), ENCODER, collection_path(data_dir, "built"), index="exact")
    set_alias(data_dir, "current", "docs")
    for kill in range(KILLS):
        where = f"KILLS_SEED={seed}, kill {kill}"
        pid = zygote.start(rng.randrange(2**32), first, data_dir)
        target, done, step, begun = rng.randint(0, 12), 0, None, 0.0
        if rng.random() < 0.1:  # while it opens, or a little later
            time.sleep(rng.uniform(0, 0.02))
            target = -1
        while True:
            if done == target and step is not None:
                time.sleep(rng.uniform(0, 1.2) * seconds[step["kind"]])
                target = -1
            if target < 0:
                os.kill(pid, signal.SIGKILL)
                target = 10**9
            word, rest = zygote.line()
            if word == "dead":
                break
            if word == "begin":
                step, begun = json.loads(rest), time.monotonic()
            elif word == "end":
                seconds[step["kind"]] = 0.7 * seconds[step["kind"]] + 0.3 * (time.monotonic() - begun)
                world.do(step)
                done, step, first = done + 1, None, first + 1
        found, outcomes = found_in(data_dir), [world.copy()]
        if step is not None:
            outcomes.append(world.copy())
            outcomes[1].do(step)
        matches = [place for place, outcome in enumerate(outcomes) if same(outcome, found)]
        assert matches, f"{where}, in {step}"
        killed[step["kind"] if step is not None else "between"] += 1
        world = outcomes[matches[0]]
        assert resolve(data_dir, "current") == collection_path(data_dir, world.alias)
        for name in sorted(world.snapshots)[4:]:
            shutil.rmtree(snapshots_path(data_dir, "docs") / name)
            del world.snapshots[name]
    print(f"{KILLS} kills, none lost anything: {dict(killed)}")  # noqa: T201  # shown by make test-crash
    assert sum(killed.values()) == KILLS
