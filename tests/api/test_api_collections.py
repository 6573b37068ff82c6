"""Collections, aliases and documents over HTTP, with a real model."""

import io
import json
import threading
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from embedserve.errors import BusyError
from indexing import Collection
from indexing.collections.catalog import collection_path
from tests.api.conftest import error_of, wait_until

IDLE_S = 0.3
RAIN = {"id": "rain", "text": "It rained all night in the valley.", "metadata": {"year": 2024, "tags": ["weather"]}}
BREAD = {"id": "bread/1", "text": "Knead the dough.", "title": "Bread", "metadata": {"year": 2025, "tags": ["food"]}}


@pytest.fixture(scope="module")
def service_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def client(tiny_llama, encoder, service_dir):
    settings = Settings(model=str(tiny_llama), data_dir=service_dir, device="cpu", write_idle_s=IDLE_S)
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        yield client


@pytest.fixture
def name(client, request):
    """A collection of two documents, of the default fields."""
    name = request.node.name.replace("test_", "").split("[")[0][:60]
    assert client.post("/v1/collections", json={"name": name, "index": "exact"}).status_code == 201
    assert client.post(f"/v1/collections/{name}/documents", json={"documents": [RAIN, BREAD]}).status_code == 200
    return name


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [document["id"] for document in answer.json()["documents"]]


def search(client, name, query="night"):
    answer = client.post("/search", json={"collection": name, "query": query})
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["results"][0]["hits"]]


def test_a_collection_is_created_described_and_deleted(client, encoder):
    made = client.post("/v1/collections", json={"name": "made", "fields": {
        "dense": {"index": "hnsw"}, "own": {"dim": 4, "metric": "inner_product", "index": "exact"},
        "weights": {"output": "sparse", "dim": 50}, "bm25": {"output": "words"},
    }})  # fmt: skip
    assert made.status_code == 201, made.text
    detail = made.json()
    assert detail == client.get("/v1/collections/made").json()
    assert {key: (f["output"], f["dim"], f["index"], f["fingerprint"]) for key, f in detail["fields"].items()} == {
        "dense": ("dense", encoder.dim, "hnsw", encoder.fingerprint), "own": ("dense", 4, "exact", ""),
        "weights": ("sparse", 50, "auto", ""), "bm25": ("words", 0, "auto", ""),
    }  # fmt: skip
    assert (detail["documents"], detail["segments"], detail["aliases"]) == (0, [], [])
    listed = client.get("/v1/collections").json()["collections"]
    assert ("made", 0) in [(one["name"], one["documents"]) for one in listed]
    assert error_of(client.post("/v1/collections", json={"name": "made"}), 409, "already_exists", "name")
    assert client.delete("/v1/collections/made").json() == {"deleted": "made"}
    error_of(client.get("/v1/collections/made"), 404, "collection_not_found", "collection")
    error_of(client.delete("/v1/collections/made"), 404, "not_found", "collection")
    assert client.post("/v1/collections", json={"name": "made"}).status_code == 201


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"name": "Bad Name"}, "invalid_value", "name"),
        ({}, "missing_field", "name"),
        ({"name": "x", "fields": {}}, "invalid_value", "fields"),
        ({"name": "x", "fields": {"Dense": {}}}, "invalid_input", "fields"),
        ({"name": "x", "fields": {"a": {"output": "sparse"}}}, "invalid_input", "fields.a.output"),
        ({"name": "x", "fields": {"a": {"model": None, "dim": 0}}}, "invalid_value", "fields.a.dim"),
        ({"name": "x", "fields": {"a": {"bogus": 1}}}, "unknown_field", "fields.a.bogus"),
        ({"name": "x", "fields": {"a": 1}}, "invalid_type", "fields.a"),
        ({"name": "x", "fields": {"a": {"dim": 8, "index": "bogus"}}}, "invalid_input", "fields.a.index"),
        ({"name": "x", "fields": {"a": {"output": "words", "index": "hnsw"}}}, "invalid_input", "fields.a.index"),
        (
            {"name": "x", "fields": {"a": {"output": "multi", "dim": 8, "index": "ivf"}}},
            "invalid_input",
            "fields.a.index",
        ),
        ({"name": "x", "index": "bogus"}, "invalid_input", "index"),
        ({"name": "x", "index": "IVF100000000,Flat"}, "invalid_input", "index"),
        ({"name": "x", "index": "IVF900M,Flat"}, "invalid_input", "index"),
        ({"name": "x", "index": "IMI2x00014,Flat"}, "invalid_input", "index"),
    ],
)
def test_an_invalid_collection_is_rejected(client, body, code, param):
    error_of(client.post("/v1/collections", json=body), 422, code, param)
    error_of(client.get("/v1/collections/x"), 404, "collection_not_found", "collection")


