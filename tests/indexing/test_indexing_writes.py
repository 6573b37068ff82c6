"""Writing to collections: contents, locks, visibility and rejected requests."""

import gc
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from embedserve.errors import CorruptFileError, EmbedserveError, IndexMismatchError, InputError, NotFoundError
from embedserve.spec import EncoderSpec
from indexing import Collection, Document, Field, build_collection, create_collection, list_collections, verify
from indexing.collections.aliases import list_aliases, remove_alias, resolve, set_alias
from indexing.collections.catalog import collection_path
from indexing.collections.compaction import runs_to_merge
from indexing.collections.manifest import read_manifest
from indexing.collections.publication import publish
from indexing.collections.reembed import reembed
from indexing.collections.snapshots import list_snapshots, restore, verify_snapshot
from indexing.segments.fields import BM25, WORDS, default_fields, encode_documents, field_of
from indexing.segments.segment import SegmentWriter
from tests.indexing.bag import VOCABULARY, BagEncoder, contents, make_documents
from tests.indexing.model import AWKWARD

ENCODER = BagEncoder()
EVERY = {
    "dense": field_of(ENCODER, index="exact"),
    "multi": field_of(ENCODER, "multi", index="exact"),
    "sparse": field_of(ENCODER, "sparse", dim=VOCABULARY),
    BM25: WORDS,
}


@pytest.fixture
def directory(data_dir):
    """The directory of an empty collection."""
    directory = collection_path(data_dir, "docs")
    create_collection(directory, default_fields(ENCODER, index="exact"))
    return directory


@pytest.fixture
def collection(directory):
    with Collection.open(directory, ENCODER, writable=True) as collection:
        yield collection


def ids(collection):
    return [document.id for document in collection.documents()]


# ------------------------------------------------------------------ contents


def test_an_empty_collection_can_be_read(collection):
    assert len(collection) == 0
    assert collection.search(["text"]) == [[]]
    assert collection.search(["text"], mode="hybrid") == [[]]
    assert collection.get(["a"]) == [None]
    assert collection.scroll() == type(collection.scroll())([], None)
    assert collection.count({"field": "n", "eq": 1}) == 0
    assert collection.facet("n") == []
    assert collection.delete(["a"]) == collection.delete(filter={"field": "n", "eq": 1}) == collection.upsert([]) == 0
    collection.flush()
    collection.compact(full=True)


def test_ids_and_metadata_of_every_awkward_kind(directory, collection):
    metadata = [{}, {"": ""}, {"a.b": {"c": [[], {}, None]}}, {"x": "y" * 10_000}, {"n": 2**64 - 1, "e": 1e308}]
    documents = [Document(name, name + " text", name, metadata[n % 5]) for n, name in enumerate(AWKWARD)]
    collection.upsert(documents)
    for _ in range(2):
        assert collection.get(AWKWARD) == documents
        assert [collection.scroll(filter={"field": "id", "eq": name}).documents for name in AWKWARD] == [
            [document] for document in documents
        ]
        collection.flush()
    with Collection.open(directory) as reader:
        assert list(reader.documents()) == documents
    assert collection.delete(AWKWARD[::2]) == len(AWKWARD[::2])
    assert ids(collection) == AWKWARD[1::2]


def test_half_a_surrogate_pair_is_refused_everywhere(collection):
    for call in (
        lambda: Document("a\ud800", "text"), lambda: collection.get(["a\ud800"]), lambda: collection.delete(["\udfff"]),
        lambda: collection.upsert([Document("a", "text", metadata={"x": "\ud800"})]),
        lambda: collection.count({"field": "x", "eq": "\ud800"}),
    ):  # fmt: skip
        with pytest.raises(InputError):
            call()
    assert len(collection) == 0


@pytest.mark.parametrize(
    ("documents", "vectors", "field"),
    [
        ([Document("a", "x"), Document("b", "y"), Document("a", "z")], None, "id"),
        ([Document("a", "x"), Document("b", "y", metadata={"f": {1, 2}})], None, "metadata"),
        ([Document("a", "x")], {}, "vectors.dense"),
        ([Document("a", "x")], {"dense": np.ones((1, 16)), "other": 1}, "vectors.other"),
        ([Document("a", "x")], {"dense": np.ones((2, 16))}, "vectors.dense"),
        ([Document("a", "x")], {"dense": np.ones((1, 15))}, "vectors.dense"),
        ([Document("a", "x")], {"dense": np.full((1, 16), np.inf)}, "vectors.dense"),
        ([Document("a", "x")], {"dense": [[1.0] * 16]}, "vectors.dense"),
    ],
)
def test_a_write_that_is_refused_writes_nothing(collection, documents, vectors, field):
    collection.upsert([Document("before", "text")])
    size = collection.state.wal_end
    with pytest.raises(InputError) as raised:
        collection.upsert(documents, vectors)
    assert raised.value.field == field
    assert ids(collection) == ["before"]
    assert collection.state.wal_end == size


