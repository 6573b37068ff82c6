"""Snapshots over HTTP: taken, listed, downloaded, verified and restored, here and elsewhere."""

import io
import tarfile

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from indexing import Collection
from indexing.collections.catalog import collection_path
from indexing.collections.snapshots import restore
from tests.api.conftest import error_of, wait_until

AT = "/v1/collections/kept/snapshots"


@pytest.fixture(scope="module")
def client(tiny_llama, encoder, tmp_path_factory):
    settings = Settings(model=str(tiny_llama), data_dir=tmp_path_factory.mktemp("kept"), device="cpu")
    with TestClient(create_app(settings, encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        client.post("/v1/collections", json={"name": "kept", "index": "exact"})
        write(client, "one", "two")
        assert client.post(AT, json={"name": "first"}).status_code == 201
        yield client


def write(client, *names):
    documents = [{"id": name, "text": f"text {name}"} for name in names]
    assert client.post("/v1/collections/kept/documents", json={"documents": documents}).status_code == 200


def found(client, name="kept"):
    answer = client.post("/search", json={"collection": name, "query": "text"})
    assert answer.status_code == 200, answer.text
    return sorted(hit["id"] for hit in answer.json()["results"][0]["hits"])


def test_a_snapshot_is_listed_and_verified(client):
    (first, *_) = client.get(AT).json()["snapshots"]
    assert (first["name"], first["documents"]) == ("first", 2)
    assert first["bytes"] > 0
    verified = client.get(f"{AT}/first/verify").json()
    assert verified["ok"]
    assert {"manifest.json"} < {file["file"] for file in verified["files"]}
    assert client.get("/v1/collections/none/snapshots").json() == {"snapshots": []}
    error_of(client.post(AT, json={"name": "first"}), 409, "already_exists", "name")
    error_of(client.post(AT, json={"name": "Bad name"}), 422, "invalid_value", "name")
    for path in ("", "/verify"):
        error_of(client.get(f"{AT}/none{path}"), 404, "not_found", "name")


def test_a_snapshot_is_restored_in_place_while_the_collection_is_written(client):
    write(client, "three")
    assert found(client) == ["one", "three", "two"]
    detail = client.post(f"{AT}/first/restore", json={}).json()
    assert (detail["name"], detail["documents"], detail["writing"]) == ("kept", 2, False)
    assert found(client) == ["one", "two"]
    write(client, "four")
    assert found(client) == ["four", "one", "two"]


def test_a_snapshot_is_restored_as_another_collection_and_after_a_delete(client):
    assert client.post(f"{AT}/first/restore", json={"to": "beside"}).json()["name"] == "beside"
    assert found(client, "beside") == ["one", "two"]
    assert client.delete("/v1/collections/beside").status_code == 200
    assert client.post(f"{AT}/first/restore", json={"to": "beside"}).json()["documents"] == 2
    error_of(client.post(f"{AT}/none/restore", json={}), 404, "not_found", "name")


def test_a_download_can_be_restored_elsewhere(client, tmp_path):
    answer = client.get(f"{AT}/first")
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    place = tmp_path / "snapshots" / "kept"
    place.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(place, filter="data")
    assert restore(tmp_path, "kept", "first").count == 2
    with Collection.open(collection_path(tmp_path, "kept")) as collection:
        assert [document.id for document in collection.documents()] == ["one", "two"]


def test_a_damaged_snapshot_is_detected_and_not_restored(client):
    taken = client.post(AT, json={}).json()["name"]
    folder = client.app.state.service.settings.data_dir / "snapshots" / "kept" / taken
    file = next(folder.glob("segments/*/dense.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()  # the collection has the same file
    file.write_bytes(content)
    verified = client.get(f"{AT}/{taken}/verify").json()
    assert not verified["ok"]
    assert [bool(file["problem"]) for file in verified["files"] if not file["ok"]] == [True]
    before = found(client)
    error_of(client.post(f"{AT}/{taken}/restore", json={}), 500, "corrupt_file", "name")
    assert found(client) == before