def test_an_alias_is_swapped_and_writes_go_to_its_collection(client, name):
    assert client.put("/v1/aliases/current", json={"collection": name}).json()["aliases"]["current"] == name
    client.post("/v1/collections/current/documents", json={"documents": [{"id": "by-alias", "text": "night"}]})
    assert "by-alias" in search(client, "current") and "by-alias" in search(client, name)
    client.post("/v1/collections", json={"name": "other-one", "index": "exact"})
    client.put("/v1/aliases/current", json={"collection": "other-one"})
    assert search(client, "current") == []
    error_of(client.delete("/v1/collections/other-one"), 422, "invalid_input", "collection")
    error_of(client.delete("/v1/collections/current"), 422, "invalid_input", "collection")
    error_of(client.put("/v1/aliases/current", json={"collection": "none"}), 404, "not_found", "collection")
    assert client.get("/v1/aliases").json()["aliases"]["current"] == "other-one"
    assert "current" not in client.delete("/v1/aliases/current").json()["aliases"]
    error_of(client.delete("/v1/aliases/current"), 404, "not_found", "alias")


def test_documents_are_written_read_counted_and_deleted(client, name):
    at = f"/v1/collections/{name}"
    assert client.get(f"{at}/documents/bread/1").json() == BREAD
    assert ids(client.get(f"{at}/documents")) == ["rain", "bread/1"]
    again = client.post(f"{at}/documents", json={"documents": [{**RAIN, "metadata": {"year": 2030}}]}).json()
    assert again["upserted"] == 1 and again["tokens"] > 0 and again["failed"] == []
    assert ids(client.get(f"{at}/documents")) == ["bread/1", "rain"]
    assert client.post(f"{at}/count", json={}).json() == {"count": 2}
    assert client.post(f"{at}/count", json={"filter": {"field": "year", "gte": 2026}}).json() == {"count": 1}
    values = client.post(f"{at}/facets", json={"field": "year"}).json()
    assert values == {"field": "year", "values": [{"value": 2025, "count": 1}, {"value": 2030, "count": 1}]}
    page = client.get(f"{at}/documents", params={"limit": 1, "filter": '{"field": "year", "lte": 2025}'}).json()
    assert [d["id"] for d in page["documents"]] == ["bread/1"] and page["cursor"]
    assert client.get(f"{at}/documents", params={"cursor": page["cursor"], "limit": 5}).json()["cursor"] is None
    assert client.request("DELETE", f"{at}/documents", json={"ids": ["rain", "none"]}).json() == {"deleted": 1}
    error_of(client.get(f"{at}/documents/rain"), 404, "document_not_found", "id")
    by_filter = client.request("DELETE", f"{at}/documents", json={"filter": {"field": "tags", "contains": "food"}})
    assert by_filter.json() == {"deleted": 1}
    assert search(client, name) == []


@pytest.mark.parametrize(
    ("documents", "code", "param"),
    [
        ([], "empty_list", "documents"),
        ([{"text": "x"}], "missing_field", "documents[0].id"),
        ([{"id": "a", "text": "x"}, {"id": "b", "text": 5}], "invalid_type", "documents[1].text"),
        ([{"id": "a", "text": " "}], "invalid_input", "documents[0].text"),
        ([{"id": "a", "text": "x", "colour": 1}], "unknown_field", "documents[0].colour"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "invalid_input", "id"),
        ([{"id": "a", "text": "x", "vectors": {"dense": [1.0]}}], "invalid_input", "documents[0].vectors.dense"),
        ([{"id": "a", "text": "x", "vectors": {"no": [1.0]}}], "invalid_input", "vectors.no"),
        ("text", "invalid_type", "documents"),
        (["text"], "invalid_type", "documents[0]"),
    ],
)
def test_an_invalid_document_is_rejected_and_nothing_is_written(client, name, documents, code, param):
    error_of(client.post(f"/v1/collections/{name}/documents", json={"documents": documents}), 422, code, param)
    assert client.post(f"/v1/collections/{name}/count", json={}).json() == {"count": 2}
    client.delete(f"/v1/collections/{name}")


