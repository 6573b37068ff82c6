"""POST /search: its answer, its order, and collections that come, change and go."""

import shutil

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from indexing import Collection, Document, build_collection, collection_path
from tests.api.conftest import DOCUMENTS, error_of, wait_until


def test_the_answer_has_the_promised_shape(client, encoder):
    body = client.post("/search", json={"query": "Join a sequence of arrays along a new axis.", "top_k": 3}).json()
    assert sorted(body) == ["collection", "fingerprint", "results", "timing_ms"]
    assert body["fingerprint"] == encoder.fingerprint
    assert body["collection"] == "python-docs"
    assert body["timing_ms"]["total"] >= body["timing_ms"]["search"] >= 0
    (result,) = body["results"]
    assert result["query_index"] == 0
    assert len(result["hits"]) == 3
    for hit in result["hits"]:
        assert sorted(hit) == ["id", "metadata", "score", "text"]
    scores = [hit["score"] for hit in result["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_a_document_comes_back_whole(client):
    hits = client.post("/search", json={"query": "all of them", "top_k": 100}).json()["results"][0]["hits"]
    assert len(hits) == len(DOCUMENTS)
    found = {hit["id"]: hit for hit in hits}
    for document in DOCUMENTS:
        assert found[document.id]["text"] == document.text
        title = {"title": document.title} if document.title else {}
        assert found[document.id]["metadata"] == {**title, **document.metadata}


def test_hits_are_those_of_the_collection_for_each_query_in_order(client, encoder, data_dir):
    queries = [document.content for document in DOCUMENTS]
    results = client.post("/search", json={"queries": queries, "top_k": 4}).json()["results"]
    assert [result["query_index"] for result in results] == list(range(len(queries)))
    with Collection.open(collection_path(data_dir, "python-docs"), encoder=encoder) as collection:
        for result, hits in zip(results, collection.search(queries, 4), strict=True):
            assert [hit["id"] for hit in result["hits"]] == [hit.id for hit in hits]
            np.testing.assert_allclose([hit["score"] for hit in result["hits"]], [hit.score for hit in hits], atol=1e-5)
    assert [result["hits"][0]["id"] for result in results] == [document.id for document in DOCUMENTS]


def test_ten_hits_unless_told(client):
    for body in ({"query": "rain"}, {"query": "rain", "top_k": None, "collection": None, "queries": None}):
        assert len(client.post("/search", json=body).json()["results"][0]["hits"]) == 10


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({}, "missing_field", "query", "'queries'"),
        ({"query": "a", "queries": ["b"]}, "conflicting_fields", "queries", "one of them"),
        ({"query": ""}, "empty_text", "query", "empty"),
        ({"query": ["a"]}, "invalid_type", "query", "'queries'"),
        ({"query": 7}, "invalid_type", "query", "a number"),
        ({"queries": "a"}, "invalid_type", "queries", "'query'"),
        ({"queries": []}, "empty_list", "queries", "at least one"),
        ({"queries": ["a", " "]}, "empty_text", "queries[1]", "empty"),
        ({"queries": ["a", {}]}, "invalid_type", "queries[1]", "an object"),
        ({"queries": ["a"] * 1025}, "too_many_inputs", "queries", "1,024"),
        ({"query": "x" * 100_001}, "text_too_long", "query", "100,000"),
        ({"query": "a", "top_k": 0}, "top_k_out_of_range", "top_k", "1 to 1000"),
        ({"query": "a", "top_k": 1001}, "top_k_out_of_range", "top_k", "1 to 1000"),
        ({"query": "a", "top_k": "5"}, "invalid_type", "top_k", "a string"),
        ({"query": "a", "top_k": True}, "invalid_type", "top_k", "whole number"),
        ({"query": "a", "topk": 5}, "unknown_field", "topk", "'top_k'"),
        ({"query": "a", "collection": 5}, "invalid_type", "collection", "a string"),
    ],
)
def test_a_bad_body_is_refused_with_field_and_remedy(client, body, code, param, says):
    assert says in error_of(client.post("/search", json=body), 422, code, param)


@pytest.mark.parametrize("name", ["python-doc", "../data", "/etc", "", "a\x00b", "x" * 300, "Python-Docs"])
def test_an_unknown_collection_is_not_found(client, name):
    message = error_of(
        client.post("/search", json={"query": "a", "collection": name}), 404, "collection_not_found", "collection"
    )
    if name == "python-doc":
        assert "did you mean 'python-docs'" in message


def test_a_collection_of_another_encoder_is_refused(client):
    response = client.post("/search", json={"query": "a", "collection": "strange"})
    assert "strategy" in error_of(response, 409, "encoder_mismatch", "collection")


def test_a_damaged_collection_is_refused(client):
    response = client.post("/search", json={"query": "a", "collection": "damaged"})
    assert "vectors.npy" in error_of(response, 500, "corrupt_file", "collection")


@pytest.fixture
def own(settings, encoder, tmp_path):
    """An application whose data folder may be changed."""
    own = settings.model_copy(update={"data_dir": tmp_path, "collection": "mine"})
    with TestClient(create_app(own, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client, collection_path(tmp_path, "mine")


def found_ids(client):
    response = client.post("/search", json={"query": "a"})
    assert response.status_code == 200, response.text
    return sorted(hit["id"] for hit in response.json()["results"][0]["hits"])


def test_collections_are_seen_when_they_come_change_and_go(own, encoder):
    client, directory = own
    message = error_of(client.post("/search", json={"query": "a"}), 404, "collection_not_found", "collection")
    assert "index build" in message
    build_collection([Document("one", "first")], encoder, directory)
    assert found_ids(client) == ["one"]
    build_collection([Document("two", "second"), Document("three", "third")], encoder, directory)
    assert found_ids(client) == ["three", "two"]
    assert client.get("/info").json()["collections"][0]["documents"] == 2
    shutil.rmtree(directory)
    error_of(client.post("/search", json={"query": "a"}), 404, "collection_not_found", "collection")
    assert client.get("/info").json()["collections"] == []


def test_a_search_that_runs_while_its_collection_is_replaced_finishes(own, encoder):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    collections = client.app.state.service.collections
    with collections.use("mine") as old:
        build_collection([Document("two", "second")], encoder, directory)
        assert found_ids(client) == ["two"]
        assert [hit.id for hit in old.search(["a"], 1)[0]] == ["one"]


def test_a_repaired_collection_is_opened_again(own, encoder, monkeypatch):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    file = next(directory.glob("v-*/vectors.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    error_of(client.post("/search", json={"query": "a"}), 500, "corrupt_file", "collection")
    error_of(client.get("/readyz"), 503, "collection_failed")
    file.write_bytes(whole)
    monkeypatch.setattr("api.collections.RETRY_EVERY_S", 0.0)
    assert found_ids(client) == ["one"]
