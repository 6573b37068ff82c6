"""Filters: every operator against a plain oracle, on segments and in memory, and what is refused."""

import random

import pytest

from embedserve.errors import InputError
from indexing import Collection, Document, create_collection
from indexing.collections.catalog import collection_path
from indexing.query.filters import compile_filter
from indexing.segments.fields import default_fields
from tests.indexing.bag import BagEncoder
from tests.indexing.model import Model, kind_of, random_document, random_filter

ENCODER = BagEncoder()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A collection of 120 documents, half in a segment and half in memory, and its model."""
    rng = random.Random(11)
    directory = collection_path(tmp_path_factory.mktemp("filters"), "docs")
    create_collection(directory, default_fields(ENCODER, index="exact"))
    documents = [random_document(rng, f"id-{n}") for n in range(120)]
    with Collection.open(directory, ENCODER, writable=True) as collection:
        collection.upsert(documents[:60])
        collection.flush()
        collection.upsert(documents[60:])
        yield collection, Model(documents)


def test_random_filters_let_through_what_an_oracle_does(filled):
    collection, model = filled
    rng = random.Random(5)
    for _ in range(300):
        wanted = random_filter(rng)
        assert collection.scroll(limit=1000, filter=wanted).documents == model.matching(wanted), wanted
        scores = sorted(model.dense("red cat", wanted).values(), reverse=True)[:7]
        hits = collection.search(["red cat"], 7, filter=wanted)[0]
        assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-5), wanted


def test_facets_count_documents_of_each_value_and_kind(filled):
    collection, model = filled
    for path in ("n", "tag", "flag", "tags", "deep.er", "mixed", "mixed.y", "nothing"):
        found = collection.facet(path, limit=1000)
        assert {(kind_of(value), value): count for value, count in found} == model.facet(path), path
        assert [count for _, count in found] == sorted((count for _, count in found), reverse=True)
    assert len(collection.facet("n", limit=2)) == 2
    flag = collection.facet("flag")
    assert {type(value) for value, _ in flag} == {bool}


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"field": "n", "eq": 1}, ["one", "list"]),
        ({"field": "n", "eq": True}, ["true"]),
        ({"field": "n", "eq": "1"}, ["text"]),
        ({"field": "n", "eq": 1.0}, ["one", "list"]),
        ({"field": "n", "contains": 1}, ["list"]),
        ({"field": "n", "in": [1, "1"]}, ["one", "text", "list"]),
        ({"field": "n", "gte": 1}, ["one", "list"]),
        ({"field": "n", "lte": "1"}, ["text"]),
        ({"field": "n", "exists": True}, ["one", "true", "text", "list", "object"]),
        ({"field": "n", "exists": False}, ["null", "empty", "none"]),
        ({"field": "n.n", "eq": 1}, ["object"]),
        ({"not": {"field": "n", "gte": 0}}, ["true", "text", "null", "empty", "object", "none"]),
        ({"field": "id", "gte": "text"}, ["true", "text"]),
        ({"field": "id", "in": ["one", "two"]}, ["one"]),
        ({"and": [{"field": "n", "gte": 1}, {"field": "n", "lte": 1}]}, ["one", "list"]),
    ],
)  # fmt: skip
def test_kinds_are_kept_apart_and_lists_match_by_their_elements(tmp_path, wanted, names):
    values = {"one": 1, "true": True, "text": "1", "list": [0, 1, None], "null": None, "empty": [], "object": {"n": 1}}
    documents = [Document(name, "text", metadata={"n": value}) for name, value in values.items()]
    documents.append(Document("none", "text"))
    create_collection(tmp_path / "docs", default_fields(ENCODER, index="exact"))
    with Collection.open(tmp_path / "docs", ENCODER, writable=True) as collection:
        collection.upsert(documents)
        assert [document.id for document in collection.scroll(filter=wanted).documents] == names
        collection.flush()
        assert [document.id for document in collection.scroll(filter=wanted).documents] == names


def nested(depth):
    return {"not": nested(depth - 1)} if depth else {"field": "a", "eq": 1}


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ([], "filter"), ("a = 1", "filter"), ({}, "filter"), ({"a": 1}, "filter"), ({"and": []}, "filter.and"),
        ({"and": {}}, "filter.and"), ({"or": [{"field": "a", "eq": 1}, 3]}, "filter.or[1]"),
        ({"not": {"field": "a"}}, "filter.not"), ({"and": [], "or": []}, "filter"),
        ({"field": "a", "like": "x%"}, "filter.like"), ({"field": "a", "eq": 1, "gte": 0}, "filter.eq"),
        ({"field": 3, "eq": 1}, "filter.field"), ({"field": "", "eq": 1}, "filter.field"),
        ({"field": "a\ud800", "eq": 1}, "filter.field"), ({"field": "a", "eq": None}, "filter.eq"),
        ({"field": "a", "eq": [1]}, "filter.eq"), ({"field": "a", "eq": {"b": 1}}, "filter.eq"),
        ({"field": "a", "eq": float("nan")}, "filter.eq"), ({"field": "a", "eq": "\ud800"}, "filter.eq"),
        ({"field": "a", "in": []}, "filter.in"), ({"field": "a", "in": "abc"}, "filter.in"),
        ({"field": "a", "in": [1, None]}, "filter.in[1]"), ({"field": "a", "in": [1] * 10_001}, "filter.in"),
        ({"field": "a", "gte": True}, "filter.gte"), ({"field": "a", "exists": 1}, "filter.exists"),
        ({"field": "id", "eq": 1}, "filter.eq"), ({"field": "id", "contains": "a"}, "filter.contains"),
        ({"and": [{"not": {"field": "x", "lte": None}}]}, "filter.and[0].not.lte"),
        (nested(40), "filter" + ".not" * 33), (nested(100_000 // 200), "filter" + ".not" * 33),
    ],
)  # fmt: skip
def test_what_is_no_filter_is_refused_by_its_place(wanted, field):
    with pytest.raises(InputError) as raised:
        compile_filter(wanted)
    assert raised.value.field == field


def test_values_and_paths_are_bound_never_pasted(filled):
    collection, _ = filled
    for text in ("' OR 1=1 --", '"; DROP TABLE meta; --', "?1", "%s", "a') OR ('a'='a"):
        for wanted in ({"field": text, "eq": text}, {"field": "tag", "in": [text]}, {"field": "id", "eq": text}):
            assert collection.count(wanted) == 0
            assert text not in compile_filter(wanted).sql
    assert collection.count() == 120
    assert collection.count({"field": "tag", "in": ["'; --"] * 10_000}) == collection.count(
        {"field": "tag", "eq": "'; --"}
    )
