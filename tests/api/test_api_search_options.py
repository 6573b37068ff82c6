"""Options of `POST /search`, with a collection of every kind of field."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from embedserve import Encoder, EncoderSpec
from indexing import Collection, Document, build_collection
from indexing.collections.catalog import collection_path
from indexing.segments.fields import BM25, WORDS, field_of
from tests.api.conftest import error_of, wait_until

WORDS_OF = ["copy", "file", "array", "axis", "join", "night", "rain", "number", "dog"]
QUERY = "copy a file"


def document(number):
    words = [WORDS_OF[(number * 7 + n * n + n * number) % 9] for n in range(5)]
    return Document(f"d{number}", " ".join(words), metadata={"n": number, "of": {"part": number % 4}})


@pytest.fixture(scope="module")
def token_encoder(tiny_llama):
    return Encoder.load(EncoderSpec("colbert", backbone=str(tiny_llama), head="random"), device="cpu")


@pytest.fixture(scope="module")
def client(tiny_llama, encoder, token_encoder, tmp_path_factory):
    """A service whose default model is ``encoder``, with collections of dense vectors and of brought token vectors."""
    root = tmp_path_factory.mktemp("search")
    documents = [document(n) for n in range(40)]
    fields = {"dense": field_of(encoder, index="exact"), BM25: WORDS}
    build_collection(documents, encoder, collection_path(root, "docs"), fields=fields)
    both = {"dense": field_of(encoder, index="exact"), "multi": field_of(token_encoder, "multi", index="exact")}
    build_collection(documents, [encoder, token_encoder], collection_path(root, "tokens"), fields={**both, BM25: WORDS})
    settings = Settings(model=str(tiny_llama), data_dir=root, device="cpu", collection="docs", max_hits=2000)
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture(scope="module")
def collection(client, encoder):
    data_dir = client.app.state.service.settings.data_dir
    with Collection.open(collection_path(data_dir, "docs"), encoder) as collection:
        yield collection


def result(client, query=QUERY, name="docs", **body):
    answer = client.post(f"/v1/collections/{name}/search", json={"query": query, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]


def ids(found):
    return [hit["id"] for hit in found["hits"]]


def names(hits):
    return [hit.id for hit in hits]


def test_the_default_response_has_no_further_fields(client):
    answer = client.post("/search", json={"query": QUERY, "top_k": 3})
    body = answer.json()
    assert list(body) == ["results", "collection", "fingerprint", "timing_ms"]
    assert list(body["results"][0]) == ["query_index", "hits"]
    assert list(body["results"][0]["hits"][0]) == ["id", "score", "text", "metadata"]
    same = client.post("/v1/collections/docs/search", json={"query": QUERY, "top_k": 3}).json()
    assert same["results"] == body["results"]
    counted = 'es_search_duration_seconds_count{collection="docs",stage="search"}'
    assert counted in client.get("/metrics").text
    inside = client.post("/v1/collections/docs/search", json={"query": QUERY, "collection": "docs"})
    error_of(inside, 422, "unknown_field", "collection")


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_every_mode_returns_the_hits_of_the_collection(client, collection, mode):
    hits = collection.search([QUERY], 7, mode=mode)[0]
    found = result(client, top_k=7, mode=mode)
    assert ids(found) == names(hits)
    assert [hit["score"] for hit in found["hits"]] == pytest.approx([hit.score for hit in hits], abs=1e-5)


def test_rankings_are_fused_by_the_requested_method(client, collection):
    for fusion, how in [
        ({"method": "weighted", "weights": {"bm25": 3}}, {"fusion": "weighted", "weights": {"bm25": 3.0}}),
        ({"method": "dbsf"}, {"fusion": "dbsf"}),
        ({"weights": {"dense": 0.0}}, {"weights": {"dense": 0.0}}),
    ]:
        assert ids(result(client, mode="hybrid", fusion=fusion)) == names(
            collection.search([QUERY], mode="hybrid", **how)[0]
        )
    sharp = result(client, mode="hybrid", fusion={"k": 0}, explain=True)["hits"]
    for hit in sharp:
        assert hit["score"] == pytest.approx(sum(1 / one["rank"] for one in hit["explain"]["retrievers"].values()))


def test_filters_groups_thresholds_and_diversity(client, collection):
    every = result(client, top_k=40)
    assert {hit["metadata"]["n"] for hit in result(client, filter={"field": "n", "lte": 5})["hits"]} == set(range(6))
    groups = result(client, top_k=3, group_by={"field": "of.part", "size": 2})["hits"]
    assert len(groups) == 6 and len({hit["group"] for hit in groups}) == 3
    assert all(hit["group"] == hit["metadata"]["of"]["part"] for hit in groups)
    limit = every["hits"][4]["score"] - 1e-6
    assert ids(result(client, top_k=40, score_threshold=limit)) == ids(every)[:5]
    assert ids(result(client, mmr={"lambda": 1.0})) == ids(every)[:10]
    spread = ids(result(client, mmr={"lambda": 0.1}, candidates=40))
    assert spread[0] == ids(every)[0] and spread != ids(every)[:10]


@pytest.mark.parametrize(
    "body",
    [{}, {"mode": "hybrid"}, {"mode": "bm25"}, {"mmr": {"lambda": 0.5}}, {"group_by": {"field": "n"}}],
    ids=["dense", "hybrid", "bm25", "mmr", "groups"],
)
def test_pages_return_every_document_once(client, body):
    cursor, pages = "*", []
    for _ in range(12):
        found = result(client, top_k=7, cursor=cursor, **body)
        pages += ids(found)
        cursor = found["next_cursor"]
        if cursor is None:
            break
    assert cursor is None
    assert len(pages) == len(set(pages))
    whole = result(client, top_k=40, **{**body, "candidates": 100})
    assert sorted(pages) == sorted(ids(whole))
    if "mmr" not in body:
        assert pages == ids(whole)


def test_a_cursor_of_another_search_is_rejected(client):
    cursor = result(client, cursor="*")["next_cursor"]
    for body in ({"query": "another"}, {"query": QUERY, "mode": "hybrid"}, {"query": QUERY, "cursor": "AAAA"}):
        answer = client.post("/search", json={"cursor": cursor, **body})
        error_of(answer, 409, "invalid_cursor", "cursor")
    error_of(client.post("/search", json={"queries": ["a", "b"], "cursor": "*"}), 422, "conflicting_fields", "cursor")


def test_hits_have_the_included_parts(client, encoder):
    assert set(result(client, include=[])["hits"][0]) == {"id", "score"}
    (hit, *_) = result(client, include=["vectors", "text"])["hits"]
    assert list(hit) == ["id", "score", "text", "vectors"]
    made = encoder.embed([hit["text"]], task="document").vectors[0]
    np.testing.assert_allclose(hit["vectors"]["dense"], made, atol=1e-5)


def test_vectors_may_be_sent_in_place_of_texts(client, encoder, token_encoder):
    dense = encoder.embed([QUERY, "rain"], task="query").vectors.tolist()
    sent = client.post("/search", json={"vectors": [{"dense": vector} for vector in dense], "top_k": 4}).json()
    asked = client.post("/search", json={"queries": [QUERY, "rain"], "top_k": 4}).json()
    assert [ids(one) for one in sent["results"]] == [ids(one) for one in asked["results"]]
    tokens = token_encoder.encode([QUERY], task="query").multi
    body = {"vectors": {"multi": tokens[0].tolist()}, "top_k": 5, "explain": True, "collection": "tokens"}
    answer = client.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    hits = answer.json()["results"][0]["hits"]
    for hit in hits:
        pairs = hit["explain"]["tokens"]["multi"]
        assert sum(pair["similarity"] for pair in pairs) == pytest.approx(hit["score"], abs=2e-2)
        assert all(pair["query_token"] is None and pair["document"] >= 0 for pair in pairs)
    both = {"query": QUERY, "vectors": {"multi": tokens[0].tolist()}, "rerank": "multi", "collection": "tokens"}
    again = client.post("/search", json={**both, "mode": "hybrid"}).json()["results"][0]["hits"]
    assert [hit["id"] for hit in again[:5]] == [hit["id"] for hit in hits]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"query": "a", "mode": "multi"}, 409, "not_in_collection", "mode"),
        ({"query": "a", "rerank": "multi"}, 409, "not_in_collection", "rerank"),
        ({"query": "a", "fusion": {"weights": {"multi": 1}}}, 409, "not_in_collection", "weights"),
        ({"query": "a", "mmr": {"lambda": 0.5, "field": "bm25"}}, 409, "not_in_collection", "mmr.field"),
        ({"vectors": {"no": [1]}}, 409, "not_in_collection", "vectors.no"),
        ({"vectors": {"dense": [1]}}, 409, "not_in_collection", "vectors[0].dense"),
        ({"vectors": []}, 422, "too_many_inputs", "vectors"),
        ({"vectors": "x"}, 422, "invalid_type", "vectors"),
        ({"query": "a", "vectors": [{"dense": [1]}, {"dense": [1]}]}, 422, "conflicting_fields", "vectors"),
        ({}, 422, "missing_field", "query"),
        ({"query": "a", "fusion": {"method": "no"}}, 422, "invalid_value", "fusion.method"),
        ({"query": "a", "mmr": {"lambda": 2}}, 422, "invalid_value", "mmr.lambda"),
        ({"query": "a", "mmr": {"lambda": 1}, "group_by": {"field": "n"}}, 422, "conflicting_fields", "mmr"),
        ({"query": "a", "filter": {"and": []}}, 422, "invalid_input", "filter.and"),
        ({"query": "a", "filter": {"field": "n", "like": 1}}, 422, "invalid_input", "filter.like"),
        ({"query": "a", "include": ["all"]}, 422, "invalid_value", "include[0]"),
        ({"query": "a", "top_k": 300, "group_by": {"field": "n", "size": 10}}, 422, "too_many_hits", "top_k"),
        ({"query": "a", "candidates": 0}, 422, "invalid_value", "candidates"),
        ({"query": "a", "collection": "tokens", "mode": "multi"}, 409, "encoder_mismatch", "collection"),
    ],
)
def test_an_invalid_search_is_rejected(client, body, status, code, param):
    error_of(client.post("/search", json=body), status, code, param)


def test_explanations_name_the_matching_tokens(tiny_llama, token_encoder, tmp_path):
    fields = {"multi": field_of(token_encoder, "multi", index="exact"), BM25: WORDS}
    documents = [Document("a", "copy the file"), Document("b", "join the arrays at night")]
    build_collection(documents, token_encoder, collection_path(tmp_path, "late"), fields=fields)
    settings = Settings(model=str(tiny_llama), data_dir=tmp_path, device="cpu", collection="late")
    with TestClient(create_app(settings, token_encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        for body in ({}, {"mode": "bm25", "rerank": "multi"}):
            (hit, *_) = result(client, name="late", query="copy the file", explain=True, **body)["hits"]
            pairs = hit["explain"]["tokens"]["multi"]
            assert hit["id"] == "a"
            assert sum(pair["similarity"] for pair in pairs) == pytest.approx(hit["score"], abs=2e-2)
            assert all(pair["query_token"] for pair in pairs)
            texts = [pair["query_token"] for pair in pairs if not pair["query_token"].startswith("<")]
            assert "".join(texts).replace(" ", "").endswith("copythefile")
            assert any(a["query_token"] == a["document_token"] for a in pairs)
