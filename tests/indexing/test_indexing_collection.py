"""Collections: search, what they tell about themselves, and every kind of damage."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve.disk_records import file_digest, parse_record, record_digest
from embedserve.errors import CorruptFileError, EmbedserveError, IndexMismatchError, InputError, NotFoundError
from embedserve.spec import EncoderSpec
from embedserve.types import Embeddings
from indexing import Collection, Document, build_collection, list_collections, verify
from indexing.collections.catalog import collection_path
from indexing.collections.collection_build import BuildProgress
from indexing.collections.manifest import FORMAT, DeadRows, Manifest, SegmentEntry, read_manifest
from indexing.segments.fields import Field
from indexing.storage.checksums import FileRecord
from tests.indexing.bag import BagEncoder, contents, make_documents

FILES = [
    "bm25/counts.npy", "bm25/engine.json", "bm25/keys.npy", "bm25/lengths.npy", "bm25/offsets.npy", "bm25/rows.npy",
    "dense.npy", "dense/alive.npy", "dense/engine.json", "dense/index.faiss", "dense/rows.npy", "documents.sqlite",
    "segment.json", "sequence.npy",
]  # fmt: skip


def folder_of(directory):
    """The folder of the only segment."""
    return directory / "segments" / read_manifest(directory).segments[0].name


def file_of(directory, name):
    """A file of the only segment; those of engines have a tag before their name."""
    *inner, last = name.split("/")
    return next(folder_of(directory).joinpath(*inner).glob(f"*{last}"))


def untagged(name):
    """The name of a file in its segment, without the segment and the tag of an engine's file."""
    return re.sub(r"[0-9a-f]{16}\.", "", re.sub(r"^segments/[0-9a-f]{16}/", "", name))


# ------------------------------------------------------------------ search


@pytest.mark.parametrize("index", ["auto", "flat", "hnsw", "exact", "IVF4,Flat"])
def test_every_kind_finds_the_document_that_says_it(tmp_path, encoder, index):
    directory = tmp_path / "docs"
    manifest = build_collection(make_documents(40), encoder, directory, index=index, batch_size=16)
    assert manifest == read_manifest(directory)
    assert contents(directory) == ("old", 40)
    assert (folder_of(directory) / "dense").exists() == (index != "exact")


def test_hits_carry_the_document_and_come_best_first(directory, encoder):
    with Collection.open(directory, encoder) as collection:
        lists = collection.search(["number3 about", "number9"], k=5)
        assert [len(hits) for hits in lists] == [5, 5]
        best = lists[0][0]
        assert (best.id, best.title, best.metadata) == ("old-3", "title3", {"n": 3, "tag": "old"})
        assert best.text == "old text number3 about topic3"
        assert all(isinstance(hit.score, float) for hits in lists for hit in hits)
        assert all(hits == sorted(hits, key=lambda hit: -hit.score) for hits in lists)
        vectors = encoder.embed(["number3 about", "number9"]).vectors
        assert collection.search_vectors(vectors, 5) == lists
        assert len(collection.search(["text"], k=1000)[0]) == len(collection) == 40


def test_the_title_is_embedded_too(tmp_path, encoder):
    documents = [Document("a", "same words", "alpha"), Document("b", "same words", "beta"), Document("c", "", "gamma")]
    build_collection(documents, encoder, tmp_path / "docs")
    with Collection.open(tmp_path / "docs", encoder) as collection:
        for name, expected in (("alpha", "a"), ("beta", "b"), ("gamma", "c")):
            assert collection.search([name], 1)[0][0].id == expected


@pytest.mark.parametrize(
    ("queries", "k", "field", "words"),
    [
        ([""], 1, "query", "query 0 is empty"),
        (["fine", " \t\n"], 1, "query", "query 1 is empty"),
        (["fine", 3], 1, "query", "query 1 is of type int"),
        ([], 1, "query", "queries is empty"),
        ("text", 1, "query", "must be a list of texts"),
        (["fine"], 0, "top_k", "from 1 to 1000, got 0"),
        (["fine"], 1001, "top_k", "from 1 to 1000, got 1001"),
        (["fine"], True, "top_k", "got True"),
        (["fine"], 2.0, "top_k", r"got 2\.0"),
    ],
)
def test_unusable_searches_are_named(directory, encoder, queries, k, field, words):
    with Collection.open(directory, encoder) as collection, pytest.raises(InputError, match=words) as raised:
        collection.search(queries, k)
    assert raised.value.field == field


