"""The end of a server: what it accepted is finished, what is new is turned away, and then it stops."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_responses import ApiError, error_response
from api.telemetry.request_record import current_record

ALWAYS_ANSWERED = ("/livez", "/metrics")
NOT_COUNTED = (*ALWAYS_ANSWERED, "/readyz")
QUIET_S = 0.3  # without a new request: then nobody is sending any more
MAX_QUIET_S = 2.0  # for which callers who keep coming are waited for, once all is finished
UNREAD_BYTES = 8 * 1024 * 1024  # of a refused body that are read, so that its sender sees the refusal
UNREAD_S = 1.0


class Drain:
    """Says whether the server is stopping, and whether it may.

    Attributes:
        running: Requests that are being answered.
    """

    def __init__(self) -> None:
        self.running = 0
        self._began: float | None = None
        self._last_end = self._last_refusal = 0.0

    @property
    def began(self) -> bool:
        """Whether new requests are turned away."""
        return self._began is not None

    def begin(self) -> None:
        """Turn new requests away from now on."""
        if self._began is None:
            self._began = self._last_end = self._last_refusal = time.monotonic()

    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def finished(self) -> bool:
        """Return whether all accepted requests have their answers, and no new ones are coming."""
        now = time.monotonic()
        quiet = now - self._last_refusal >= QUIET_S or now - self._last_end >= MAX_QUIET_S
        return self.began and not self.running and quiet

    def enter(self) -> None:
        """Count a request that was accepted."""
        self.running += 1

    def leave(self) -> None:
        """Count a request as answered."""
        self.running -= 1
        self._last_end = time.monotonic()

    def refuse(self) -> None:
        """Note that a request was turned away."""
        self._last_refusal = time.monotonic()


class DrainMiddleware:
    """Turns new requests away once the drain has begun, and counts those that were accepted before."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
            return
        if self.drain.began:
            if scope["path"] not in NOT_COUNTED:
                self.drain.refuse()
            record = current_record.get()
            if record is not None:
                record.rejected = "draining"
            await read_off(receive)
            message = "the server is shutting down; send the request to another"
            refusal = ApiError(503, "draining", message, headers={"Connection": "close"})
            await error_response(refusal, scope)(scope, receive, send)
            return
        if scope["path"] in NOT_COUNTED:
            await self.app(scope, receive, send)
            return
        self.drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave()


async def read_off(receive: Receive) -> None:
    """Read a body that nobody wants: a connection closed on unread bytes is reset, and the answer lost with it."""

    async def read() -> None:
        seen = 0
        while seen < UNREAD_BYTES:
            message: Message = await receive()
            seen += len(message.get("body", b""))
            if not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(read(), UNREAD_S)
    except TimeoutError:
        return
