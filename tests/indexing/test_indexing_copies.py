"""Files that change on the disk after they were opened are never copied as if they were whole."""

import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from embedserve.errors import CorruptFileError
from indexing import Collection, build_collection, create_collection, verify
from indexing.collections.catalog import all_files, collection_path
from indexing.collections.manifest import read_manifest
from indexing.collections.publication import publish
from indexing.collections.reembed import reembed
from indexing.collections.snapshots import list_snapshots, restore, snapshot_path, verify_snapshot
from indexing.jobs.assembly import assemble, fields_for
from indexing.jobs.job import JobOptions, job_path, run_job
from indexing.jobs.shard_files import SHARD, check_shard
from indexing.jobs.shard_split import ShardSettings
from indexing.segments.document_table import DocumentStore
from indexing.segments.fields import BM25, WORDS, encode_documents, field_of
from indexing.segments.segment import DOCUMENTS, Segment, SegmentWriter
from indexing.storage.files import write_lock
from tests.indexing.bag import VOCABULARY, BagEncoder, contents, make_documents

ENCODER = BagEncoder()
EVERY = {
    "dense": field_of(ENCODER, index="flat"),
    "multi": field_of(ENCODER, "multi"),
    "sparse": field_of(ENCODER, "sparse", dim=VOCABULARY),
    BM25: WORDS,
}
SEGMENT_KINDS = {
    "segment.json", "documents.sqlite", "sequence.npy",
    "dense.npy", "dense/index.faiss", "dense/rows.npy", "dense/alive.npy",
    "multi/values.npy", "multi/ids.npy", "multi/offsets.npy", "multi/rows.npy", "multi/alive.npy",
    "sparse/rows.npy", "sparse/offsets.npy", "sparse/indices.npy", "sparse/values.npy",
    "bm25/keys.npy", "bm25/offsets.npy", "bm25/rows.npy", "bm25/counts.npy", "bm25/lengths.npy",
    "dense/engine.json", "multi/engine.json", "sparse/engine.json", "bm25/engine.json",
}  # fmt: skip
DEAD = "dead.npy"
SHARD_KINDS = {
    "documents.jsonl", "places.npy", "tokens.npy", "truncated.npy", "dense.npy", "multi.npy", "multi_ids.npy",
    "multi_lengths.npy", "sparse_indices.npy", "sparse_values.npy", "sparse_lengths.npy",
}  # fmt: skip


@dataclass
class Copy:
    """One way to copy.

    Attributes:
        kinds: The first part of the name of each kind of file that it reads, without the tags of engines.
        files: All files that it reads.
        run: Makes the copy.
        damaged: Returns which files a check names.
        target: The directory of the collection that it makes.
        count: Documents in the copy.
    """

    kinds: set[str]
    files: list[Path]
    run: Callable[[], object]
    damaged: Callable[[], list[Path]]
    target: Path
    count: int


@contextmanager
def opened(data_dir):
    """A collection of every field: a segment with deleted rows."""
    directory = collection_path(data_dir, "every")
    create_collection(directory, EVERY)
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert(make_documents(30))
        collection.flush()
        collection.delete(["old-29"])
        collection.flush()
        yield collection


def files_of(directory):
    return [directory / name for name, _ in all_files(directory, read_manifest(directory))]


def damaged_in(directory):
    return [directory / check.name for check in verify(directory) if not check.ok]


def other(data_dir):
    """The directory of a collection that a copy is to replace."""
    directory = collection_path(data_dir, "other")
    build_collection(make_documents(3, "before"), ENCODER, directory)
    return directory


@contextmanager
def merging(data_dir):
    with opened(data_dir) as collection:
        at = collection.directory
        yield Copy(
            SEGMENT_KINDS | {DEAD}, files_of(at), lambda: collection.compact(full=True), lambda: damaged_in(at), at, 29
        )