def test_vectors_of_no_encoder(tmp_path):
    create_collection(tmp_path / "docs", {"dense": Field("dense", 2, "exact", "inner_product")})
    with Collection.open(tmp_path / "docs", writable=True) as collection:
        collection.upsert([Document("a", "x"), Document("b", "y")], {"dense": np.array([[1, 0], [0, 3]])})
        for _ in range(2):
            (hits,) = collection.search_vectors(np.array([[1, 1]], dtype=np.float32))
            assert [(hit.id, hit.score) for hit in hits] == [("b", 3.0), ("a", 1.0)]
            collection.flush()
        with pytest.raises(InputError, match="no encoder for dense"):
            collection.upsert([Document("c", "z")])
        with pytest.raises(EmbedserveError, match="without an encoder for dense; use search_vectors"):
            collection.search(["z"])


def test_get_and_delete_want_lists_of_ids_or_a_filter(collection):
    for call in (lambda: collection.get("ab"), lambda: collection.delete("ab"), lambda: collection.delete([""])):
        with pytest.raises(InputError, match="ids must be a list of non-empty strings"):
            call()
    for arguments in ({}, {"ids": ["a"], "filter": {"field": "n", "eq": 1}}):
        with pytest.raises(InputError, match="pass either ids or filter"):
            collection.delete(**arguments)
    for cursor in ("x", "-1", "²", 3):
        with pytest.raises(InputError, match="cursor must be the cursor of an earlier page"):
            collection.scroll(cursor)


def test_metadata_is_encoded_once_for_log_and_filters(directory, collection, monkeypatch):
    from indexing.collections import write_requests
    from indexing.segments import document_table, metadata_json

    calls = []
    encode = metadata_json.encode_metadata
    for module in (write_requests, document_table):
        monkeypatch.setattr(module, "encode_metadata", lambda document: calls.append(document.id) or encode(document))
    collection.upsert([Document(name, "text", metadata={"tag": name, "ü": [1, {"x": None}]}) for name in "abc"])
    assert collection.count({"field": "tag", "in": ["a", "b"]}) == 2
    assert calls == ["a", "b", "c"]
    with Collection.open(directory, ENCODER) as reader:  # from the log
        assert reader.count({"field": "tag", "in": ["a", "b"]}) == 2
        assert reader.get(["c"]) == collection.get(["c"])


# ------------------------------------------------------------------ several fields


@pytest.fixture
def every(data_dir):
    """A collection with a field of each kind and 30 documents in a segment, in memory or both."""
    directory = collection_path(data_dir, "every")
    create_collection(directory, EVERY)
    with Collection.open(directory, BagEncoder(), writable=True) as collection:
        yield collection


QUERY = "number3 about topic3"


def answers(collection):
    searches = {
        **{mode: {"mode": mode} for mode in ("dense", "multi", "sparse", "bm25", "hybrid")},
        "fused": {"mode": "hybrid", "fusion": "weighted", "weights": {"bm25": 2.0, "multi": 0.5}},
        "reranked": {"mode": "hybrid", "rerank": "multi"},
        "filtered": {"mode": "hybrid", "filter": {"field": "n", "gte": 20}},
    }
    return {
        name: [(hit.id, round(hit.score, 4)) for hit in collection.search([QUERY, "title7"], 8, **options)[0]]
        for name, options in searches.items()
    }


