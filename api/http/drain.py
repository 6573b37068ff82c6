"""Graceful shutdown: accepted requests are finished, new requests are rejected, then the server stops."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_responses import ApiError, error_response
from api.telemetry.request_record import current_record

ALWAYS_SERVED = ("/livez", "/metrics")
NOT_COUNTED = (*ALWAYS_SERVED, "/readyz")
QUIET_S = 0.3  # time without a new request after which clients are taken to have moved on
MAX_QUIET_S = 2.0  # maximum wait for clients that keep sending, once all requests are finished
MAX_DISCARDED_BYTES = 8 * 1024 * 1024  # of a rejected body that are read so that the client sees the response
MAX_DISCARD_S = 1.0


class Drain:
    """State of a graceful shutdown.

    Attributes:
        running: Number of requests in progress.
    """

    def __init__(self) -> None:
        self.running = 0
        self._start: float | None = None
        self._last_end = self._last_rejection = 0.0

    @property
    def began(self) -> bool:
        """Whether new requests are rejected."""
        return self._start is not None

    def begin(self) -> None:
        """Reject new requests from now on."""
        if self._start is None:
            self._start = self._last_end = self._last_rejection = time.monotonic()

    def elapsed_s(self) -> float:
        """Return the seconds since the start of the drain."""
        return 0.0 if self._start is None else time.monotonic() - self._start

    def finished(self) -> bool:
        """Return whether all accepted requests are finished and no new ones are coming."""
        now = time.monotonic()
        quiet = now - self._last_rejection >= QUIET_S or now - self._last_end >= MAX_QUIET_S
        return self.began and not self.running and quiet

    def enter(self) -> None:
        """Count an accepted request."""
        self.running += 1

    def leave(self) -> None:
        """Count a finished request."""
        self.running -= 1
        self._last_end = time.monotonic()

    def reject(self) -> None:
        """Record a rejected request."""
        self._last_rejection = time.monotonic()


class DrainMiddleware:
    """Rejects new requests once the drain has begun, and counts the accepted ones."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_SERVED:
            await self.app(scope, receive, send)
            return
        if self.drain.began:
            if scope["path"] not in NOT_COUNTED:
                self.drain.reject()
            record = current_record.get()
            if record is not None:
                record.rejected = "draining"
            await discard_body(receive)
            message = "the server is shutting down; send the request to another server"
            rejection = ApiError(503, "draining", message, headers={"Connection": "close"})
            await error_response(rejection, scope)(scope, receive, send)
            return
        if scope["path"] in NOT_COUNTED:
            await self.app(scope, receive, send)
            return
        self.drain.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            self.drain.leave()


async def discard_body(receive: Receive) -> None:
    """Read a body that is not used: closing a connection with unread bytes resets it and loses the response."""

    async def read() -> None:
        size = 0
        while size < MAX_DISCARDED_BYTES:
            message: Message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return

    try:
        await asyncio.wait_for(read(), MAX_DISCARD_S)
    except TimeoutError:
        return
