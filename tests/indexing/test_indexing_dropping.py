"""Dropped collections, lost manifests, and writers that become readers."""

import shutil

import pytest

from embedserve.errors import BusyError, EmbedserveError, InputError, NotFoundError
from indexing import Collection, Document, build_collection, list_collections
from indexing.collections import removal
from indexing.collections.aliases import remove_alias, set_alias
from indexing.collections.cleanup import remove_unpublished
from indexing.collections.publication import create_collection, publish
from indexing.collections.reembed import reembed
from indexing.collections.removal import drop_collection
from indexing.collections.snapshots import restore
from indexing.segments.fields import default_fields
from tests.indexing.bag import BagEncoder, make_documents


def test_a_dropped_collection_is_gone_and_its_snapshot_is_not(data_dir, directory, encoder):
    with Collection.open(directory, writable=True) as collection:
        collection.snapshot("kept")
    drop_collection(data_dir, "docs")
    assert list_collections(data_dir) == []
    assert not directory.exists()
    with pytest.raises(NotFoundError):
        drop_collection(data_dir, "docs")
    assert restore(data_dir, "docs", "kept").count == 40
    drop_collection(data_dir, "docs")
    assert build_collection(make_documents(3), encoder, directory).count == 3


def test_what_an_alias_means_or_another_writes_to_stays(data_dir, directory):
    set_alias(data_dir, "current", "docs")
    for name in ("docs", "current"):
        with pytest.raises(InputError):
            drop_collection(data_dir, name)
    remove_alias(data_dir, "current")
    with Collection.open(directory, writable=True), pytest.raises(BusyError):
        drop_collection(data_dir, "docs")
    assert len(Collection.open(directory)) == 40


def test_a_writer_that_stops_goes_on_as_a_reader_with_what_it_wrote(directory, encoder):
    collection = Collection.open(directory, encoder, writable=True)
    collection.upsert([Document("mine", "written by me")])
    collection.stop_writing()
    assert collection.get(["mine"])[0].text == "written by me"
    assert not collection.refresh()
    with pytest.raises(EmbedserveError, match="reading only"):
        collection.upsert([Document("more", "text")])
    with Collection.open(directory, encoder, writable=True, previous=collection) as other:
        assert other.state.segments == collection.state.segments  # the same ones, not read again
        other.upsert([Document("theirs", "written by another")])
        assert collection.get(["theirs"]) == [None]
        assert collection.refresh()
        assert collection.get(["theirs"])[0].text == "written by another"
    with Collection.open(directory, previous=collection) as fresh:
        assert len(fresh) == 42
    collection.stop_writing()
    collection.close()


def files_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def orphaned(data_dir, directory, encoder):
    """A collection with a snapshot and a write in its log, whose manifest was lost."""
    with Collection.open(directory, encoder, writable=True) as collection:
        collection.snapshot("saved")
        collection.upsert([Document("acknowledged", "a text")])
    (directory / "manifest.json").rename(data_dir / "manifest.json")
    return directory


@pytest.mark.parametrize(
    "operation",
    [
        lambda data_dir, directory, encoder: create_collection(directory, default_fields(encoder)),
        lambda data_dir, directory, encoder: publish(directory, default_fields(encoder), []),
        lambda data_dir, directory, encoder: build_collection(make_documents(3), encoder, directory),
        lambda data_dir, directory, encoder: restore(data_dir, "docs", "saved"),
        lambda data_dir, directory, encoder: remove_unpublished(directory),
    ],
    ids=["create", "publish", "build", "restore", "clean up"],
)
def test_a_log_whose_manifest_was_lost_is_not_deleted(data_dir, orphaned, encoder, operation):
    before = files_of(orphaned)
    with pytest.raises(EmbedserveError, match=r"has no manifest.json.*acknowledged writes.*move the directory away"):
        operation(data_dir, orphaned, encoder)
    assert before.items() <= files_of(orphaned).items()
    (data_dir / "manifest.json").rename(orphaned / "manifest.json")
    with Collection.open(orphaned, encoder) as collection:
        assert collection.get(["acknowledged"])[0].text == "a text"


def test_reembed_skips_a_directory_whose_manifest_was_lost(data_dir, directory, encoder):
    other = directory.with_name("docs-2")
    build_collection(make_documents(3), encoder, other)
    with Collection.open(other, encoder, writable=True) as collection:
        collection.upsert([Document("acknowledged", "a text")])
    (other / "manifest.json").unlink()
    before = files_of(other)
    assert reembed(data_dir, "docs", BagEncoder(weights="other")).name == "docs-3"
    assert files_of(other) == before
    with pytest.raises(EmbedserveError, match="acknowledged writes"):
        reembed(data_dir, "docs-3", encoder, to="docs-2")
    assert before.items() <= files_of(other).items()


def test_an_empty_log_without_a_manifest_is_replaced(directory, encoder):
    shutil.rmtree(directory)
    create_collection(directory, default_fields(encoder))
    (directory / "manifest.json").unlink()
    create_collection(directory, default_fields(encoder))
    assert len(list(directory.glob("wal-*.log"))) == 1


@pytest.mark.parametrize("step", ["rename", "logs"])
def test_files_of_an_interrupted_drop_are_removed_by_the_next_collection(
    data_dir, directory, encoder, monkeypatch, step
):
    def interrupted(path):
        raise KeyboardInterrupt

    with Collection.open(directory, encoder, writable=True) as collection:
        collection.upsert([Document("dropped", "a text")])
    with monkeypatch.context() as patch:
        patch.setattr(*((removal.shutil, "rmtree") if step == "logs" else (type(directory), "unlink")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            drop_collection(data_dir, "docs")
    assert list_collections(data_dir) == []
    assert len(list(directory.glob("wal-*.log"))) == (1 if step == "rename" else 0)
    create_collection(directory, default_fields(encoder))
    assert len(list(directory.glob("wal-*.log"))) == 1
    assert not (directory / "dropped.json").exists()
    with Collection.open(directory, encoder) as collection:
        assert len(collection) == 0
