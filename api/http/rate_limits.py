"""Rate limits: for each key, or each address where there are no keys, so many tokens and requests a minute.

A bucket of each fills steadily and holds one minute's worth. A request is let in while neither is empty; it takes one
request, and as many tokens as its body is likely to have, corrected once they are counted. So one large request may
overdraw the tokens, and the next ones wait until that is paid back.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.access import access_of
from api.http.error_responses import ApiError, error_response
from api.telemetry.request_record import current_record

BYTES_PER_TOKEN = 4  # about, of English text in JSON
MAX_CALLERS = 10_000  # the one that was not seen for longest is forgotten
UNLIMITED = ["/metrics"]


@dataclass(slots=True)
class Bucket:
    """So many a minute: holds ``limit``, fills with ``limit`` / 60 a second."""

    limit: int
    level: float
    filled: float

    def fill(self, now: float) -> None:
        """Add what has come in since the last time."""
        self.level = min(self.limit, self.level + (now - self.filled) * self.limit / 60)
        self.filled = now

    def wait_s(self, least: float) -> float:
        """Return the seconds until it holds ``least``."""
        return max(0.0, least - self.level) * 60 / self.limit


@dataclass
class RateLimiter:
    """The buckets of each caller.

    Args:
        tokens: Tokens a minute; 0 for no limit.
        requests: Requests a minute; 0 for no limit.
        clock: Seconds, never going back.
    """

    tokens: int
    requests: int
    clock: Callable[[], float] = time.monotonic
    _callers: OrderedDict[str, dict[str, Bucket]] = field(default_factory=OrderedDict)

    def buckets(self, caller: str) -> dict[str, Bucket]:
        """Return the buckets of a caller, filled up to now."""
        now = self.clock()
        found = self._callers.get(caller)
        if found is None:
            limits = {"requests": self.requests, "tokens": self.tokens}
            found = {what: Bucket(limit, limit, now) for what, limit in limits.items() if limit}
            self._callers[caller] = found
            if len(self._callers) > MAX_CALLERS:
                self._callers.popitem(last=False)
        self._callers.move_to_end(caller)
        for bucket in found.values():
            bucket.fill(now)
        return found

    def take(self, caller: str, tokens: int) -> None:
        """Take one request and ``tokens`` out of a caller's buckets.

        Raises:
            ApiError: 429 where one of them is empty; nothing is taken then.
        """
        buckets = self.buckets(caller)
        waits = {what: bucket.wait_s(1.0) for what, bucket in buckets.items()}
        what, wait = max(waits.items(), key=lambda found: found[1])
        if wait > 0:
            seconds = math.ceil(wait)
            message = f"the limit of {buckets[what].limit:,} {what} a minute is used up; try again in {seconds} s"
            headers = {"Retry-After": str(seconds), **self.headers(caller)}
            raise ApiError(429, "rate_limited", message, headers=headers)
        if "requests" in buckets:
            buckets["requests"].level -= 1
        self.pay(caller, tokens)

    def pay(self, caller: str, tokens: int) -> None:
        """Take tokens that were used beyond those taken before, or give back those that were not."""
        if tokens and self.tokens:
            self.buckets(caller)["tokens"].level -= tokens

    def headers(self, caller: str) -> dict[str, str]:
        """Return limit, rest, and seconds until the bucket is full, of each kind."""
        values = {}
        for what, bucket in self.buckets(caller).items():
            values[f"x-ratelimit-limit-{what}"] = str(bucket.limit)
            values[f"x-ratelimit-remaining-{what}"] = str(max(0, int(bucket.level)))
            values[f"x-ratelimit-reset-{what}"] = f"{bucket.wait_s(bucket.limit):.0f}s"
        return values


class RateLimitMiddleware:
    """Turns away a caller who has used up its minute, and tells the others how much is left.

    Args:
        app: What comes after.
        limiter: The buckets. Routes that are open to everybody are not limited.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self.limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        record = current_record.get()
        if record is None or record.templates == UNLIMITED or access_of(scope["method"], record.templates) == "open":
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