def test_fields_are_filled_from_one_pass_and_found_alike_wherever_they_lie(every):
    encoder = every._encoders[ENCODER.fingerprint]
    every.upsert(make_documents(30))
    assert encoder.passes == 1
    first = answers(every)
    assert first["bm25"][0][0] == first["hybrid"][0][0] == first["reranked"][0][0] == "old-3"
    assert all(int(name.split("-")[1]) >= 20 for name, _ in first["filtered"])
    assert [name for name, _ in first["reranked"]][:3] == [name for name, _ in first["multi"]][:3]
    every.flush()
    assert answers(every) == first
    every.upsert(make_documents(10, "new"))
    every.flush()
    every.upsert(make_documents(12, "new"))
    every.delete([f"new-{n}" for n in range(12)])
    assert answers(every) == first
    with Collection.open(every.directory, BagEncoder()) as reader:
        assert answers(reader) == first
    every.compact(full=True)
    assert answers(every) == first
    with Collection.open(every.directory, BagEncoder()) as reader:
        assert answers(reader) == first
        assert len(reader.manifest.segments) == 1
    assert all(check.ok for check in verify(every.directory))


def test_vectors_for_several_fields_are_fused_as_texts_are(every):
    every.upsert(make_documents(30))
    made = ENCODER.encode([QUERY])
    vectors = {"dense": made.dense.vectors, "multi": made.multi, "sparse": made.sparse, "bm25": [QUERY]}
    assert every.search_vectors(vectors, 5) == every.search([QUERY], 5, mode="hybrid")
    assert every.search_vectors(vectors, 5, mode="sparse") == every.search([QUERY], 5, mode="sparse")
    assert every.search_vectors(made.multi, 5, mode="multi") == every.search([QUERY], 5, mode="multi")
    pair = {"dense": made.dense.vectors, "multi": made.multi}
    assert every.search_vectors(pair, 5, rerank="multi") == every.search([QUERY], 5, rerank="multi")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "nothing"}, "mode"), ({"rerank": "dense"}, "rerank"), ({"rerank": "nothing"}, "rerank"),
        ({"mode": "hybrid", "weights": {"x": 1}}, "weights"), ({"mode": "hybrid", "fusion": "x"}, "fusion"),
        ({"mode": "hybrid", "candidates": 0}, "candidates"), ({"filter": {"field": "a"}}, "filter"),
    ],
)  # fmt: skip
def test_unusable_options_of_a_search_are_named(every, options, field):
    every.upsert(make_documents(3))
    with pytest.raises(InputError) as raised:
        every.search(["text"], **options)
    assert raised.value.field == field


@pytest.mark.parametrize("index", ["exact", "flat", "hnsw"])
@pytest.mark.parametrize("deleted", [3, 150])
def test_deleted_documents_are_never_found_and_all_others_are(data_dir, index, deleted):
    directory = collection_path(data_dir, "docs")
    build_collection(make_documents(300), ENCODER, directory, index=index)
    with Collection.open(directory, ENCODER, writable=True) as collection:
        gone = {hit.id for hit in collection.search(["number5 topic5"], deleted)[0]}
        collection.delete(sorted(gone))
        hits = collection.search(["number5 topic5"], 10)[0]
        assert not gone & {hit.id for hit in hits}
        oracle = {
            d.id: float(ENCODER.vector(d.content) @ ENCODER.vector("number5 topic5")) for d in make_documents(300)
        }
        best = sorted((score for name, score in oracle.items() if name not in gone), reverse=True)[:10]
        assert [hit.score for hit in hits] == pytest.approx(best, abs=1e-5)


# ------------------------------------------------------------------ locks and visibility


def test_reading_is_not_writing(directory):
    with Collection.open(directory, ENCODER) as reader:
        for call in (
            lambda: reader.upsert(make_documents(1)),
            lambda: reader.delete(["a"]),
            reader.flush,
            reader.compact,
        ):
            with pytest.raises(EmbedserveError, match="open for reading only; open it with writable=True"):
                call()


def test_there_is_one_writer(directory, collection):
    words = "collection 'docs' is being written to by another process"
    for call in (
        lambda: Collection.open(directory, writable=True),
        lambda: build_collection(make_documents(3), ENCODER, directory),
        lambda: publish(directory, default_fields(ENCODER), []),
    ):  # fmt: skip
        with pytest.raises(EmbedserveError, match=words):
            call()
    collection.upsert(make_documents(2))
    collection.close()
    with Collection.open(directory, ENCODER, writable=True) as other:
        assert len(other) == 2
    with pytest.raises(EmbedserveError, match="is closed"):
        len(collection)
    with pytest.raises(EmbedserveError, match="reading only"):
        collection.upsert(make_documents(1))