def test_texts_need_an_encoder_and_vectors_the_right_width(directory):
    with Collection.open(directory) as collection:
        with pytest.raises(EmbedserveError, match="opened without an encoder"):
            collection.search(["text"])
        with pytest.raises(InputError, match="queries have 3 dimensions, the index has 16"):
            collection.search_vectors(np.ones((1, 3), dtype=np.float32))


def test_the_manifest_says_what_was_built(directory, encoder):
    with Collection.open(directory, encoder) as collection:
        manifest = collection.manifest
    found = (manifest.count, manifest.dim, manifest.metric, manifest.index, manifest.encoder)
    assert found == (40, 16, "cosine", "Flat", "bag")
    assert manifest.fingerprint == encoder.fingerprint
    assert manifest.spec == encoder.spec.to_dict()
    inside = [path for path in directory.rglob("*") if path.is_file() and path.name not in (".lock", "manifest.json")]
    sizes = {path.relative_to(directory).as_posix(): path.stat().st_size for path in inside}
    assert {check.name: check.bytes for check in verify(directory)[1:]} == sizes


# ------------------------------------------------------------------ names and places


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 65, "a.b", "é", "a\n"])
def test_names_that_could_leave_the_folder_are_refused(data_dir, name):
    with pytest.raises(InputError, match="is not a valid collection name") as raised:
        collection_path(data_dir, name)
    assert raised.value.field == "collection"


def test_unknown_collections_name_the_known_ones(data_dir, directory, encoder):
    build_collection(make_documents(3), encoder, collection_path(data_dir, "python"))
    assert list_collections(data_dir) == ["docs", "python"]
    for call in (Collection.open, verify):
        with pytest.raises(
            NotFoundError, match=r"collection 'pyton' does not exist; did you mean 'python'\? collections: docs, python"
        ):
            call(collection_path(data_dir, "pyton"))


def test_a_folder_without_collections_says_so(data_dir):
    assert list_collections(data_dir) == []
    with pytest.raises(NotFoundError, match="there are none yet"):
        Collection.open(collection_path(data_dir, "docs"))


def test_a_collection_may_be_moved(directory, data_dir):
    moved = directory.rename(collection_path(data_dir, "moved"))
    assert contents(moved) == ("old", 40)
    with Collection.open(moved) as collection:
        assert collection.name == "moved"


# ------------------------------------------------------------------ another encoder


def test_another_spec_is_refused_and_the_difference_named(directory):
    other = BagEncoder(EncoderSpec(strategy="last", backbone="bag", prompts={"query": "find: "}))
    with pytest.raises(IndexMismatchError, match=r"'docs'.*differs from 'bag' in prompts, strategy; rebuild it"):
        Collection.open(directory, other)


def test_other_weights_are_refused_and_named(directory):
    with pytest.raises(IndexMismatchError, match="in the weights of the backbone"):
        Collection.open(directory, BagEncoder(weights="other"))


# ------------------------------------------------------------------ damage


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def extend(path):
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, extend, empty, flip, remove])
def test_every_damage_is_refused_by_name_and_mended_by_a_rebuild(directory, encoder, name, harm):
    harm(file_of(directory, name))
    with pytest.raises(CorruptFileError, match=rf"{name.split('/')[-1]} .*restore it from a backup"):
        Collection.open(directory, encoder)
    assert [untagged(check.name) for check in verify(directory) if not check.ok] == [name]
    build_collection(make_documents(5), encoder, directory)
    assert contents(directory) == ("old", 5)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_collection_is_refused(directory, data_dir, encoder, name):
    other = collection_path(data_dir, "other")
    build_collection(make_documents(41, "new"), encoder, other)
    assert file_of(other, name).read_bytes() != file_of(directory, name).read_bytes()
    shutil.copy(file_of(other, name), file_of(directory, name))
    with pytest.raises(CorruptFileError, match=name.split("/")[-1]):
        Collection.open(directory, encoder)