def test_lines_are_validated_as_a_whole_and_invalid_lines_may_be_skipped(client, name):
    at, kind = f"/v1/collections/{name}/documents", {"content-type": "application/x-ndjson"}
    lines = b'{"id": "one", "text": "first"}\n\n{"id": "two"}\n{"id": "three", "text": "third"}\n{]\n'
    message = error_of(client.post(at, content=lines, headers=kind), 422, "invalid_document", "text")
    assert message.startswith("line 3: ")
    assert client.post(f"/v1/collections/{name}/count", json={}).json() == {"count": 2}
    answer = client.post(at, content=lines, headers=kind, params={"on_error": "skip"}).json()
    assert (answer["upserted"], [failed["line"] for failed in answer["failed"]]) == (2, [3, 5])
    assert {"one", "three"} <= set(search(client, name))
    error_of(client.post(at, content=lines, headers=kind, params={"on_error": "no"}), 422, "invalid_value", "on_error")
    error_of(client.post(at, content=b"\n", headers=kind), 400, "empty_body")


def files():
    table = pyarrow.table({"sku": ["a", "b"], "text": ["first", "second"], "n": [1, 2]})
    parquet = io.BytesIO()
    pyarrow.parquet.write_table(table, parquet)
    rows = [{"sku": "a", "text": "first", "n": 1}, {"sku": "b", "text": "second", "n": 2}]
    return {
        "rows.parquet": parquet.getvalue(),
        "rows.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "rows.csv": b"sku,text,n\na,first,1\nb,second,2\n",
    }


@pytest.mark.parametrize("file", ["rows.parquet", "rows.jsonl", "rows.csv"])
def test_files_are_written(client, name, file):
    at = f"/v1/collections/{name}/documents"
    answer = client.post(at, files={"file": (file, files()[file])}, data={"id_field": "sku"})
    assert answer.json()["upserted"] == 2, answer.text
    assert str(client.get(f"{at}/b").json()["metadata"]["n"]) == "2"
    error_of(
        client.post(at, files={"file": (file, files()[file])}, data={"text_field": "no"}),
        422,
        "invalid_document",
        "file",
    )
    error_of(client.post(at, data={"id_field": "sku"}, files={"other": b""}), 422, "missing_field", "file")
    error_of(client.post(at, data={"other": "sku"}, files={"file": b""}), 422, "unknown_field", "other")
    twice = [("file", ("a.jsonl", b"")), ("id_field", (None, "a")), ("id_field", (None, "b"))]
    error_of(client.post(at, files=twice), 422, "repeated_field", "id_field")
    message = error_of(
        client.post(at, content=b"x", headers={"Content-Type": "multipart/form-data"}), 400, "invalid_form"
    )
    assert "boundary" in message
    error_of(client.post(at, files={"file": ("a.bin", b"xx")}), 422, "invalid_input", "source")
    client.delete(f"/v1/collections/{name}")


@pytest.mark.parametrize("kind", ["application/x-ndjson", "file"])
def test_metadata_that_is_not_json_is_rejected_before_anything_is_written(client, name, kind):
    at = f"/v1/collections/{name}/documents"
    lines = b'{"id": "new", "text": "one", "metadata": {}}\n{"id": "n", "text": "two", "metadata": {"n": 1%s}}' % (
        b"0" * 30
    )
    body = {"files": {"file": ("rows.jsonl", lines)}} if kind == "file" else {"content": lines}
    how = {**body, "headers": {} if kind == "file" else {"Content-Type": kind}}
    refused = error_of(client.post(at, **how), 422, "invalid_document", "file" if kind == "file" else "metadata")
    assert "line 2" in refused
    assert "/tmp" not in refused
    error_of(client.get(f"{at}/new"), 404, "document_not_found", "id")
    answer = client.post(f"{at}?on_error=skip", **how).json()
    assert (answer["upserted"], [one["line"] for one in answer["failed"]]) == (1, [2])
    client.delete(f"/v1/collections/{name}")