@contextmanager
def snapshot(data_dir):
    with opened(data_dir) as collection:
        at = collection.directory
        yield Copy(
            SEGMENT_KINDS | {DEAD}, files_of(at), lambda: collection.snapshot("one"), lambda: damaged_in(at), at, 29
        )
    assert list_snapshots(data_dir, "every") == ["one"]
    assert all(check.ok for check in verify_snapshot(data_dir, "every", "one"))


@contextmanager
def restoring(data_dir):
    with opened(data_dir) as collection:
        collection.snapshot("one")
    folder, target = snapshot_path(data_dir, "every", "one"), other(data_dir)

    def damaged():
        return [folder / check.name for check in verify_snapshot(data_dir, "every", "one") if not check.ok]

    yield Copy(
        SEGMENT_KINDS | {DEAD},
        files_of(folder),
        lambda: restore(data_dir, "every", "one", to="other"),
        damaged,
        target,
        29,
    )


@contextmanager
def publishing(data_dir):
    folders, target = [data_dir / "segments" / name for name in ("a", "b")], other(data_dir)
    for number, folder in enumerate(folders):
        documents = make_documents(20, "part")[10 * number : 10 * number + 10]
        writer = SegmentWriter(folder, EVERY)
        writer.add(documents, encode_documents(EVERY, {ENCODER.fingerprint: ENCODER}, documents)[0])
        writer.finish()
        writer.close()
    files = [path for path in sorted(folders[1].rglob("*")) if path.is_file()]

    def damaged():
        with pytest.raises(CorruptFileError) as raised:
            Segment(folders[1], EVERY)
        return [path for path in files if str(path) in raised.value.message]

    yield Copy(SEGMENT_KINDS, files, lambda: publish(target, EVERY, folders), damaged, target, 20)


@contextmanager
def reembedding(data_dir):
    with opened(data_dir) as collection:
        at = collection.directory
    files = [path for path in files_of(at) if path.name == DOCUMENTS]
    target = collection_path(data_dir, "every-2")
    yield Copy({DOCUMENTS}, files, lambda: reembed(data_dir, "every", ENCODER), lambda: damaged_in(at), target, 29)


@contextmanager
def assembling(data_dir):
    target, work = other(data_dir), job_path(data_dir, "job")
    encoder = BagEncoder()
    encoder.outputs, encoder.vocabulary_size = ("dense", "multi", "sparse"), VOCABULARY
    run_job(make_documents(20), encoder, collection_path(data_dir, "job"), work, JobOptions(shard_size=10))
    folders = sorted((work / "shards").glob("??/*"))
    files = [path for path in sorted(folders[0].iterdir()) if path.name != SHARD]

    def run():
        with write_lock(target):
            assemble([(folder, frozenset()) for folder in folders], fields_for(encoder), target, work)

    def damaged():
        state, _, problem = check_shard(folders[0], ShardSettings(encoder.fingerprint, None))
        assert state == "damaged"
        return [path for path in files if str(path) in problem]

    yield Copy(SHARD_KINDS, files, run, damaged, target, 20)


def flip(path):
    """Change a bit in the middle of a file, in place, so that what is mapped changes too."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 2]))


def mend(path, whole):
    with path.open("r+b") as file:
        file.write(whole)


def kind_of(path):
    """Return a file's name without the tag of an engine, below the folder of its field."""
    name = re.sub(r"^[0-9a-f]{16}\.", "", re.sub(r"^dead-[0-9a-f]{16}", "dead", path.name))
    return f"{path.parent.name}/{name}" if path.parent.name in EVERY else name


def tree(data_dir):
    """Return the files of all collections and shards; an interrupted snapshot is none."""
    paths = [path.relative_to(data_dir) for path in data_dir.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path for path in paths if not any(part.endswith(".partial") for part in path.parts)}


@pytest.fixture
def due(monkeypatch):
    """A list of files, each of which is damaged right after the next documents were read or files linked."""
    due = []

    def after(call):
        def wrapper(*values, **options):
            result = call(*values, **options)
            while due:
                flip(due.pop())
            return result

        return wrapper

    for owner, name in ((os, "link"), (SegmentWriter, "add"), (DocumentStore, "get")):
        monkeypatch.setattr(owner, name, after(getattr(owner, name)))
    return due


