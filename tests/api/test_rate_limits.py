"""Rate limits of tokens and requests per minute."""

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.http import rate_limits
from api.http.auth import new_key
from api.http.error_responses import ApiError
from api.http.rate_limits import RateLimiter
from api.settings import Settings
from tests.api.conftest import error_of, wait_until


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def refused(limiter, caller="a", tokens=1):
    with pytest.raises(ApiError) as refusal:
        limiter.take(caller, tokens)
    return refusal.value


def test_requests_are_refilled_with_time(clock):
    limiter = RateLimiter(0, 60, clock)
    for _ in range(60):
        limiter.take("a", 10**9)
    error = refused(limiter)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "rate_limited", "1")
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.headers["x-ratelimit-reset-requests"] == "60s"
    limiter.take("b", 1)
    clock.now = 1.0
    limiter.take("a", 1)
    refused(limiter)
    clock.now = 1000.0
    assert limiter.headers("a")["x-ratelimit-remaining-requests"] == "60"  # a minute's worth, however long it waits


def test_a_large_request_overdraws_and_the_next_waits_for_the_refill(clock):
    limiter = RateLimiter(600, 0, clock)
    limiter.take("a", 900)
    error = refused(limiter)
    assert "600 tokens a minute" in error.message
    assert error.headers["Retry-After"] == "31"  # 301 tokens at 10 a second
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    limiter.pay("a", -600)  # counted: it had 300
    limiter.take("a", 300)
    refused(limiter)


def test_the_least_recently_seen_callers_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr(rate_limits, "MAX_CALLERS", 2)
    limiter = RateLimiter(0, 1, clock)
    for caller in "abc":
        limiter.take(caller, 0)
    refused(limiter, "b")
    limiter.take("a", 0)


@pytest.fixture(scope="module")
def limited(settings, encoder):
    keys = [new_key(name, "read") for name in ("one", "two")]
    more = {"api_keys": [line for _, line in keys], "rate_limit_tokens": 100, "rate_limit_requests": 1000}
    with TestClient(create_app(Settings(**settings.model_dump() | more), encoder)) as client:
        assert wait_until(lambda: client.get("/readyz").status_code == 200)
        client.keys = [{"x-api-key": key} for key, _ in keys]
        yield client


def test_each_key_has_its_own_bucket(limited):
    one, two = limited.keys
    first = limited.post("/embed", json={"input": "a few words"}, headers=one)
    used = first.json()["usage"]["total_tokens"]
    assert first.headers["x-ratelimit-limit-tokens"] == "100"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) == 100 - used
    assert int(first.headers["x-ratelimit-remaining-requests"]) == 999
    answer = limited.post("/embed", json={"input": ["many words " * 5] * 20}, headers=one)
    assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0"
    over = limited.post("/embed", json={"input": "more"}, headers=one)
    error_of(over, 429, "rate_limited")
    assert over.json()["error"]["type"] == "rate_limit_error"
    assert int(over.headers["retry-after"]) >= 1
    assert limited.post("/embed", json={"input": "more"}, headers=two).status_code == 200
    assert limited.get("/readyz").status_code == 200
    assert limited.get("/metrics", headers=one).status_code == 200


def test_a_rejected_request_costs_no_tokens(limited):
    two = limited.keys[1]
    before = limited.post("/embed", json={"input": "a"}, headers=two).headers["x-ratelimit-remaining-tokens"]
    after = limited.post("/embed", json={"inptu": "a" * 200}, headers=two)
    assert after.status_code == 422
    assert int(after.headers["x-ratelimit-remaining-tokens"]) >= int(before)
