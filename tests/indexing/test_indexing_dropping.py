"""Collections that are taken away, and writers that go on as readers."""

import pytest

from embedserve.errors import BusyError, InputError, NotFoundError
from indexing import Collection, Document, build_collection, list_collections
from indexing.collections.aliases import remove_alias, set_alias
from indexing.collections.removal import drop_collection
from indexing.collections.snapshots import restore
from tests.indexing.bag import make_documents


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
    with pytest.raises(Exception, match="reading only"):
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