def test_every_flipped_bit_of_the_manifest_is_refused(directory):
    path = directory / "manifest.json"
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 7)
        path.write_bytes(bad)
        if bytes(bad).split() == good.split():
            continue  # a line end became a space of the same meaning
        with pytest.raises(CorruptFileError, match=r"manifest\.json is .*rebuild"):
            Collection.open(directory)
        first, *others = verify(directory)
        assert not first.ok
        assert not others


@pytest.mark.parametrize("harm", [truncate, empty])
def test_a_manifest_cut_short_is_refused(directory, harm):
    for _ in range(3):
        harm(directory / "manifest.json")
    with pytest.raises(CorruptFileError, match=r"manifest\.json is damaged"):
        Collection.open(directory)


@pytest.mark.parametrize("text", ["[]", "{}", "null", "[" * 100_000, '{"format": 1}', "\ufeff{}"])
def test_a_manifest_of_other_things_is_refused(directory, text):
    (directory / "manifest.json").write_text(text)
    with pytest.raises(CorruptFileError, match=r"manifest\.json"):
        Collection.open(directory)


def rewrite_manifest(directory, **changes):
    """Change the manifest and recompute its digest."""
    path = directory / "manifest.json"
    values = json.loads(path.read_text()) | changes
    del values["digest"]
    path.write_text(json.dumps(values | {"digest": record_digest(values)}))


def test_a_manifest_of_the_future_is_refused(directory):
    rewrite_manifest(directory, format=4)
    with pytest.raises(CorruptFileError, match="of format 4, this release reads format 3; rebuild"):
        Collection.open(directory)


def test_a_manifest_of_the_release_before_is_refused(directory, encoder):
    (directory / "v-0123456789abcdef").mkdir()
    rewrite_manifest(directory, format=2)
    with pytest.raises(CorruptFileError, match="of format 2, this release reads format 3; rebuild"):
        Collection.open(directory)
    build_collection(make_documents(3), encoder, directory)
    assert contents(directory) == ("old", 3)
    assert not list(directory.glob("v-*"))


@pytest.mark.parametrize("place", ["segment", "dead", "wal"])
def test_a_manifest_cannot_name_files_elsewhere(directory, place):
    segments = json.loads((directory / "manifest.json").read_text())["segments"]
    if place == "segment":
        segments[0]["name"] = "../../../etc"
    elif place == "dead":
        segments[0]["dead"] = {"name": "../x.npy", "count": 1, "record": {"bytes": 1, "blake2b": "0"}}
    rewrite_manifest(directory, segments=segments, **({"wal": "../wal.log"} if place == "wal" else {}))
    with pytest.raises(CorruptFileError, match="naming files outside"):
        Collection.open(directory)


def test_a_segment_cannot_name_files_elsewhere(directory):
    path = folder_of(directory) / "segment.json"
    values = json.loads(path.read_text())
    del values["digest"]
    values["files"]["../x.y"] = {"bytes": 1, "blake2b": "0"}
    path.write_text(json.dumps(values | {"digest": record_digest(values)}))
    entry = json.loads((directory / "manifest.json").read_text())["segments"][0]
    record = {"bytes": path.stat().st_size, "blake2b": file_digest(path)}
    rewrite_manifest(directory, segments=[entry | {"record": record}])
    with pytest.raises(CorruptFileError, match="naming files outside"):
        Collection.open(directory)


def test_a_manifest_that_contradicts_its_files_is_refused(directory):
    entry = json.loads((directory / "manifest.json").read_text())["segments"][0]
    rewrite_manifest(directory, segments=[entry | {"count": 41}])
    with pytest.raises(CorruptFileError, match=r"has 40 documents, the manifest 41"):
        Collection.open(directory)


def test_parts_of_a_later_release_are_no_harm(directory):
    rewrite_manifest(directory, later=1)
    assert contents(directory) == ("old", 40)


