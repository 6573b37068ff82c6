"""Reads beside a writer of the same collection: each test puts the change between two steps of the read."""

import errno
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.cli.main import app as command
from api.collections.open_collections import Collections
from api.collections.writers import Writers
from api.http.error_responses import ApiError
from api.settings import Settings
from embedserve.errors import EmbedserveError, InputError
from indexing import Collection, Document, Field, create_collection, verify
from indexing.collections.catalog import collection_path
from tests.api.conftest import wait_until

NAME = "docs"
FIELDS = {"dense": Field("dense", 2, "hnsw", "inner_product")}


def upsert(*ids):
    """Work for a writer: one document of each id."""
    documents = [Document(name, f"text {name}") for name in ids]
    vectors = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (len(ids), 1))
    return lambda collection: collection.upsert(documents, {"dense": vectors})


def fail(collection):
    raise InputError("no such document")


@pytest.fixture
def directory(tmp_path):
    directory = collection_path(tmp_path, NAME)
    create_collection(directory, FIELDS)
    return directory


@pytest.fixture
def collections(tmp_path, directory):
    collections = Collections(tmp_path, list, list)
    yield collections
    collections.close()


@pytest.fixture
def writers(collections):
    writers = Writers(collections, 600)
    yield writers
    writers.close()


def write(writers, work):
    return writers.submit(NAME, work).result(60)


def read(collections):
    """The ids that a request finds, which first looks for what is new on the disk."""
    opening = collections.refresh(NAME)
    if opening is not None:
        opening.result(60)
    with collections.use(NAME) as collection:
        return sorted(document.id for document in collection.documents())


def on_disk(directory):
    with Collection.open(directory) as collection:
        return sorted(document.id for document in collection.documents())


@pytest.fixture
def after_listing(monkeypatch):
    """Call something once, after the next listing of the logs of a collection and before they are looked at."""
    actions, original = [], Path.glob

    def glob(self, pattern):
        paths = list(original(self, pattern))
        if pattern.startswith("wal-") and actions:
            actions.pop()()
        return iter(paths)

    monkeypatch.setattr(Path, "glob", glob)
    return actions


# ------------------------------------------------------------------ a flush during a read


@pytest.mark.parametrize("route", ["search", "describe", "list"])
def test_a_request_beside_a_flush_is_answered_and_writes_go_on(tiny_llama, encoder, tmp_path, after_listing, route):
    settings = Settings(model=str(tiny_llama), data_dir=tmp_path, device="cpu", write_idle_s=600)
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        at = f"/v1/collections/{NAME}"
        assert client.post("/v1/collections", json={"name": NAME, "index": "exact"}).status_code == 201
        for number in range(3):
            document = {"id": f"n{number}", "text": f"night {number}"}
            assert client.post(f"{at}/documents", json={"documents": [document]}).status_code == 200
            flush = client.app.state.service.writers.submit
            after_listing.append(lambda flush=flush: flush(NAME, lambda collection: collection.flush()).result(60))
            answer = {
                "search": lambda: client.post("/search", json={"collection": NAME, "query": "night"}),
                "describe": lambda: client.get(at),
                "list": lambda: client.get(f"{at}/documents"),
            }[route]()
            assert answer.status_code == 200, answer.text
            assert not after_listing
        assert len(client.get(f"{at}/documents").json()["documents"]) == 3


def test_a_log_that_a_flush_of_another_program_removed_hides_nothing(directory, collections, after_listing):
    with Collection.open(directory, writable=True) as other:
        upsert("a")(other)
        assert read(collections) == ["a"]
        upsert("b")(other)
        after_listing.append(other.flush)
        assert read(collections) == ["a", "b"]
        assert not after_listing
        upsert("c")(other)
        assert read(collections) == ["a", "b", "c"]


