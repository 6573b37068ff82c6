"""Files that change on disk under an open collection: whatever copies them refuses by name and publishes nothing."""

import json

import numpy as np
import pytest

from embedserve.errors import CorruptFileError
from indexing import Collection, JobOptions, create_collection, run_job, verify
from indexing.collections.catalog import collection_path
from indexing.collections.publication import publish
from indexing.collections.reembed import reembed
from indexing.collections.snapshots import list_snapshots, restore, snapshot_path
from indexing.jobs import assembly
from indexing.segments.fields import WORDS, field_of
from indexing.segments.segment import SEGMENT, SegmentWriter, read_segment
from tests.indexing.bag import BagEncoder, make_documents

# The files of a segment, by the start and the end of their names: documents, order, and every kind of field.
FILES = [
    ("documents", ".sqlite"),
    ("sequence", ".npy"),
    ("dense", ".npy"),
    ("dense/", ".faiss"),
    ("dense/", ".json"),
    ("multi/", ".npy"),
    ("sparse/", ".npy"),
    ("bm25/", ".npy"),
]


def fields_of(encoder):
    return {
        "dense": field_of(encoder, "dense", index="HNSW16"),
        "multi": field_of(encoder, "multi", index="exact"),
        "sparse": field_of(encoder, "sparse", dim=1000),
        "bm25": WORDS,
    }


@pytest.fixture
def collection(data_dir, encoder):
    """An open collection of two segments, each with every kind of file."""
    directory = collection_path(data_dir, "docs")
    create_collection(directory, fields_of(encoder))
    with Collection.open(directory, encoder, writable=True) as opened:
        for tag in ("old", "new"):
            opened.upsert(make_documents(30, tag))
            opened.flush()
        opened.delete(["old-3"])
        opened.flush()
        yield opened


def segments_of(directory):
    return sorted(path for path in (directory / "segments").iterdir() if path.is_dir())


def file_of(folder, start, end):
    names = [name for name in read_segment(folder).files if name.startswith(start) and name.endswith(end)]
    return folder / max(names, key=lambda name: (folder / name).stat().st_size)


def flip(path):
    """Change one bit of the last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        value = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([value ^ 1]))


def compact(collection):
    collection.compact(full=True)


def snapshot(collection):
    collection.snapshot("copy")


def publish_elsewhere(collection):
    publish(collection.directory.with_name("other"), collection.fields, segments_of(collection.directory))


@pytest.mark.parametrize("copy", [compact, snapshot, publish_elsewhere])
@pytest.mark.parametrize(("start", "end"), FILES)
def test_a_changed_file_is_not_copied(collection, copy, start, end):
    path = file_of(segments_of(collection.directory)[0], start, end)
    flip(path)
    before = (collection.directory / "manifest.json").read_bytes()
    with pytest.raises(CorruptFileError, match=path.name):
        copy(collection)
    assert (collection.directory / "manifest.json").read_bytes() == before
    assert any(check.problem and check.name.endswith(path.name) for check in verify(collection.directory))
    assert list_snapshots(collection.directory.parents[1], "docs") == []
    assert not (collection.directory.with_name("other") / "manifest.json").exists()


def test_a_changed_list_of_deleted_rows_is_not_copied(collection):
    (path,) = collection.directory.glob("dead-*.npy")
    flip(path)
    with pytest.raises(CorruptFileError, match=path.name):
        snapshot(collection)


def test_a_changed_record_of_a_segment_is_not_copied(collection):
    path = segments_of(collection.directory)[0] / SEGMENT
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values))  # the same values in other bytes
    with pytest.raises(CorruptFileError, match=SEGMENT):
        snapshot(collection)


@pytest.mark.parametrize(("start", "end"), FILES)
def test_a_changed_snapshot_is_not_restored(collection, data_dir, encoder, start, end):
    folder = snapshot_path(data_dir, "docs", collection.snapshot("copy"))
    collection.close()
    path = file_of(segments_of(folder)[0], start, end)
    flip(path)
    before = (collection.directory / "manifest.json").read_bytes()
    for target in ("docs", "fresh"):
        with pytest.raises(CorruptFileError, match=f"{path.name}.*take another snapshot"):
            restore(data_dir, "docs", "copy", to=target)
    assert (collection.directory / "manifest.json").read_bytes() == before
    assert not (collection_path(data_dir, "fresh") / "manifest.json").exists()


@pytest.mark.parametrize(("start", "end"), FILES)
def test_a_changed_collection_is_not_embedded_again(collection, data_dir, monkeypatch, start, end):
    """The file changes after the last document was read, when nothing of the new collection is published."""
    collection.close()
    path = file_of(segments_of(collection.directory)[0], start, end)
    documents = Collection.documents

    def documents_and_damage(self):
        yield from documents(self)
        flip(path)

    monkeypatch.setattr(Collection, "documents", documents_and_damage)
    with pytest.raises(CorruptFileError, match=path.name):
        reembed(data_dir, "docs", BagEncoder(weights="other"))
    assert not (collection_path(data_dir, "docs-2") / "manifest.json").exists()
    assert (collection.directory / "manifest.json").exists()


def test_a_segment_that_changed_before_it_is_published_is_refused(data_dir, encoder, tmp_path):
    fields = {"bm25": WORDS}
    writer = SegmentWriter(tmp_path / "segment", fields)
    writer.add(make_documents(5), {})
    writer.finish()
    writer.close()
    path = file_of(tmp_path / "segment", "bm25/", ".npy")
    flip(path)
    with pytest.raises(CorruptFileError, match=path.name):
        publish(collection_path(data_dir, "docs"), fields, [tmp_path / "segment"])
    assert not (collection_path(data_dir, "docs") / "manifest.json").exists()


@pytest.mark.parametrize("name", ["documents.jsonl", "dense.npy", "places.npy", "tokens.npy"])
def test_a_shard_that_changed_while_it_was_read_is_not_assembled(data_dir, encoder, tmp_path, monkeypatch, name):
    read_rows = assembly.read_rows

    def rows_and_damage(shard):
        yield from read_rows(shard)
        flip(shard / name)

    directory = collection_path(data_dir, "docs")
    with monkeypatch.context() as patched:
        patched.setattr(assembly, "read_rows", rows_and_damage)
        with pytest.raises(CorruptFileError, match=name):
            run_job(make_documents(20), encoder, directory, tmp_path / "work", JobOptions(shard_size=10))
    assert not (directory / "manifest.json").exists()
    report = run_job(make_documents(20), encoder, directory, tmp_path / "work", JobOptions(shard_size=10))
    assert report.rows == 20  # the damaged shard was made again
    assert all(check.ok for check in verify(directory))


def test_copies_of_whole_files_are_made(collection, data_dir):
    collection.snapshot("copy")
    compact(collection)
    assert len(segments_of(collection.directory)) == 1
    assert all(check.ok for check in verify(collection.directory))
    np.testing.assert_equal(len(collection), 59)
    collection.close()
    restore(data_dir, "docs", "copy")
    assert all(check.ok for check in verify(collection.directory))
