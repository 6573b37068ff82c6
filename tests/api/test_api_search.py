"""POST /search: response, order, and collections that are created, changed and deleted."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.telemetry import metrics
from indexing import Collection, Document, build_collection
from indexing.collections.aliases import set_alias
from indexing.collections.catalog import collection_path
from tests.api.conftest import DOCUMENTS, error_of, wait_until


def test_the_response_has_the_documented_fields(client, encoder):
    body = client.post("/search", json={"query": "Join a sequence of arrays along a new axis.", "top_k": 3}).json()
    assert sorted(body) == ["collection", "fingerprint", "results", "timing_ms"]
    assert body["fingerprint"] == encoder.fingerprint
    assert body["collection"] == "python-docs"
    assert sorted(body["timing_ms"]) == ["embed", "fetch", "fuse", "rerank", "retrieve", "search", "total"]
    (result,) = body["results"]
    assert result["query_index"] == 0
    assert len(result["hits"]) == 3
    for hit in result["hits"]:
        assert sorted(hit) == ["id", "metadata", "score", "text"]
    scores = [hit["score"] for hit in result["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_the_stages_of_a_search_are_returned_and_counted(client):
    def counted(stage):
        labels = {"collection": "python-docs", "stage": stage}
        return metrics.registry().get_sample_value("es_search_duration_seconds_count", labels) or 0.0

    every = ("embed", "retrieve", "fuse", "rerank", "fetch", "search", "total")
    for asked, has in (
        ({"mode": "dense"}, {"retrieve", "fetch"}),
        ({"mode": "hybrid"}, {"retrieve", "fuse", "fetch"}),
        ({"mode": "dense", "mmr": {"lambda": 0.5}}, {"retrieve", "rerank", "fetch"}),
    ):
        before = {stage: counted(stage) for stage in every}
        timing = client.post("/search", json={"query": "copy a file", **asked}).json()["timing_ms"]
        assert list(timing) == list(every)
        assert {stage for stage in every[1:5] if timing[stage]} == has
        assert sum(timing[stage] for stage in every[1:5]) <= timing["search"] + 0.01
        assert timing["total"] == pytest.approx(timing["embed"] + timing["search"], abs=0.01)
        more = {stage for stage in every if counted(stage) == before[stage] + 1}
        assert more == {*has, "embed", "search", "total"}


def test_a_hit_has_the_whole_document(client):
    hits = client.post("/search", json={"query": "all of them", "top_k": 100}).json()["results"][0]["hits"]
    assert len(hits) == len(DOCUMENTS)
    found = {hit["id"]: hit for hit in hits}
    for document in DOCUMENTS:
        assert found[document.id]["text"] == document.text
        title = {"title": document.title} if document.title else {}
        assert found[document.id]["metadata"] == {**title, **document.metadata}


def test_hits_equal_the_collections_for_each_query_in_order(client, encoder, data_dir):
    queries = [document.content for document in DOCUMENTS]
    results = client.post("/search", json={"queries": queries, "top_k": 4}).json()["results"]
    assert [result["query_index"] for result in results] == list(range(len(queries)))
    with Collection.open(collection_path(data_dir, "python-docs"), encoder=encoder) as collection:
        for result, hits in zip(results, collection.search(queries, 4), strict=True):
            assert [hit["id"] for hit in result["hits"]] == [hit.id for hit in hits]
            np.testing.assert_allclose([hit["score"] for hit in result["hits"]], [hit.score for hit in hits], atol=1e-5)
    assert [result["hits"][0]["id"] for result in results] == [document.id for document in DOCUMENTS]


def test_top_k_may_equal_the_limit(client):
    assert client.get("/info").json()["limits"]["max_hits"] == 10_000
    results = client.post("/search", json={"queries": ["a"] * 10, "top_k": 1000}).json()["results"]
    assert [len(result["hits"]) for result in results] == [len(DOCUMENTS)] * 10


def test_ten_hits_by_default(client):
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
        ({"queries": ["a"] * 4097}, "too_many_inputs", "queries", "4,096"),
        ({"query": "x" * 100_001}, "text_too_long", "query", "100,000"),
        ({"query": "a", "top_k": 0}, "top_k_out_of_range", "top_k", "1 to 1000"),
        ({"query": "a", "top_k": 1001}, "top_k_out_of_range", "top_k", "1 to 1000"),
        ({"queries": ["a"] * 11, "top_k": 1000}, "too_many_hits", "top_k", "10,000"),
        ({"queries": ["a"] * 1001}, "too_many_hits", "top_k", "10,010 hits"),
        ({"query": "a", "top_k": "5"}, "invalid_type", "top_k", "a string"),
        ({"query": "a", "top_k": True}, "invalid_type", "top_k", "whole number"),
        ({"query": "a", "topk": 5}, "unknown_field", "topk", "'top_k'"),
        ({"query": "a", "collection": 5}, "invalid_type", "collection", "a string"),
    ],
)
def test_an_invalid_body_is_rejected_with_field_and_remedy(client, body, code, param, says):
    assert says in error_of(client.post("/search", json=body), 422, code, param)


@pytest.mark.parametrize("name", ["python-doc", "../data", "/etc", "", "a\x00b", "x" * 300, "Python-Docs"])
def test_an_unknown_collection_is_an_error_404(client, name):
    message = error_of(
        client.post("/search", json={"query": "a", "collection": name}), 404, "collection_not_found", "collection"
    )
    if name == "python-doc":
        assert "did you mean 'python-docs'" in message


def test_a_collection_of_another_encoder_is_rejected(client):
    response = client.post("/search", json={"query": "a", "collection": "strange"})
    assert "strategy" in error_of(response, 409, "encoder_mismatch", "collection")


def test_a_damaged_collection_is_rejected(client):
    response = client.post("/search", json={"query": "a", "collection": "damaged"})
    assert "dense.npy" in error_of(response, 500, "corrupt_file", "collection")


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


def test_created_changed_and_deleted_collections_are_noticed(own, encoder):
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
        vectors = encoder.embed(["a"], task="query").vectors
        assert [hit.id for hit in old.search_vectors(vectors, 1)[0]] == ["one"]


def test_documents_of_another_process_are_found_by_the_next_search(own, encoder):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    assert found_ids(client) == ["one"]
    with Collection.open(directory, encoder, writable=True) as writer:
        writer.upsert([Document("two", "second"), Document("three", "third")])
        assert found_ids(client) == ["one", "three", "two"]
        writer.delete(["one"])
        assert found_ids(client) == ["three", "two"]
        writer.compact(full=True)
        assert found_ids(client) == ["three", "two"]
        assert client.get("/info").json()["collections"][0]["documents"] == 2


def test_a_search_resolves_an_alias(own, encoder):
    client, directory = own
    data_dir = directory.parents[1]
    for name, found in (("red", "one"), ("blue", "two")):
        build_collection([Document(found, "text")], encoder, directory.with_name(name))
        set_alias(data_dir, "mine", name)
        assert found_ids(client) == [found]


def test_a_repaired_collection_is_opened_again(own, encoder, monkeypatch):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    file = next(directory.glob("segments/*/dense.npy"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    error_of(client.post("/search", json={"query": "a"}), 500, "corrupt_file", "collection")
    error_of(client.get("/readyz"), 503, "collection_failed")
    file.write_bytes(whole)
    monkeypatch.setattr("api.collections.open_collection.RETRY_EVERY_S", 0.0)
    assert found_ids(client) == ["one"]


class Openings:
    """Counts how often each collection is opened; opening a held one waits for ``gate``."""

    def __init__(self, monkeypatch):
        self.names, self.held, self.gate, self.begun = [], set(), threading.Event(), threading.Event()
        plain = Collection.open

        def opened(directory, encoder=None, **options):
            self.names.append(directory.name)
            if directory.name in self.held:
                self.begun.set()
                assert self.gate.wait(30)
            return plain(directory, encoder=encoder, **options)

        monkeypatch.setattr(Collection, "open", opened)


@pytest.fixture
def openings(monkeypatch):
    openings = Openings(monkeypatch)
    yield openings
    openings.gate.set()


def test_opening_a_collection_does_not_block_others(own, encoder, openings):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    build_collection([Document("two", "second")], encoder, directory.with_name("big"))
    assert found_ids(client) == ["one"]
    openings.held.add("big")
    body = {"query": "a", "collection": "big"}
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, "/search", json=body) for _ in range(8)]  # more than there are threads
        assert openings.begun.wait(10)
        assert found_ids(client) == ["one"]
        assert client.get("/readyz").status_code == 200
        assert client.get("/info").status_code == 200
        assert not any(future.done() for future in waiting)
        openings.gate.set()
        assert all(future.result().status_code == 200 for future in waiting)
    assert openings.names.count("big") == 1


def test_the_old_build_is_searched_while_the_new_one_opens(own, encoder, openings):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    assert found_ids(client) == ["one"]
    build_collection([Document("two", "second")], encoder, directory)
    openings.held.add("mine")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(found_ids, client)
        assert openings.begun.wait(10)
        assert found_ids(client) == ["one"]
        openings.gate.set()
        assert first.result() == ["two"]
    assert found_ids(client) == ["two"]


def test_the_old_build_is_searched_if_the_new_one_cannot_be_opened(own, encoder, openings):
    client, directory = own
    build_collection([Document("one", "first")], encoder, directory)
    assert found_ids(client) == ["one"]
    build_collection([Document("two", "second")], encoder, directory)
    next(directory.glob("segments/*/dense.npy")).write_bytes(b"damaged")
    openings.names.clear()
    for _ in range(3):
        assert found_ids(client) == ["one"]
    assert openings.names == ["mine"]  # and it is not read again and again
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert "dense.npy" in ready.json()["checks"]["collection"]
    (item,) = client.get("/info").json()["collections"]
    assert item["status"] == "open"
    assert item["documents"] == 1
    assert "dense.npy" in item["error"]
    build_collection([Document("three", "third")], encoder, directory)
    assert found_ids(client) == ["three"]
    assert client.get("/info").json()["collections"][0]["error"] is None


def test_a_failed_open_is_retried_with_backoff(own, encoder, openings, monkeypatch):
    client, directory = own
    now = [1000.0]
    monkeypatch.setattr("api.collections.open_collections.time.monotonic", lambda: now[0])
    build_collection([Document("one", "first")], encoder, directory)
    next(directory.glob("segments/*/dense.npy")).write_bytes(b"damaged")
    for seconds, tries in ((0, 1), (1, 1), (5, 2), (5, 2), (5, 3), (10, 3)):
        now[0] += seconds
        error_of(client.post("/search", json={"query": "a"}), 500, "corrupt_file", "collection")
        assert openings.names.count("mine") == tries, seconds


def test_only_the_default_collection_is_opened_at_the_start(settings, encoder, data_dir, openings, monkeypatch):
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        info = client.get("/info").json()
        assert openings.names == ["python-docs"]
        assert {item["name"]: item["status"] for item in info["collections"]} == {
            "python-docs": "open",
            "damaged": "closed",
            "strange": "failed",
        }
        monkeypatch.setattr("indexing.list_collections", lambda _: ["python-docs", "just-vanished"])
        assert [item["name"] for item in client.get("/info").json()["collections"]] == ["python-docs"]