def test_writers_that_wait_share_a_sync(collection, monkeypatch):
    fsync, synced = os.fsync, []

    def slow(descriptor):
        synced.append(descriptor)
        time.sleep(0.02)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(lambda n: collection.upsert([Document(f"id-{n}", "text")]), range(64)))
    assert counts == [1] * 64
    assert sorted(ids(collection)) == sorted(f"id-{n}" for n in range(64))
    assert len(synced) < 40
    with Collection.open(collection.directory) as reader:
        assert ids(reader) == ids(collection)


def test_one_bad_write_of_a_group_fails_alone(collection, monkeypatch):
    held, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (held.wait(10), fsync(descriptor)))

    def write(name):
        return collection.upsert([Document(name, "text", metadata={"n": 1})])

    def delete():
        return collection.delete(filter={"field": "n", "eq": 1})

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(write, "first")
        while not collection._writer._lock.locked():
            time.sleep(0.001)
        waiting = [pool.submit(write, "a"), pool.submit(delete), pool.submit(write, "b")]
        while len(collection._writer._group.waiting) < 3:
            time.sleep(0.001)
        monkeypatch.setattr("indexing.collections.write_requests._delete", lambda *_: 1 / 0)
        held.set()
        assert [first.result(), waiting[0].result(), waiting[2].result()] == [1, 1, 1]
        with pytest.raises(ZeroDivisionError):
            waiting[1].result()
    assert sorted(ids(collection)) == ["a", "b", "first"]


def test_readers_see_whole_snapshots_while_a_writer_works(collection):
    """Every write replaces all ten documents; no reader ever sees two generations, or fewer than ten documents."""
    stop, problems = threading.Event(), []

    def generation(number):
        return [Document(f"id-{n}", f"text generation{number}", metadata={"g": number}) for n in range(10)]

    def read():
        while not stop.is_set():
            found = [document.metadata["g"] for document in collection.documents()]
            hits = [hit.metadata["g"] for hit in collection.search(["text"], 100)[0]]
            facet = collection.facet("g")
            if not all(len(seen) == 10 and len(set(seen)) == 1 for seen in (found, hits)) or facet[0][1] != 10:
                problems.append((found, hits, facet))

    collection.upsert(generation(0))
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 40):
        collection.upsert(generation(number))
        if number % 7 == 0:
            collection.flush()
        if number % 13 == 0:
            collection.compact(full=True)
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems


def test_a_reader_reads_on_while_its_segments_are_merged_and_removed(directory, collection):
    for part in range(3):
        collection.upsert(make_documents(20, f"part{part}"))
        collection.flush()
    with Collection.open(directory, ENCODER) as reader:
        before, hits = list(reader.documents()), reader.search(["number3"], 60)
        running = reader.documents()
        next(running)
        collection.delete(filter={"field": "tag", "eq": "part1"})
        collection.compact(full=True)
        assert len(list(directory.glob("segments/*"))) == 1
        assert len(list(running)) == 59
        assert list(reader.documents()) == before
        assert reader.search(["number3"], 60) == hits
        assert reader.refresh()
        assert len(reader) == 40


def test_a_reader_goes_on_to_what_was_written(directory, collection):
    with Collection.open(directory, ENCODER) as reader:
        assert not reader.refresh()
        collection.upsert(make_documents(3))
        assert len(reader) == 0
        assert reader.refresh()
        assert ids(reader) == ids(collection)
        before = reader.documents()
        collection.delete(["old-0"])
        collection.flush()
        collection.upsert(make_documents(2, "new"))
        assert reader.refresh()
        assert ids(reader) == ["old-1", "old-2", "new-0", "new-1"]
        assert [document.id for document in before] == ["old-0", "old-1", "old-2"]
        with Collection.open(directory, ENCODER, previous=reader) as later:
            segment = next(iter(later.state.segments.values()))
            assert segment is next(iter(reader.state.segments.values()))
        collection.close()
        build_collection(make_documents(5, "third"), ENCODER, directory)
        assert reader.refresh()
        assert len(reader) == 5
        build_collection(make_documents(6), BagEncoder(weights="other"), directory)
        with pytest.raises(IndexMismatchError, match="weights of the backbone"):
            reader.refresh()
        assert len(reader) == 5


