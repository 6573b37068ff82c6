"""Around every request: id, log line, metrics, a limit on the body, and an answer even when the code fails."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_responses import ApiError, error_response, on_http, on_known
from api.http.paths import UNMATCHED, Paths, path_of
from api.telemetry import metrics
from api.telemetry.request_record import RequestRecord, current_record
from api.telemetry.tracing import Tracer
from embedserve.errors import EmbedserveError

logger = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
QUIET_ROUTES = ("/livez", "/readyz", "/metrics")
REJECTIONS = {401: "unauthorized", 403: "forbidden", 413: "size", 429: "overloaded", 499: "cancelled"}


class RequestMiddleware:
    """Gives each request an id, echoes it, logs and counts it, and turns a crash into an error 500.

    The id is the caller's ``X-Request-ID`` where that is short and plain, else a new one. ``traceparent`` is echoed.
    The log has the template of the path, not the path: ids of documents may be private.

    Args:
        app: What comes after.
        paths: The routes of the application.
        tracer: Where spans go.
    """

    def __init__(self, app: ASGIApp, paths: Paths, tracer: Tracer | None = None) -> None:
        self.app = app
        self.paths = paths
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given, parent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        traced = TRACEPARENT.fullmatch(parent) is not None
        request_id = given if ACCEPTED_ID.fullmatch(given) else f"req_{os.urandom(16).hex()}"
        record = RequestRecord(request_id, parent if traced else "", self.paths.matching(path_of(scope)))
        scope.setdefault("state", {})["request_id"] = request_id
        token = current_record.set(record)
        own_headers = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if traced:
            own_headers.append((b"traceparent", parent.encode()))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *own_headers]
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
            current_record.reset(token)
            finish(record, scope["method"], status, self.tracer)


def finish(record: RequestRecord, method: str, status: int, tracer: Tracer | None = None) -> None:
    """Log, count and trace a request that has its answer."""
    seconds = time.perf_counter() - record.started
    route = record.templates[0] if record.templates else UNMATCHED
    method = method if method in METHODS else "other"
    trace_id = record.traceparent[3:35]
    if tracer is not None and route not in QUIET_ROUTES:
        trace_id = tracer.finish(record, method, route, status)
    metrics.request(route, status, seconds, trace_id)
    reason = record.rejected or REJECTIONS.get(status)
    if reason:
        metrics.rejected(reason)
    fields: dict[str, Any] = {
        "method": method,
        "route": route,
        "status": status,
        "ms": round(1000 * seconds, 1),
        "tokens": record.tokens,
        "request_id": record.request_id,
    }
    if trace_id:
        fields["trace_id"] = trace_id
    if record.key:
        fields["key"] = record.key
    level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
    if logger.isEnabledFor(level):
        text = " ".join(f"{name}={value}" for name, value in list(fields.items())[2:])
        logger.log(level, "%s %s %s", fields["method"], route, text, extra={"fields": fields})


class DirectMiddleware:
    """Calls the routes of fixed paths that take the request alone, and leaves the others to FastAPI.

    They need none of what it has for them: looking for the route, solving dependencies and the stacks around that are a
    fifth of what the event loop does for a short request to ``POST /embed``.

    Args:
        app: What comes after.
        endpoints: The function of each method and path.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], Endpoint]) -> None:
        self.app = app
        self.endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        endpoint = self.endpoints.get((scope["method"], path_of(scope))) if scope["type"] == "http" else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            answer = await endpoint(request)
        except EmbedserveError as error:
            answer = await on_known(request, error)
        except HTTPException as error:
            answer = await on_http(request, error)
        await answer(scope, receive, send)


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