def test_a_manifest_that_cannot_be_looked_at_is_not_a_missing_one(directory, collections, monkeypatch):
    assert read(collections) == []
    original = Path.stat

    def stat(self, **options):
        if self.name == "manifest.json":
            raise OSError(errno.EIO, "Input/output error")
        return original(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        assert read(collections) == []
        assert collections.is_open(NAME)


class Listing:
    """What `os.scandir` returns, of entries that are known already."""

    def __init__(self, entries):
        self._entries = iter(entries)

    def __iter__(self):
        return self._entries

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass


def test_a_segment_that_a_merge_removes_does_not_break_the_description(tiny_llama, encoder, tmp_path, monkeypatch):
    settings = Settings(model=str(tiny_llama), data_dir=tmp_path, device="cpu", write_idle_s=600)
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        at = f"/v1/collections/{NAME}"
        client.post("/v1/collections", json={"name": NAME, "index": "hnsw"})
        submit = client.app.state.service.writers.submit
        for number in range(2):
            client.post(f"{at}/documents", json={"documents": [{"id": f"n{number}", "text": f"night {number}"}]})
            submit(NAME, lambda collection: collection.flush()).result(60)
        original, merges = os.scandir, [lambda collection: collection.compact(full=True)]

        def scandir(path="."):
            with original(path) as entries:
                found = list(entries)
            if "/segments/" in str(path) and merges:  # for the writer it may be a number
                submit(NAME, merges.pop()).result(60)
            return Listing(found)

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", scandir)
            answer = client.get(at)
        assert not merges
        assert answer.status_code == 200, answer.text
        assert len(client.get(at).json()["segments"]) == 1


@pytest.mark.parametrize("change", ["flush", "compact"])
def test_files_that_a_writer_replaces_are_not_missing(directory, monkeypatch, change):
    from indexing.collections import catalog

    with Collection.open(directory, writable=True) as collection:
        for name in ("a", "b"):
            upsert(name)(collection)
            collection.flush()
        upsert("c")(collection)
        changes = [collection.flush if change == "flush" else lambda: collection.compact(full=True)]

        def changed(original):
            def call(*arguments):
                if changes:
                    changes.pop()()
                return original(*arguments)

            return call

        monkeypatch.setattr(catalog, "check_files", changed(catalog.check_files))
        assert [check for check in verify(directory) if not check.ok] == []
        assert not changes


def test_index_info_beside_a_merge(directory, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from indexing.collections import catalog

    with Collection.open(directory, writable=True) as collection:
        for name in ("a", "b"):
            upsert(name)(collection)
            collection.flush()
        original, changes = catalog.total_bytes, [lambda: collection.compact(full=True)]

        def total_bytes(*arguments):
            if changes:
                changes.pop()()
            return original(*arguments)

        monkeypatch.setattr(catalog, "total_bytes", total_bytes)
        result = CliRunner().invoke(command, ["index", "info", NAME, "--data-dir", str(tmp_path)])
        assert not changes
        assert result.exit_code == 0, result.output


# ------------------------------------------------------------------ what is kept and what is forgotten


def test_a_listing_from_before_a_collection_was_created_does_not_close_its_writer(collections, writers, monkeypatch):
    write(writers, upsert("a"))
    with monkeypatch.context() as patch:
        patch.setattr(collections, "names", list)
        assert collections.states() == []
    assert write(writers, upsert("b")) == 1
    assert read(collections) == ["a", "b"]


def test_a_collection_that_is_replaced_while_it_is_opened_is_opened_again(collections, monkeypatch):
    original, opens = collections._open, []

    def opened(name, entry, stamp):
        opens.append(name)
        if len(opens) == 1:
            collections.forget(name)  # as a restore does
        original(name, entry, stamp)

    monkeypatch.setattr(collections, "_open", opened)
    with collections.use(NAME) as collection:
        assert len(collection) == 0
    assert opens == [NAME, NAME]


@pytest.mark.parametrize("written", [False, True])
def test_a_collection_without_a_manifest_is_gone(directory, collections, writers, written):
    if written:
        write(writers, upsert("a"))
    else:
        assert read(collections) == []
    shutil.rmtree(directory)
    for call in (lambda: collections.refresh(NAME), lambda: writers.submit(NAME, upsert("b"))):
        with pytest.raises(ApiError, match="collection 'docs' does not exist; there are none yet") as raised:
            call()
        assert (raised.value.status, raised.value.code) == (404, "collection_not_found")
    writers.release(NAME)
    with pytest.raises(ApiError):
        collections.refresh(NAME)
    assert not collections.is_open(NAME)
    assert collections.states() == []


def test_a_collection_that_was_removed_and_created_by_hand_is_opened_again(directory, collections, writers):
    write(writers, upsert("a"))
    shutil.rmtree(directory)
    create_collection(directory, FIELDS)
    assert write(writers, upsert("b")) == 1
    assert read(collections) == on_disk(directory) == ["b"]


# ------------------------------------------------------------------ writers that can no longer write


def test_a_closed_writer_is_replaced(directory, collections, writers):
    write(writers, upsert("a"))
    write(writers, lambda collection: collection.close())
    assert write(writers, upsert("b")) == 1
    assert read(collections) == on_disk(directory) == ["a", "b"]


def test_a_writer_that_the_disk_failed_is_replaced(directory, collections, writers, monkeypatch):
    write(writers, upsert("a"))

    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(EmbedserveError, match="the disk did not confirm a write"):
            write(writers, upsert("b"))
    assert read(collections) == ["a"]
    assert write(writers, upsert("c")) == 1
    assert read(collections) == on_disk(directory) == ["a", "c"]


def test_writes_that_fail_do_not_keep_the_right_to_write(collections, monkeypatch):
    writers, closed, original = Writers(collections, 0.2), threading.Event(), collections.detach_writer
    monkeypatch.setattr(collections, "detach_writer", lambda key: (original(key), closed.set()))

    def failed():
        with pytest.raises(InputError):
            write(writers, fail)
        return closed.is_set()

    write(writers, upsert("a"))
    assert wait_until(failed, 20)
    assert write(writers, upsert("b")) == 1
    writers.close()
    assert read(collections) == ["a", "b"]