def test_time_that_jumps_changes_nothing(directory, collection, monkeypatch):
    times = iter(["2999-01-01", "1970-01-01", "2030-01-01"] * 20)
    monkeypatch.setattr("indexing.collections.publication.now", lambda: next(times))
    monkeypatch.setattr(time, "time", lambda: -1e9)
    for number in range(6):
        collection.upsert([Document("a", f"text {number}"), Document(f"b{number}", "other")])
        collection.flush()
        for path in directory.rglob("*"):
            os.utime(path, (10**9 - number * 10**6, 10**9 - number * 10**6))
    collection.upsert([Document("a", "text last")])
    with Collection.open(directory, ENCODER) as reader:
        assert ids(reader) == [*(f"b{n}" for n in range(6)), "a"]
        assert reader.get(["a"])[0].text == "text last"


def test_segments_of_like_size_are_merged_and_large_ones_left(collection):
    collection._writer.flush_rows = 8
    for number in range(80):
        collection.upsert([Document(f"id-{number}-{n}", "text") for n in range(8)])
        counts = [entry.count for entry in collection.manifest.segments]
        assert sum(counts) == 8 * (number + 1)
        assert len(counts) <= 15
    assert counts == [512, 64, 64]
    assert runs_to_merge(collection.state.view[:-1], full=False) == []


# ------------------------------------------------------------------ snapshots, aliases, another encoder


def test_a_snapshot_brings_back_what_was(data_dir, directory, collection):
    collection.upsert(make_documents(20))
    collection.flush()
    collection.delete(["old-1"])
    assert collection.snapshot("first") == "first"
    before = ids(collection)
    collection.upsert(make_documents(30, "new"))
    collection.delete(["old-5"])
    collection.compact(full=True)
    name = collection.snapshot()
    assert list_snapshots(data_dir, "docs") == sorted(["first", name])
    assert all(check.ok for check in verify_snapshot(data_dir, "docs", "first"))
    with pytest.raises(InputError, match="snapshot 'first' of 'docs' already exists"):
        collection.snapshot("first")
    with pytest.raises(EmbedserveError, match="is being written to"):
        restore(data_dir, "docs", "first")
    restore(data_dir, "docs", "first", to="copy")
    collection.close()
    restore(data_dir, "docs", "first")
    for other in ("docs", "copy"):
        with Collection.open(collection_path(data_dir, other), ENCODER, writable=True) as restored:
            assert ids(restored) == before
            restored.upsert(make_documents(1, other))
            restored.flush()
    restore(data_dir, "docs", name)
    with Collection.open(directory) as restored:
        assert len(restored) == 48
    with pytest.raises(NotFoundError, match=r"snapshot 'x' of 'docs' does not exist; snapshots: first, "):
        restore(data_dir, "docs", "x")


