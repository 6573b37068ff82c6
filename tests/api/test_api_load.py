"""Many callers at once: none gets another's answer, too many get 429, and those who leave free the queue."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from api.compute import ComputeThread
from api.errors import ApiError
from api.service import in_steps
from embedserve.errors import OverloadedError
from tests.api.conftest import error_of, post_scope, text_vector, wait_until


def embed(client, texts, **more):
    return client.post("/embed", json={"input": texts, **more})


def test_concurrent_callers_get_their_own_vectors(fake_client):
    fake_client.app.state.service.compute.limit = 10_000

    def call(number):
        texts = [f"caller {number} text {place}" for place in range(1 + number % 7)]
        response = embed(fake_client, texts)
        assert response.status_code == 200
        found = np.array([item["embedding"] for item in response.json()["data"]])
        np.testing.assert_allclose(found, [text_vector(text) for text in texts], atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(64)))


def test_one_callers_error_is_not_anothers(fake_client):
    fake_client.app.state.service.compute.limit = 10_000
    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(lambda n: embed(fake_client, "boom" if n % 3 == 0 else f"{n}").status_code, range(30)))
    assert codes == [500 if n % 3 == 0 else 200 for n in range(30)]


def test_overload_is_429_with_retry_after_and_passes(fake_client, fake):
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(embed, fake_client, "wait")
        assert fake.waiting.wait(10)
        second = pool.submit(embed, fake_client, ["a", "b", "c"])
        assert wait_until(lambda: fake_client.app.state.service.compute.pending == 7)
        response = embed(fake_client, "one too many")
        assert "limit of 7" in error_of(response, 429, "overloaded")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert fake_client.get("/livez").status_code == 200
        fake.gate.set()
        assert first.result().status_code == second.result().status_code == 200
    assert embed(fake_client, "now").status_code == 200
    assert not any("one too many" in call for call in fake.calls)


def test_the_queue_counts_characters_not_texts(fake_client, fake):
    service = fake_client.app.state.service
    service.compute.limit = 1000
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(embed, fake_client, "wait")
        assert fake.waiting.wait(10)
        second = pool.submit(embed, fake_client, ["a"] * 500)
        assert wait_until(lambda: service.compute.pending == 504)
        assert "limit of 1,000" in error_of(embed(fake_client, "x" * 600), 429, "overloaded")
        assert fake_client.get("/info").json()["pending"] == 504
        fake.gate.set()
        assert first.result().status_code == second.result().status_code == 200


def test_the_time_to_try_again_follows_from_the_speed(thread, monkeypatch):
    now = [0.0]

    def work(seconds):
        now[0] += seconds

    with monkeypatch.context() as patch:
        patch.setattr("api.compute.time.monotonic", lambda: now[0])
        thread.submit([(100, lambda: work(10))]).result(5)  # 10 characters a second
        thread.submit([(0, lambda: work(50))]).result(5)  # a health check says nothing of the speed
        gate = threading.Event()
        thread.limit = 200
        running = thread.submit([(200, lambda: gate.wait(5))])
        with pytest.raises(OverloadedError) as refusal:
            thread.submit([(35, lambda: None)])
        assert refusal.value.retry_after_s == 4  # when 35 characters are done
        with pytest.raises(OverloadedError) as refusal:
            thread.submit([(1000, lambda: None)])
        assert refusal.value.retry_after_s == 20  # when nothing waits
        gate.set()
        running.result(5)


def test_a_request_larger_than_the_queue_is_served_when_nothing_waits(fake_client):
    assert embed(fake_client, ["text"] * 9).status_code == 200


def test_a_short_request_does_not_wait_for_the_whole_of_a_long_one(fake_client, fake):
    fake_client.app.state.service.compute.limit = 1_000_000
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(embed, fake_client, ["wait"] + ["long " * 200] * 300)
        assert fake.waiting.wait(10)
        short = pool.submit(embed, fake_client, "short")
        assert wait_until(lambda: fake_client.app.state.service.compute.pending > 300_004)
        fake.gate.set()
        assert short.result().status_code == long.result().status_code == 200
    order = [call[0] for call in fake.calls if call != ["ready"]]
    assert order.index("short") == 1
    assert len(order) > 3


def test_steps_keep_the_order_and_stay_within_their_bounds():
    texts = [str(n) * (n % 1000) for n in range(3000)]
    steps = in_steps(texts)
    assert [text for _, part in steps for text in part] == texts
    assert all(texts[place : place + len(part)] == part for place, part in steps)
    assert all(len(part) <= 256 and (len(part) == 1 or sum(map(len, part)) <= 32_000) for _, part in steps)


@pytest.fixture
def thread():
    thread = ComputeThread("test", limit=10)
    yield thread
    thread.close()


def test_a_cancelled_job_leaves_the_queue_at_once(thread):
    gate, ran = threading.Event(), []
    running = thread.submit([(1, gate.wait)])
    waiting = thread.submit([(9, lambda: ran.append("cancelled"))])
    with pytest.raises(OverloadedError, match="limit"):
        thread.submit([(1, lambda: None)])
    assert waiting.cancel()
    assert thread.pending <= 1
    after = thread.submit([(9, lambda: ran.append("after"))])
    gate.set()
    running.result(5)
    after.result(5)
    assert ran == ["after"]
    assert thread.pending == 0


def test_a_job_cancelled_between_its_steps_stops(thread):
    started, gate, ran = threading.Event(), threading.Event(), []

    def first():
        started.set()
        gate.wait(5)

    job = thread.submit([(1, first), (1, lambda: ran.append("second"))])
    assert started.wait(5)
    assert job.cancel()
    gate.set()
    thread.submit([(1, lambda: None)]).result(5)
    assert ran == []
    assert thread.pending == 0


def test_a_failed_job_gives_its_room_back(thread):
    def fail():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        thread.submit([(3, fail), (4, lambda: None)]).result(5)
    assert wait_until(lambda: thread.pending == 0)


def test_a_failure_whose_caller_has_gone_is_logged(thread, caplog):
    started, gate = threading.Event(), threading.Event()

    def fail():
        started.set()
        gate.wait(5)
        raise ValueError("nobody's")

    job = thread.submit([(1, fail)])
    assert started.wait(5)
    assert job.cancel()
    gate.set()
    thread.submit([(1, lambda: None)]).result(5)
    assert "ValueError: nobody's" in caplog.text


def test_jobs_take_turns(thread):
    gate, order = threading.Event(), []
    thread.submit([(0, gate.wait)])
    jobs = [
        thread.submit([(1, lambda name=name, step=step: order.append((name, step))) for step in range(3)])
        for name in "ab"
    ]
    gate.set()
    for job in jobs:
        job.result(5)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_closing_finishes_what_is_queued_and_refuses_more():
    thread = ComputeThread("test", limit=10)
    job = thread.submit([(1, lambda: "done")])
    thread.close()
    assert job.result(0) == ["done"]
    with pytest.raises(ApiError) as refusal:
        thread.submit([(1, lambda: None)])
    assert refusal.value.status == 503


def test_a_caller_who_hangs_up_frees_the_queue(fake_client, fake):
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
        assert wait_until(lambda: service.compute.pending == 6)
        left.set()
        assert leaver.result(10)[0]["status"] == 499
        assert service.compute.pending == 4
        fake.gate.set()
        assert first.result().status_code == 200
    assert ["a", "b"] not in fake.calls
