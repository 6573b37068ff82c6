"""GET /livez, /readyz and /info before, during and after loading the model."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import Settings
from embedserve import __version__
from embedserve.errors import DeviceError
from tests.api.conftest import FakeEncoder, error_of, wait_until


def test_live_and_ready(client, encoder):
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready == {"status": "ready", "checks": {"model": encoder.name, "collection": "python-docs: open"}}


def test_info_describes_the_service(client, encoder, settings):
    client.post("/search", json={"query": "a", "collection": "damaged"})  # what is not opened yet is not read
    info = client.get("/info").json()
    assert info["version"] == __version__
    assert (info["model"], info["fingerprint"]) == (encoder.name, encoder.fingerprint)
    assert (info["dim"], info["max_tokens"]) == (encoder.dim, encoder.max_tokens)
    assert info["limits"]["max_inputs"] == settings.max_inputs
    found = {item["name"]: item for item in info["collections"]}
    assert found["python-docs"] == {"name": "python-docs", "status": "open", "documents": 12, "error": None}
    assert "strategy" in found["strange"]["error"]
    assert "dense.npy" in found["damaged"]["error"]


def test_no_model_is_ready_before_the_start(settings):
    client = TestClient(create_app(settings))  # no lifespan: nothing loads
    assert client.get("/livez").status_code == 200
    assert client.get("/info").json()["status"] == "loading"
    for response in (
        client.get("/readyz"),
        client.post("/embed", json={"input": "a"}),
        client.post("/search", json={"query": "a"}),
    ):
        assert "still loading" in error_of(response, 503, "loading")
        assert response.headers["retry-after"] == "1"


def test_a_model_loads_in_the_background(settings):
    with TestClient(create_app(settings)) as client:
        assert client.get("/livez").status_code == 200
        assert wait_until(lambda: client.get("/readyz").status_code == 200)


def test_truncated_weights_are_reported(tmp_path, tiny_llama):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with TestClient(create_app(Settings(model=str(folder), data_dir=tmp_path))) as client:
        assert wait_until(lambda: client.get("/info").json()["status"] == "failed")
        assert "cannot be loaded" in error_of(client.post("/embed", json={"input": "a"}), 503, "model_failed")


@pytest.mark.parametrize("content", [None, "{}"])
def test_every_route_reports_a_model_that_failed_to_load(tmp_path, content):
    folder = tmp_path / "model"
    folder.mkdir()
    if content:
        (folder / "config.json").write_text(content)
    with TestClient(create_app(Settings(model=str(folder), data_dir=tmp_path))) as client:
        assert wait_until(lambda: client.get("/info").json()["status"] == "failed")
        for response in (client.get("/readyz"), client.post("/embed", json={"input": "a"})):
            message = error_of(response, 503, "model_failed")
            assert ("no weights" if content else "config.json") in message
            assert "retry-after" not in response.headers


def test_readiness_embeds_a_text(fake_client, fake, monkeypatch):
    monkeypatch.setattr("api.inference.selfcheck.PROBE_EVERY_S", 0.0)
    before = len(fake.calls)
    assert fake_client.get("/readyz").status_code == 200
    assert len(fake.calls) == before + 1


def test_an_encoder_that_fails_is_not_ready(fake_client, fake, monkeypatch):
    monkeypatch.setattr("api.inference.selfcheck.PROBE_EVERY_S", 0.0)

    def fail(*_, **__):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(fake, "encode_rows", fail)
    assert "the device is gone" in error_of(fake_client.get("/readyz"), 503, "embedding_failed")


def test_an_encoder_that_hangs_is_not_ready(fake_client, fake, monkeypatch):
    monkeypatch.setattr("api.inference.selfcheck.PROBE_EVERY_S", 0.0)
    monkeypatch.setattr("api.inference.selfcheck.PROBE_PATIENCE_S", 0.05)
    ready = fake.encode_rows
    monkeypatch.setattr(fake, "encode_rows", lambda rows: fake.gate.wait(5) and ready(rows))
    assert "not embedded" in error_of(fake_client.get("/readyz"), 503, "too_slow")
    fake.gate.set()


def test_the_default_collection_may_be_built_later(fake_client):
    assert fake_client.get("/readyz").json()["checks"]["collection"] == "python-docs: not built yet"


def test_a_default_collection_of_another_encoder_is_not_ready(settings, encoder):
    for name, says in (("strange", "strategy"), ("damaged", "dense.npy")):
        own = settings.model_copy(update={"collection": name})
        with TestClient(create_app(own, encoder)) as client:
            assert wait_until(lambda client=client: client.get("/info").json()["status"] == "ready")
            assert says in error_of(client.get("/readyz"), 503, "collection_failed")
            assert client.post("/embed", json={"input": "a"}).status_code == 200


def test_a_full_queue_is_still_ready(fake_client, fake, monkeypatch):
    monkeypatch.setattr("api.inference.selfcheck.PROBE_EVERY_S", 0.0)
    batcher = fake_client.app.state.service.model().batcher
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(fake_client.post, "/embed", json={"input": "wait"})
        assert fake.waiting.wait(10)
        queued = pool.submit(fake_client.post, "/embed", json={"input": "abc"})
        assert wait_until(lambda: batcher.pending == batcher.limit)
        error_of(fake_client.post("/embed", json={"input": "d"}), 429, "overloaded")
        ready = pool.submit(fake_client.get, "/readyz")
        assert wait_until(lambda: batcher.waiting()["urgent"] == 1)  # the probe waits, past the limit
        fake.gate.set()
        assert ready.result().status_code == running.result().status_code == queued.result().status_code == 200
    order = [call[0] for call in fake.calls]
    assert order[-2:] == ["ready", "abc"]  # and it goes first


def test_creating_an_application_has_no_side_effects(tmp_path):
    app = create_app(Settings(data_dir=tmp_path / "none"), FakeEncoder())
    assert app.state.service.state == "loading"
    assert not (tmp_path / "none").exists()


def test_a_lost_device_is_not_ready(fake_client, fake, monkeypatch):
    def lost(rows):
        raise DeviceError("the device has failed")

    monkeypatch.setattr(fake, "encode_rows", lost)
    error_of(fake_client.post("/embed", json={"input": "a"}), 503, "device_failed")
    error_of(fake_client.post("/embed", json={"input": "a"}), 503, "device_failed")
    assert "retry-after" not in fake_client.get("/readyz").headers
    error_of(fake_client.get("/readyz"), 503, "device_failed")
    assert fake_client.get("/livez").status_code == 200