def test_a_damaged_snapshot_is_refused_and_a_damaged_collection_restored(data_dir, directory, collection):
    collection.upsert(make_documents(20))
    collection.snapshot("good")
    collection.snapshot("bad")
    collection.close()
    file = next((data_dir / "snapshots" / "docs" / "bad" / "segments").glob("*/dense.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()  # the same file as the collection's
    file.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"dense\.npy is damaged.*take another snapshot"):
        restore(data_dir, "docs", "bad")
    assert len(Collection.open(directory)) == 20
    shutil.rmtree(directory / "segments")
    restore(data_dir, "docs", "good")
    assert contents(directory) == ("old", 20)


def test_an_interrupted_snapshot_is_none(data_dir, collection):
    collection.upsert(make_documents(3))
    partial = data_dir / "snapshots" / "docs" / ".half.partial"
    (partial / "segments").mkdir(parents=True)
    assert list_snapshots(data_dir, "docs") == []
    collection.snapshot("half")
    assert list_snapshots(data_dir, "docs") == ["half"]
    assert not partial.exists()


def test_aliases_stand_for_collections_and_swap_in_one_step(data_dir, directory):
    build_collection(make_documents(5, "new"), ENCODER, collection_path(data_dir, "other"))
    assert list_aliases(data_dir) == {}
    assert resolve(data_dir, "current") == collection_path(data_dir, "current")
    set_alias(data_dir, "current", "docs")
    assert resolve(data_dir, "current") == directory
    set_alias(data_dir, "current", "other")
    set_alias(data_dir, "docs", "other")
    assert list_aliases(data_dir) == {"current": "other", "docs": "other"}
    assert contents(resolve(data_dir, "docs")) == ("new", 5)
    remove_alias(data_dir, "docs")
    assert resolve(data_dir, "docs") == directory
    with pytest.raises(NotFoundError, match=r"alias 'curent' does not exist; did you mean 'current'"):
        remove_alias(data_dir, "curent")
    with pytest.raises(NotFoundError, match="collection 'x' does not exist"):
        set_alias(data_dir, "current", "x")
    with pytest.raises(InputError, match="is not a valid collection name"):
        set_alias(data_dir, "../x", "docs")
    assert list_collections(data_dir) == ["docs", "other"]


def test_aliases_that_cannot_be_written_stay_as_they_are(data_dir, directory):
    set_alias(data_dir, "current", "docs")
    (data_dir / ".aliases.json.lock").unlink()
    (data_dir / ".aliases.json.lock").mkdir()
    with pytest.raises(EmbedserveError, match=r"cannot write to .*data: .*existing data are unchanged"):
        set_alias(data_dir, "new", "docs")
    assert list_aliases(data_dir) == {"current": "docs"}


def test_every_flipped_byte_of_the_aliases_is_refused(data_dir, directory):
    set_alias(data_dir, "current", "docs")
    path = data_dir / "aliases.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if path.read_bytes().split() != whole.split():
            with pytest.raises(CorruptFileError, match=r"aliases\.json is "):
                resolve(data_dir, "current")


def test_another_encoder_builds_a_new_version_beside_the_old_one(data_dir, every):
    every.upsert(make_documents(30))
    every.delete(["old-3"])
    every.flush()
    set_alias(data_dir, "current", "every")
    other = BagEncoder(EncoderSpec(strategy="last", backbone="bag"), dim=24)
    with pytest.raises(EmbedserveError, match="is being written to"):
        reembed(data_dir, "current", other)
    assert resolve(data_dir, "current").name == "every"
    every.close()
    (data_dir / "collections" / "every-2" / "segments").mkdir(parents=True)  # a build that was killed left this
    manifest = reembed(data_dir, "current", other)
    assert (manifest.name, manifest.count, manifest.dim, manifest.fingerprint) == ("every-2", 29, 24, other.fingerprint)
    with Collection.open(resolve(data_dir, "current"), other) as collection:
        assert set(collection.fields) == set(EVERY)
        assert len(answers(collection)["hybrid"]) == 8
    with pytest.raises(IndexMismatchError, match="differs from 'bag' in strategy"):
        Collection.open(resolve(data_dir, "current"), ENCODER)
    with Collection.open(collection_path(data_dir, "every"), ENCODER) as old:
        assert len(old) == 29
    assert reembed(data_dir, "current", ENCODER).name == "every-3"
    assert reembed(data_dir, "every", ENCODER, to="fresh").name == "fresh"
    assert resolve(data_dir, "every").name == "fresh"
    with pytest.raises(InputError, match="collection 'fresh' already exists"):
        reembed(data_dir, "every", ENCODER, to="fresh")


# ------------------------------------------------------------------ finished segments


def written(folder, documents, fields=None):
    fields = fields or default_fields(ENCODER, index="flat")
    writer = SegmentWriter(folder, fields)
    for start in range(0, len(documents), 7):
        batch = documents[start : start + 7]
        writer.add(batch, encode_documents(fields, {ENCODER.fingerprint: ENCODER}, batch)[0])
    writer.finish()
    writer.close()
    return folder


def test_a_segment_has_the_same_bytes_each_time(tmp_path):
    one, two = (written(tmp_path / name, make_documents(50), EVERY | default_fields(ENCODER)) for name in ("a", "b"))
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files == {path.relative_to(two) for path in two.rglob("*") if path.is_file()}
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)


def test_finished_segments_become_a_collection_and_may_be_removed(tmp_path, data_dir):
    directory = collection_path(data_dir, "docs")
    build_collection(make_documents(3), ENCODER, directory)
    documents = make_documents(60, "new")
    shards = [written(tmp_path / f"shard-{n}", documents[20 * n : 20 * n + 20]) for n in range(3)]
    manifest = publish(directory, default_fields(ENCODER, index="flat"), shards, truncated=4)
    for shard in shards:
        shutil.rmtree(shard)
    assert contents(directory) == ("new", 60)
    assert (manifest.count, manifest.truncated, manifest.sequence, len(manifest.segments)) == (60, 4, 60, 3)
    assert all(check.ok for check in verify(directory))
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert(make_documents(1, "new"))
        assert ids(collection) == [*(document.id for document in documents[1:]), "new-0"]