HEX = st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
RECORD = st.builds(FileRecord, bytes=st.integers(0), blake2b=st.text())


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        Manifest,
        name=st.text(), version=HEX, created=st.text(), sequence=st.integers(0), truncated=st.integers(0),
        wal=HEX.map("wal-{}.log".format),
        fields=st.dictionaries(
            st.sampled_from(["dense", "multi"]),
            st.builds(
                Field, output=st.sampled_from(["dense", "sparse", "words"]), encoder=st.text(), fingerprint=st.text(),
                spec=st.dictionaries(st.text(), st.none() | st.integers() | st.text()), dim=st.integers(1),
                index=st.text(), metric=st.sampled_from(["cosine", "inner_product"]),
            ),
            min_size=1,
        ),
        segments=st.lists(
            st.builds(
                SegmentEntry, name=HEX, base=st.integers(0), count=st.integers(1), record=RECORD,
                kinds=st.dictionaries(st.text(), st.text()),
                dead=st.none() | st.builds(DeadRows, HEX.map("dead-{}.npy".format), st.integers(1), RECORD),
            ),
            max_size=2,
        ).map(tuple),
    )
)  # fmt: skip
def test_a_manifest_survives_its_text(manifest):
    assert Manifest.from_values(parse_record(manifest.to_json(), FORMAT)) == manifest


def test_verify_lists_every_file(directory):
    checks = verify(directory)
    *names, log = [untagged(check.name) for check in checks]
    assert sorted(names) == sorted(["manifest.json", *FILES])
    assert log.startswith("wal-")
    assert all(check.ok and check.bytes > 0 for check in checks)


# ------------------------------------------------------------------ building


def test_a_build_tells_how_far_it_is(tmp_path, encoder):
    told = []
    build_collection(make_documents(10), encoder, tmp_path / "docs", batch_size=4, progress=told.append)
    assert told == [
        BuildProgress("embed", 4, 10), BuildProgress("embed", 8, 10), BuildProgress("embed", 10, 10),
        BuildProgress("index", 10, 10), BuildProgress("write", 10, 10),
    ]  # fmt: skip
    told.clear()
    build_collection(iter(make_documents(2)), encoder, tmp_path / "docs", total=5, progress=told.append)
    assert told[0] == BuildProgress("embed", 2, 5)


def test_an_opened_collection_stays_what_it_was(directory, encoder):
    with Collection.open(directory, encoder) as collection:
        build_collection(make_documents(30, "new"), encoder, directory)
        assert [path.name for path in directory.glob("segments/*")] == [folder_of(directory).name]
        assert {hit.metadata["tag"] for hit in collection.search(["text"], 40)[0]} == {"old"}
        assert len(list(collection.documents())) == 40
    assert contents(directory) == ("new", 30)


def test_a_build_that_ends_while_a_reader_opens_gives_it_the_new_one(directory, encoder, monkeypatch):
    from indexing.collections import state as module

    check_file = module.check_file

    def rebuild_first(*arguments):
        monkeypatch.setattr(module, "check_file", check_file)
        build_collection(make_documents(30, "new"), encoder, directory)
        return check_file(*arguments)

    monkeypatch.setattr(module, "check_file", rebuild_first)
    with Collection.open(directory, encoder) as collection:
        assert len(collection) == 30


@pytest.mark.parametrize(
    ("options", "field"),
    [({"index": "nonsense"}, "index"), ({"metric": "l2"}, "metric"), ({"batch_size": 0}, "batch_size")],
)
def test_unusable_options_are_refused_before_anything_is_read(tmp_path, encoder, options, field):
    def documents():
        raise AssertionError("read")
        yield

    with pytest.raises(InputError) as raised:
        build_collection(documents(), encoder, tmp_path / "docs", **options)
    assert raised.value.field == field
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("known", [True, False])
def test_an_index_that_needs_more_documents_is_refused_before_embedding_where_the_number_is_known(
    directory, encoder, known
):
    embedded = []
    words = "index 'IVF64,Flat' cannot be built from 50 rows: training needs at least 64 documents; use auto"
    with pytest.raises(InputError, match=words) as raised:
        build_collection(
            iter(make_documents(50, "new")), encoder, directory, index="IVF64,Flat",
            total=50 if known else None, progress=embedded.append,
        )  # fmt: skip
    assert raised.value.field == "index"
    assert bool(embedded) != known
    assert contents(directory) == ("old", 40)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError, SystemExit])
