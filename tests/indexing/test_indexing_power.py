"""Power cuts: what was acknowledged is on the disk, whatever else is lost."""

import os
import random
import shutil
from pathlib import Path

import pytest

from indexing import Collection, Document, build_collection, create_collection, verify
from indexing.collections.aliases import list_aliases, set_alias
from indexing.collections.catalog import collection_path
from indexing.collections.snapshots import verify_snapshot
from indexing.segments.fields import default_fields
from tests.indexing.bag import BagEncoder, make_documents
from tests.indexing.power import Disk, cut_states

CUTS = int(os.environ.get("CUTS", "60"))  # make test-crash makes 3,000
ENCODER = BagEncoder()
IDS = [f"id-{n}" for n in range(30)]


def documents_in(data_dir, name="docs"):
    with Collection.open(collection_path(data_dir, name), ENCODER) as collection:
        documents = list(collection.documents())
        for document in documents[:1]:
            assert collection.search([document.content], 1)[0][0].text == document.text
        return documents


class Story:
    """What the collection may hold at this moment: what was acknowledged, and that with the write in hand."""

    def __init__(self):
        self.now, self.next, self.snapshots, self.cuts = {}, None, {}, 0

    def allowed(self):
        return [list(state.values()) for state in (self.now, self.next) if state is not None]

    def acknowledged(self):
        self.now, self.next = self.next, None


def written(state, documents):
    rest = {name: document for name, document in state.items() if name not in {d.id for d in documents}}
    return rest | {document.id: document for document in documents}


@pytest.mark.timeout(0 if CUTS > 1000 else 300)
def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(tmp_path, monkeypatch):
    rng, story = random.Random(CUTS), Story()
    data, left = tmp_path / "data", tmp_path / "left"
    data.mkdir()

    def cut(disk):
        if rng.random() > 0.08 or story.cuts >= CUTS:
            return
        left.mkdir()
        for state in cut_states(disk, left, rng):
            story.cuts += 1
            assert documents_in(state) in story.allowed()
            assert [check for check in verify(collection_path(state, "docs")) if not check.ok] == []
            for name in story.snapshots:
                assert all(check.ok for check in verify_snapshot(state, "docs", name))
            with Collection.open(collection_path(state, "docs"), ENCODER, writable=True) as collection:
                collection.upsert([Document("again", "it can be written to")])
                collection.flush()
        shutil.rmtree(left)

    directory = collection_path(data, "docs")
    create_collection(directory, default_fields(ENCODER))
    disk = Disk(data, monkeypatch, lambda disk: None)
    for folder, _, files in os.walk(data):  # what stands before the story is safe
        for path in (Path(folder), *(Path(folder, file) for file in files)):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    disk._cut = cut
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection._writer.flush_rows = 12
        step = 0
        while story.cuts < CUTS:
            step += 1
            kind = rng.choices(["upsert", "delete", "flush", "compact", "snapshot"], weights=[10, 4, 2, 2, 1])[0]
            story.next = story.now
            if kind == "upsert":
                chosen = rng.sample(IDS, rng.randint(1, 6))
                documents = [Document(name, f"text {step} {name}", metadata={"n": step}) for name in chosen]
                story.next = written(story.now, documents)
                collection.upsert(documents)
            elif kind == "delete":
                chosen = rng.sample(IDS, rng.randint(1, 4))
                story.next = {name: document for name, document in story.now.items() if name not in chosen}
                collection.delete(chosen)
            elif kind == "snapshot":
                story.snapshots[collection.snapshot(f"s{step}")] = step
            else:
                collection.flush() if kind == "flush" else collection.compact(full=rng.random() < 0.5)
            story.acknowledged()
    disk.close()
    assert story.cuts >= CUTS and step > CUTS // 20


def test_a_build_and_an_alias_are_the_old_or_the_new_after_a_power_cut(tmp_path, monkeypatch):
    rng, data, left = random.Random(5), tmp_path / "data", tmp_path / "left"
    data.mkdir()
    allowed, aliases, cuts = [make_documents(30)], [{"current": "docs"}], []

    def cut(disk):
        if rng.random() > 0.1:
            return
        left.mkdir()
        for state in cut_states(disk, left, rng):
            cuts.append(documents_in(state) in allowed and list_aliases(state) in aliases)
        shutil.rmtree(left)

    disk = Disk(data, monkeypatch, lambda disk: None)
    build_collection(make_documents(30), ENCODER, collection_path(data, "docs"))
    set_alias(data, "current", "docs")
    disk._cut = cut
    allowed.append(make_documents(41))
    build_collection(make_documents(41), ENCODER, collection_path(data, "docs"))
    allowed.pop(0)
    build_collection(make_documents(5), ENCODER, collection_path(data, "other"))
    aliases.append({"current": "other"})
    set_alias(data, "current", "other")
    aliases.pop(0)
    disk._cut = lambda disk: cuts.append(list_aliases(data) in aliases)
    build_collection(make_documents(6), ENCODER, collection_path(data, "last"))
    disk.close()
    assert all(cuts) and len(cuts) > 10