def test_vectors_of_documents_are_stored(client):
    fields = {
        "own": {"dim": 3, "index": "exact"},
        "tokens": {"output": "multi", "dim": 2, "index": "exact"},
        "bm25": {"output": "words"},
    }
    assert client.post("/v1/collections", json={"name": "brought", "fields": fields}).status_code == 201
    at = "/v1/collections/brought/documents"
    document = {"id": "a", "text": "x", "vectors": {"own": [1, 0, 0], "tokens": [[1, 0], [0, 1]]}}
    assert client.post(at, json={"documents": [document]}).json()["upserted"] == 1
    error_of(client.post(at, json={"documents": [{"id": "b", "text": "x"}]}), 422, "vectors_missing", "vectors")
    for bad in ([1, 0], [1, 0, "x"], [1, 0, None], None, [1, 0, 1e300], [[1, 0, 0]]):
        sent = {**document, "vectors": {**document["vectors"], "own": bad}}
        error_of(client.post(at, json={"documents": [sent]}), 422, "invalid_input", "documents[0].vectors.own")
    with Collection.open(collection_path(client.app.state.service.settings.data_dir, "brought")) as collection:
        (hit,) = collection.search_vectors(np.array([[0.6, 0.8, 0]], dtype=np.float32), mode="own")[0]
        assert hit.score == pytest.approx(0.6)


def test_a_write_is_visible_immediately_and_the_write_lock_is_released(client, name, service_dir):
    at = f"/v1/collections/{name}"
    for number in range(5):
        client.post(f"{at}/documents", json={"documents": [{"id": f"n{number}", "text": f"night {number}"}]})
        assert f"n{number}" in search(client, name, f"night {number}")
    assert client.get(at).json()["writing"]
    with pytest.raises(BusyError):
        Collection.open(collection_path(service_dir, name), writable=True)
    assert wait_until(lambda: not client.get(at).json()["writing"])
    with Collection.open(collection_path(service_dir, name), writable=True) as other:
        refused = client.post(f"{at}/documents", json={"documents": [RAIN]})
        assert error_of(refused, 409, "busy", "collection")
        other.delete(["n0"])
        assert "n0" not in search(client, name) and "n1" in search(client, name)
    assert client.post(f"{at}/documents", json={"documents": [RAIN]}).status_code == 200
    detail = client.post(f"{at}/compact", json={"full": True}).json()
    assert [segment["documents"] for segment in detail["segments"]] == [6]


def test_searches_run_while_documents_are_written(client, name):
    stop, problems, searches = threading.Event(), [], []
    acknowledged = []

    def searching():
        while not stop.is_set():
            known = list(acknowledged)
            answer = client.post("/search", json={"collection": name, "query": "night", "top_k": 1000})
            if answer.status_code != 200:
                problems.append(answer.text)
                return
            found = {hit["id"] for hit in answer.json()["results"][0]["hits"]}
            searches.append(len(found))
            if missing := set(known) - found:
                problems.append(missing)

    readers = [threading.Thread(target=searching) for _ in range(2)]
    for thread in readers:
        thread.start()
    end = time.monotonic() + 3
    number = 0
    while time.monotonic() < end:
        documents = [{"id": f"w{number}-{n}", "text": f"night {number} {n}"} for n in range(3)]
        answer = client.post(f"/v1/collections/{name}/documents", json={"documents": documents})
        assert answer.status_code == 200, answer.text
        acknowledged += [document["id"] for document in documents] if len(acknowledged) < 900 else []
        number += 1
        if number == 5:
            client.post(f"/v1/collections/{name}/compact", json={"full": True})
    stop.set()
    for thread in readers:
        thread.join()
    assert not problems
    assert number > 1
    assert len(set(searches)) > 1


def test_acknowledged_documents_survive_a_restart(tiny_llama, encoder, tmp_path):
    settings = Settings(model=str(tiny_llama), data_dir=tmp_path, device="cpu")
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        client.post("/v1/collections", json={"name": "kept", "index": "exact"})
        client.post("/v1/collections/kept/documents", json={"documents": [RAIN]})
    with Collection.open(collection_path(tmp_path, "kept"), writable=True) as collection:
        assert [document.id for document in collection.documents()] == ["rain"]