@pytest.mark.parametrize("stage", ["embed", "index", "write"])
def test_a_build_that_stops_leaves_the_old_collection(directory, encoder, error, stage):
    def stop(progress):
        if progress.stage == stage:
            raise error("stop")

    before = sorted(directory.rglob("*"))
    with pytest.raises(error, match="stop"):
        build_collection(make_documents(50, "new"), encoder, directory, batch_size=20, progress=stop)
    assert sorted(directory.rglob("*")) == before
    assert contents(directory) == ("old", 40)


def test_errors_of_source_and_encoder_pass_through(directory, encoder):
    def source():
        yield from make_documents(20, "new")
        raise FileNotFoundError("the corpus went away")

    with pytest.raises(FileNotFoundError, match="the corpus went away"):
        build_collection(source(), encoder, directory, batch_size=8)

    def answer(vectors):
        return Embeddings(vectors, np.ones(len(vectors), dtype=np.int64), np.zeros(len(vectors), dtype=bool))

    encoder.embed = lambda texts, **_: answer(np.full((len(texts), 16), np.nan, dtype=np.float32))
    with pytest.raises(InputError, match="row 0 holds NaN"):
        build_collection(make_documents(5, "new"), encoder, directory)
    encoder.embed = lambda texts, **_: answer(np.ones((1, 16), dtype=np.float32))
    with pytest.raises(EmbedserveError, match="returned 1 vectors for 5 documents"):
        build_collection(make_documents(5, "new"), encoder, directory)
    assert contents(directory) == ("old", 40)


def test_a_text_that_the_encoder_refuses_is_named_by_its_line(directory, encoder):
    def refuse(texts, **_):
        raise InputError("texts[1] has nothing that this model's tokenizer keeps", field="texts[1]")

    encoder.embed = refuse
    documents = [Document("a", "x", where="c.jsonl, line 3"), Document("b", "y", where="c.jsonl, line 4")]
    with pytest.raises(InputError, match=r"^c\.jsonl, line 4: document 'b' has nothing"):
        build_collection(documents, encoder, directory)


def test_an_empty_corpus_and_an_id_twice_leave_the_old_collection(directory, encoder):
    with pytest.raises(InputError, match="no documents to index"):
        build_collection([], encoder, directory)
    with pytest.raises(InputError, match="documents 1 and 3 have the same id 'a'"):
        build_collection([Document("a", "x"), Document("b", "y"), Document("a", "z")], encoder, directory, batch_size=2)
    assert contents(directory) == ("old", 40)


def test_two_builds_do_not_collide(directory, encoder):
    def second(progress):
        with pytest.raises(EmbedserveError, match="is being written to by another process"):
            build_collection(make_documents(3, "third"), encoder, directory)

    build_collection(make_documents(20, "new"), encoder, directory, progress=second)
    assert contents(directory) == ("new", 20)


def test_a_first_build_that_fails_leaves_no_collection(data_dir, encoder):
    directory = collection_path(data_dir, "docs")
    with pytest.raises(InputError):
        build_collection([Document("a", "x"), Document("a", "z")], encoder, directory)
    assert list_collections(data_dir) == []
    with pytest.raises(NotFoundError):
        Collection.open(directory)


def test_a_place_that_cannot_be_written_is_named(tmp_path, encoder):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        EmbedserveError, match=r"cannot write to .*Not a directory.*; check the directory .*choose another --data-dir"
    ):
        build_collection(make_documents(3), encoder, tmp_path / "file" / "docs")


def test_a_repair_is_not_made_impossible_by_a_failing_build(directory, encoder):
    segment = folder_of(directory)
    (directory / "manifest.json").write_text("damaged")
    with pytest.raises(InputError):
        build_collection([], encoder, directory)
    assert segment.exists()
    build_collection(make_documents(4, "new"), encoder, directory)
    assert not segment.exists()