def test_ids_in_two_segments_are_refused_or_the_last_one_counts(tmp_path, data_dir):
    directory, fields = collection_path(data_dir, "docs"), default_fields(ENCODER, index="flat")
    one = written(tmp_path / "one", [Document("a", "first"), Document("b", "first")])
    two = written(tmp_path / "two", [Document("c", "second"), Document("a", "second")])
    with pytest.raises(InputError, match="segments one and two have the same id 'a'"):
        publish(directory, fields, [one, two])
    assert not (directory / "manifest.json").exists()
    assert publish(directory, fields, [one, two], duplicates="last").count == 3
    with Collection.open(directory, ENCODER) as collection:
        assert [(d.id, d.text) for d in collection.documents()] == [("b", "first"), ("c", "second"), ("a", "second")]


def test_segments_that_are_not_finished_or_of_other_fields_are_refused(tmp_path, data_dir):
    directory = collection_path(data_dir, "docs")
    one = written(tmp_path / "one", make_documents(5))
    with pytest.raises(IndexMismatchError, match="other fields than the collection: bm25 differ"):
        publish(directory, {"dense": field_of(ENCODER)}, [one])
    with pytest.raises(IndexMismatchError, match="dense differ"):
        publish(directory, default_fields(BagEncoder(weights="other")), [one])
    (one / "segment.json").unlink()
    with pytest.raises(NotFoundError, match="not contain a finished segment"):
        publish(directory, default_fields(ENCODER), [one])


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("harm", ["flip", "cut", "extend", "empty"])
def test_damage_to_any_file_of_any_field_is_refused_by_name(every, harm):
    every.upsert(make_documents(20))
    every.flush()
    every.delete(["old-1"])
    every.flush()
    for _ in range(2):  # in the last record of the log a flipped bit cannot be told from a crash
        every.upsert(make_documents(3, "new"))
    every.close()
    files = [check.name for check in verify(every.directory)]
    assert len(files) == 24
    for name in files:
        path = every.directory / name
        whole = path.read_bytes()
        flipped = whole[: len(whole) // 3] + bytes([whole[len(whole) // 3] ^ 2]) + whole[len(whole) // 3 + 1 :]
        if harm in ("cut", "extend") and name.startswith("wal-"):
            continue  # that is what a crash may leave
        path.write_bytes({"flip": flipped, "cut": whole[:-1], "extend": whole + b"\0", "empty": b""}[harm])
        if name == "manifest.json" and harm in ("cut", "extend"):
            path.write_bytes(whole[:-3] if harm == "cut" else whole + b"}")
        with pytest.raises(CorruptFileError, match=path.name.replace(".", r"\.")):
            Collection.open(every.directory, ENCODER)
        assert [check.name for check in verify(every.directory) if not check.ok] == [name]
        path.write_bytes(whole)
    assert len(Collection.open(every.directory, ENCODER)) == 22


def test_damage_to_the_list_of_deleted_rows_is_refused(directory, collection):
    collection.upsert(make_documents(20))
    collection.flush()
    collection.delete(["old-1", "old-2"])
    collection.flush()
    collection.close()
    path = next(directory.glob("dead-*.npy"))
    whole = path.read_bytes()
    for bad in (whole[:-1], whole + b"\0", whole[:-8] + b"\x07" + whole[-7:], b""):
        path.write_bytes(bad)
        with pytest.raises(CorruptFileError, match=r"dead-.*\.npy (is damaged|has \d+ bytes instead)"):
            Collection.open(directory)
        assert [check.name for check in verify(directory) if not check.ok] == [path.name]
    path.unlink()
    with pytest.raises(CorruptFileError, match="is missing"):
        Collection.open(directory, writable=True)
    assert read_manifest(directory).segments


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted through /proc")
@pytest.mark.parametrize("writes", [False, True])
def test_a_closed_collection_has_no_file_open(tmp_path, writes):
    """Without waiting for the garbage collector, which in a large process comes rarely."""
    directory = collection_path(tmp_path, "docs")
    encoder = BagEncoder()
    create_collection(directory, default_fields(encoder))
    with Collection.open(directory, encoder, writable=True) as collection:
        collection.upsert(make_documents(20))
    gc.collect()
    gc.disable()
    try:
        with Collection.open(directory, encoder, writable=writes) as collection:
            collection.search(["old text number3"], k=3)
            if writes:
                collection.upsert(make_documents(30))
                collection.delete(["old-1"])
                collection.flush()
                collection.snapshot("one")
                collection.compact(full=True)
        del collection
        opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
        assert [path for path in opened if str(tmp_path) in path] == []
    finally:
        gc.enable()
