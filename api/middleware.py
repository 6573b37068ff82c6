"""Around every request: an id, one log line, a limit on the body, and an answer even when the code fails."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ApiError, error_response

logger = logging.getLogger(__name__)

ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestMiddleware:
    """Gives each request an id, echoes it, logs one line, and turns a crash into an error 500.

    The id is the caller's ``X-Request-ID`` where that is short and plain, else a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:  # a fault of ours: the log has it whole, the caller gets the one error shape
            logger.exception("request_id=%s failed", request_id)
            if status:
                raise
            message = "the server failed on this request; its log has the reason under this id"
            answer = error_response(ApiError(500, "internal", message), scope)
            await answer(scope, receive, send_with_id)
        finally:
            spent = 1000 * (time.perf_counter() - started)
            level = logging.DEBUG if scope["path"] in ("/livez", "/readyz") else logging.INFO
            line = "%s %s status=%d ms=%.1f request_id=%s"
            logger.log(level, line, scope["method"], _plain(scope["path"]), status, spent, request_id)


class BodyLimitMiddleware:
    """Refuses a body over the limit, by its announced length or, without one, while it streams in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self.limit:
            await error_response(self._too_large(), scope)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message: dict[str, Any] = dict(await receive())
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self.limit} bytes; send fewer or shorter texts in one request"
        return ApiError(413, "body_too_large", message, headers={"Connection": "close"})


def _plain(path: str) -> str:
    """Return a path that cannot break a log line."""
    return path.encode("ascii", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")[:200]
