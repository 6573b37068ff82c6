"""Concurrent requests: each gets its own response, overload is an error 429, and a disconnect frees the queue."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.api.conftest import error_of, post_scope, text_vector, wait_until


def embed(client, texts, **more):
    return client.post("/embed", json={"input": texts, **more})


def test_concurrent_requests_get_their_own_vectors(fake_client):
    fake_client.app.state.service.model().batcher.limit = 10_000

    def call(number):
        texts = [f"caller {number} text {place}" for place in range(1 + number % 7)]
        response = embed(fake_client, texts)
        assert response.status_code == 200
        found = np.array([item["embedding"] for item in response.json()["data"]])
        np.testing.assert_allclose(found, [text_vector(text) for text in texts], atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(64)))


def test_an_error_affects_its_own_request_only(fake_client):
    fake_client.app.state.service.model().batcher.limit = 10_000
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda n: embed(fake_client, "boom" if n % 3 == 0 else f"{n}").status_code, range(30)))
    assert codes == [500 if n % 3 == 0 else 200 for n in range(30)]


def test_overload_is_an_error_429_with_retry_after(fake_client, fake):
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(embed, fake_client, "wait")
        assert fake.waiting.wait(10)
        second = pool.submit(embed, fake_client, ["a", "b", "c"])
        assert wait_until(lambda: fake_client.app.state.service.model().batcher.pending == 7)
        response = embed(fake_client, "one too many")
        assert "limit of 7" in error_of(response, 429, "overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert fake_client.get("/livez").status_code == 200
        fake.gate.set()
        assert first.result().status_code == second.result().status_code == 200
    assert embed(fake_client, "now").status_code == 200
    assert not any("one too many" in call for call in fake.calls)


def test_the_queue_counts_tokens_not_texts(fake_client, fake):
    service = fake_client.app.state.service
    service.model().batcher.limit = 1000
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(embed, fake_client, "wait")
        assert fake.waiting.wait(10)
        second = pool.submit(embed, fake_client, ["a"] * 500)
        assert wait_until(lambda: service.model().batcher.pending == 504)
        assert "limit of 1,000" in error_of(embed(fake_client, "x" * 600), 429, "overloaded")
        assert fake_client.get("/info").json()["pending"] == 504
        fake.gate.set()
        assert first.result().status_code == second.result().status_code == 200


def test_a_far_too_large_request_is_rejected_before_tokenising(fake_client, fake):
    service = fake_client.app.state.service
    service.model().batcher.limit = 1000
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(embed, fake_client, "wait" * 128)
        assert fake.waiting.wait(10)
        refusal = error_of(embed(fake_client, ["x" * 2000] * 4), 429, "overloaded")
        fake.gate.set()
        assert first.result().status_code == 200
    assert "512 tokens are waiting and 1,000 more" in refusal  # half of what its characters say; it has 2,048 tokens


def test_a_rerank_request_larger_than_the_queue_is_accepted_by_an_empty_queue(fake_client):
    body = {"query": "a", "documents": ["some words of a document"] * 20}
    answer = fake_client.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == 20


def test_a_request_larger_than_the_queue_is_accepted_by_an_empty_queue(fake_client):
    assert embed(fake_client, ["text"] * 9).status_code == 200


def test_a_short_request_does_not_wait_for_all_of_a_long_one(fake_client, fake):
    fake_client.app.state.service.model().batcher.limit = 1_000_000
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(embed, fake_client, ["wait" * 200] + ["long " * 200] * 300)
        assert fake.waiting.wait(10)
        short = pool.submit(embed, fake_client, "short")
        assert wait_until(lambda: fake_client.app.state.service.model().batcher.pending > 301 * fake.max_tokens)
        fake.gate.set()
        assert short.result().status_code == long.result().status_code == 200
    order = [call[0] for call in fake.calls[2:] if call != ["ready"]]  # the reference texts came before
    assert order.index("short") <= 2  # a batch ran, and one more may have been the turn of the long one
    assert len(order) > 3


def test_a_disconnected_client_frees_the_queue(fake_client, fake):
    """Spoken to as a server speaks to an application: the caller leaves while its texts wait."""
    service = fake_client.app.state.service
    left = threading.Event()

    async def call():
        parts = [{"type": "http.request", "body": b'{"input": ["a", "b"]}', "more_body": False}]
        sent = []

        async def receive():
            if parts:
                return parts.pop()
            while not left.is_set():
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = post_scope("/embed", [(b"content-type", b"application/json")])
        await fake_client.app(scope, receive, send)
        return sent

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embed, fake_client, "wait")
        assert fake.waiting.wait(10)
        leaver = pool.submit(asyncio.run, call())
        assert wait_until(lambda: service.model().batcher.pending == 6)
        left.set()
        assert leaver.result(10)[0]["status"] == 499
        assert service.model().batcher.pending == 4
        fake.gate.set()
        assert first.result().status_code == 200
    assert ["a", "b"] not in fake.calls
