"""embedserve.client against real servers, one of them overloaded on purpose."""

import asyncio
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import uvicorn

from api.app import create_app
from api.http.auth import new_key
from api.settings import Settings
from embedserve import OverloadedError
from embedserve.client import AsyncClient, Client, Retries, ServiceError
from tests.api.conftest import FakeEncoder, text_vector, wait_until

QUICK = Retries(attempts=100, first_s=0.01, most_s=0.05)


def test_the_client_needs_neither_torch_nor_the_service():
    code = (
        "import sys, embedserve.client; print([n for n in ('torch', 'indexing', 'api', 'faiss') if n in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def texts():
    return [f"text number {number} of some" for number in range(10)]


@pytest.fixture
def connected(address):
    with Client(address) as client:
        yield client


def test_vectors_are_those_of_the_encoder(connected, encoder, texts):
    found = connected.embed(texts)
    assert (found.dtype, found.shape) == (np.float32, (10, encoder.dim))
    np.testing.assert_allclose(found, encoder.embed(texts, task="document").vectors, atol=1e-5)
    query = connected.embed("rain", input_type="query", dimensions=8)
    np.testing.assert_allclose(query, encoder.embed(["rain"], task="query", dimensions=8).vectors, atol=1e-5)
    assert len(connected.embed([])) == 0


def test_more_than_the_service_takes_at_once_is_cut_up(connected, encoder, texts):
    connected.limits.update({"max_inputs": 3, "max_body_bytes": 10_000, "max_hits": 4})
    np.testing.assert_allclose(connected.embed(texts), encoder.embed(texts).vectors, atol=1e-5)
    hits = connected.search(texts, top_k=2)
    assert len(hits) == 10
    assert all(len(found) == 2 for found in hits)
    connected.limits.update({"max_inputs": 1000, "max_body_bytes": 100})
    assert connected.embed(texts).shape == (10, encoder.dim)


def test_a_search_gives_hits(connected):
    ((hit, *_),) = connected.search("Join a sequence of arrays along a new axis.", collection="python-docs", top_k=3)
    assert {"id", "score", "text", "metadata"} <= set(hit)


def test_a_refusal_names_the_field_and_is_not_repeated(connected):
    with pytest.raises(ServiceError, match="dimensions") as refusal:
        connected.embed("rain", dimensions=100_000)
    assert (refusal.value.status, refusal.value.field) == (422, "dimensions")
    assert refusal.value.request_id.startswith("req_")
    with pytest.raises(ServiceError) as refusal:
        connected.request("GET", "/nowhere")
    assert refusal.value.code == "route_not_found"


def test_the_async_client_does_the_same(address, encoder, texts):
    async def use():
        async with AsyncClient(address) as client:
            assert (await client.info())["status"] == "ready"
            return await asyncio.gather(client.embed(texts), client.search(texts[:2], top_k=1))

    vectors, hits = asyncio.run(use())
    np.testing.assert_allclose(vectors, encoder.embed(texts).vectors, atol=1e-5)
    assert [len(found) for found in hits] == [1, 1]


@pytest.fixture(scope="module")
def busy(tmp_path_factory):
    """A server with room for ten tokens, one for each character, behind a key."""
    key, line = new_key("busy", "admin")
    fake = FakeEncoder()
    app = create_app(Settings(data_dir=tmp_path_factory.mktemp("busy"), queue_limit=10, api_keys=(line,)), fake)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert wait_until(lambda: server.started and app.state.service.finished_loading.is_set())
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", key, fake, app
    fake.gate.set()
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def on_retry(monkeypatch):
    """Return a list of functions; the client calls the first one before its first wait, and so on."""
    actions = []

    def wait(seconds):
        if actions:
            actions.pop(0)()
        time.sleep(seconds)

    monkeypatch.setattr("embedserve.client.client.time", SimpleNamespace(sleep=wait))
    return actions


def test_overload_is_waited_out(busy, on_retry):
    address, key, fake, _ = busy
    texts = ["a", "b", "c"]
    with Client(address, api_key=key, retries=QUICK) as first, Client(address, api_key=key, retries=QUICK) as second:
        blocker = threading.Thread(target=first.embed, args=(["wait-here"],))
        blocker.start()
        assert fake.waiting.wait(10)
        refused = Client(address, api_key=key, retries=Retries(attempts=2, first_s=0.01, most_s=0.02))
        with refused, pytest.raises(OverloadedError, match="limit"):
            refused.embed(texts)
        on_retry.append(fake.gate.set)
        found = second.embed(texts)
        blocker.join(10)
    np.testing.assert_allclose(found, [text_vector(text) for text in texts], atol=1e-6)


def test_the_key_is_sent(busy):
    address, _, _, _ = busy
    with Client(address) as client, pytest.raises(ServiceError) as refusal:
        client.info()
    assert (refusal.value.status, refusal.value.code) == (401, "unauthorized")


def test_a_draining_server_is_tried_again(busy, on_retry):
    address, key, _, app = busy
    app.state.drain.begin()
    on_retry.append(lambda: setattr(app.state.drain, "_start", None))
    with Client(address, api_key=key, retries=QUICK) as client:
        assert client.info()["status"] == "ready"
    assert not on_retry


def test_a_server_that_is_not_there_is_tried_again_and_then_said():
    client = Client("http://127.0.0.1:9", retries=Retries(attempts=3, first_s=0.01))
    with client, pytest.raises(httpx2.ConnectError):
        client.embed("rain")


def test_waits_follow_the_server_and_have_a_limit():
    retries = Retries(first_s=1.0, most_s=10.0)
    assert all(0.5 <= retries.wait_s(0, None) <= 1.0 for _ in range(50))
    assert all(2.0 <= retries.wait_s(2, None) <= 4.0 for _ in range(50))
    assert all(5.5 <= retries.wait_s(0, "5") <= 6.0 for _ in range(50))
    assert retries.wait_s(20, "3600") == 10.0
    assert len({retries.wait_s(0, None) for _ in range(10)}) > 1
