"""Rate limits: tokens and requests per minute, for each key or, without keys, for each address.

Each limit is a token bucket with the capacity of one minute. A request is accepted if no bucket is empty. It takes one
request and an estimate of its tokens from the size of its body, corrected once they are counted; one large request may
overdraw the tokens, and the next ones wait until the bucket is refilled.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_responses import ApiError, error_response
from api.telemetry.request_record import current_record

BYTES_PER_TOKEN = 4  # approximate, for English text in JSON
MAX_CALLERS = 10_000  # the least recently seen caller is forgotten
UNLIMITED = "/metrics"


@dataclass(slots=True)
class Bucket:
    """A token bucket: its capacity is ``limit``, and it is refilled with ``limit`` / 60 per second."""

    limit: int
    level: float
    filled: float

    def fill(self, now: float) -> None:
        """Refill the bucket for the time since the last refill."""
        self.level = min(self.limit, self.level + (now - self.filled) * self.limit / 60)
        self.filled = now

    def wait_s(self, level: float) -> float:
        """Return the seconds until the bucket holds ``level``."""
        return max(0.0, level - self.level) * 60 / self.limit


@dataclass
class RateLimiter:
    """The buckets of each caller.

    Args:
        tokens: Tokens per minute; 0 for no limit.
        requests: Requests per minute; 0 for no limit.
        clock: A monotonic clock in seconds.
    """

    tokens: int
    requests: int
    clock: Callable[[], float] = time.monotonic
    _callers: OrderedDict[str, dict[str, Bucket]] = field(default_factory=OrderedDict)

    def buckets(self, caller: str) -> dict[str, Bucket]:
        """Return the buckets of a caller, refilled."""
        now = self.clock()
        buckets = self._callers.get(caller)
        if buckets is None:
            limits = {"requests": self.requests, "tokens": self.tokens}
            buckets = {unit: Bucket(limit, limit, now) for unit, limit in limits.items() if limit}
            self._callers[caller] = buckets
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
        self._callers.move_to_end(caller)
        for bucket in buckets.values():
            bucket.fill(now)
        return buckets

    def take(self, caller: str, tokens: int) -> None:
        """Take one request and ``tokens`` from a caller's buckets.

        Raises:
            ApiError: 429 if a bucket is empty; nothing is taken then.
        """
        buckets = self.buckets(caller)
        waits = {unit: bucket.wait_s(1.0) for unit, bucket in buckets.items()}
        unit, wait = max(waits.items(), key=lambda entry: entry[1])
        if wait > 0:
            seconds = math.ceil(wait)
            message = f"the limit of {buckets[unit].limit:,} {unit} a minute is exceeded; retry after {seconds} s"
            headers = {"Retry-After": str(seconds), **self.headers(caller)}
            raise ApiError(429, "rate_limited", message, headers=headers)
        if "requests" in buckets:
            buckets["requests"].level -= 1
        self.pay(caller, tokens)

    def pay(self, caller: str, tokens: int) -> None:
        """Take further tokens, or return those that were not used if ``tokens`` is negative."""
        if tokens and self.tokens:
            self.buckets(caller)["tokens"].level -= tokens

    def headers(self, caller: str) -> dict[str, str]:
        """Return the limit, the rest, and the seconds until the bucket is full, for each unit."""
        values = {}
        for unit, bucket in self.buckets(caller).items():
            values[f"x-ratelimit-limit-{unit}"] = str(bucket.limit)
            values[f"x-ratelimit-remaining-{unit}"] = str(max(0, int(bucket.level)))
            values[f"x-ratelimit-reset-{unit}"] = f"{bucket.wait_s(bucket.limit):.0f}s"
        return values


class RateLimitMiddleware:
    """Rejects a caller that exceeds its limits, and reports the rest to the others. Open routes are not limited.

    Args:
        app: The next application.
        limiter: The buckets.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        record = current_record.get()
        if record is None or record.route == UNLIMITED or record.access == "open":
            await self.app(scope, receive, send)
            return
        caller = f"key {record.key}" if record.key else f"address {(scope.get('client') or ['unknown'])[0]}"
        length = Headers(scope=scope).get("content-length", "")
        taken = int(length[:12]) // BYTES_PER_TOKEN if length.isdecimal() else 0
        try:
            self.limiter.take(caller, taken)
        except ApiError as error:
            record.rejected = "rate"
            await error_response(error, scope)(scope, receive, send)
            return

        def settle() -> None:
            nonlocal taken
            self.limiter.pay(caller, record.tokens - taken)
            taken = record.tokens

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                settle()
                MutableHeaders(scope=message).update(self.limiter.headers(caller))
            await send(message)

        try:
            await self.app(scope, receive, send_with_limits)
        finally:
            settle()