WAYS = [(way, when) for way in (merging, snapshot, restoring, publishing, assembling) for when in ("before", "during")]


@pytest.mark.parametrize("way, when", [*WAYS, (reembedding, "during")])  # which opens, and so checks, the files itself
def test_a_file_that_changes_on_the_disk_is_refused_by_every_way_to_copy(data_dir, due, way, when):
    with way(data_dir) as copy:
        assert {kind_of(path) for path in copy.files} == copy.kinds
        before = tree(data_dir)
        for path in copy.files:
            whole = path.read_bytes()
            if when == "before":
                flip(path)
            else:
                due.append(path)
            with pytest.raises(CorruptFileError) as raised:
                copy.run()
            assert not due
            assert raised.value.message.startswith(f"{path} is ")
            assert re.search("rebuild it|take another|run the job again", raised.value.message)
            assert copy.damaged() == [path]
            assert tree(data_dir) == before
            mend(path, whole)
        copy.run()
    assert contents(copy.target)[1] == copy.count
    assert all(check.ok for check in verify(copy.target))


# ------------------------------------------------------------------ merges of a collection that stays open


@pytest.fixture
def collection(data_dir):
    with opened(data_dir) as collection:
        yield collection


def segment_file(collection, pattern):
    entry = collection.manifest.segments[0]
    return next((collection.directory / "segments" / entry.name).glob(pattern))


def test_damage_stops_merges_and_not_writes(collection, caplog):
    collection._writer.flush_rows = 30
    path = segment_file(collection, "dense.npy")
    whole = path.read_bytes()
    flip(path)
    for number in range(20):
        collection.upsert(make_documents(30, f"new{number}"))
        assert collection.state.memory.count <= 30
    assert len(collection) == 29 + 600
    assert len(collection.manifest.segments) > 15
    assert damaged_in(collection.directory) == [path]
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(CorruptFileError, match=r"dense\.npy is damaged"):
        collection.compact()
    mend(path, whole)
    collection.compact()
    collection.upsert(make_documents(30, "last"))
    assert len(collection.manifest.segments) < 8
    assert len(collection) == 29 + 630
    assert damaged_in(collection.directory) == []


def test_a_damaged_segment_does_not_stop_a_merge_of_others(collection):
    path = segment_file(collection, "dense.npy")
    collection.upsert(make_documents(20, "new"))
    collection.flush()
    collection.delete([f"new-{number}" for number in range(10)])
    flip(path)
    collection.compact()
    assert [entry.count for entry in collection.manifest.segments] == [30, 10]
    assert damaged_in(collection.directory) == [path]


@pytest.mark.parametrize("pattern", ["dense.npy", "multi/*.values.npy", "documents.sqlite"])
def test_a_file_that_was_replaced_by_a_whole_one_is_opened_again_before_it_is_merged(collection, pattern):
    """What is mapped is still the damaged file, while all digests are right."""
    path = segment_file(collection, pattern)
    whole = path.read_bytes()
    flip(path)
    backup = path.with_name("backup")
    backup.write_bytes(whole)
    backup.replace(path)
    assert damaged_in(collection.directory) == []
    with pytest.raises(CorruptFileError, match=r"was replaced while it was open; open the collection again"):
        collection.compact(full=True)
    collection.close()
    with Collection.open(collection.directory, ENCODER, writable=True) as again:
        again.compact(full=True)
    assert contents(collection.directory) == ("old", 29)


def test_a_merge_copies_no_damaged_page_that_was_read_before(collection):
    path = segment_file(collection, "documents.sqlite")
    whole = path.read_bytes()
    mend(path, whole.replace(b"number7", b"number8"))
    assert "number8" in collection.get(["old-7"])[0].content
    mend(path, whole)
    collection.compact(full=True)
    assert contents(collection.directory) == ("old", 29)
