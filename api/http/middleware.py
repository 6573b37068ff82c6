"""Middleware around every request: id, log line, metrics, trace, and a limit on the body."""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_responses import ApiError, error_response
from api.telemetry import metrics
from api.telemetry.request_record import RequestRecord, current_record
from api.telemetry.tracing import Tracer

logger = logging.getLogger(__name__)

ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
QUIET_ROUTES = ("/livez", "/readyz", "/metrics")
REJECTIONS = {401: "unauthorized", 403: "forbidden", 413: "size", 429: "overloaded", 499: "cancelled"}


class RequestMiddleware:
    """Gives each request an id, logs, counts and traces it, and turns an uncaught exception into an error 500.

    The id is the client's ``X-Request-ID`` if it is short and plain, else a new one. ``traceparent`` is echoed. The log
    has the template of the path, because ids of documents may be private.

    Args:
        app: The next application.
        tracer: Exports spans. Default: none.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer | None = None) -> None:
        self.app = app
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id, parent = headers.get("x-request-id", ""), headers.get("traceparent", "")
        traced = TRACEPARENT.fullmatch(parent) is not None
        request_id = client_id if ACCEPTED_ID.fullmatch(client_id) else f"req_{os.urandom(16).hex()}"
        record = RequestRecord(request_id, parent if traced else "")
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
        except Exception:  # internal error: log the traceback, return the standard error body
            logger.exception("request_id=%s failed", request_id)
            if status:
                raise
            message = "internal error; the server's log has the details under this request id"
            response = error_response(ApiError(500, "internal", message), scope)
            await response(scope, receive, send_with_id)
        finally:
            current_record.reset(token)
            finish(record, scope["method"], status, self.tracer)


def finish(record: RequestRecord, method: str, status: int, tracer: Tracer | None = None) -> None:
    """Log, count and trace a request whose response was sent."""
    seconds = time.perf_counter() - record.started
    route = record.route
    method = method if method in METHODS else "other"
    trace_id = record.traceparent[3:35]
    if tracer is not None and route not in QUIET_ROUTES:
        trace_id = tracer.finish(record, method, route, status)
    metrics.request(route, status, seconds, trace_id)
    reason = record.rejected or REJECTIONS.get(status)
    if reason:
        metrics.rejected(reason)
    level = logging.DEBUG if route in QUIET_ROUTES else logging.INFO
    if not logger.isEnabledFor(level):
        return
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
    text = " ".join(f"{name}={value}" for name, value in list(fields.items())[2:])
    logger.log(level, "%s %s %s", method, route, text, extra={"fields": fields})


class BodyLimitMiddleware:
    """Rejects a body over the limit, by its Content-Length or, without one, while it is received."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.limit:
            await error_response(self._too_large(), scope)(scope, receive, send)
            return
        size = 0

        async def counted() -> Message:
            nonlocal size
            message: dict[str, Any] = dict(await receive())
            size += len(message.get("body", b""))
            if size > self.limit:
                raise self._too_large()
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self.limit} bytes; send fewer or shorter texts in one request"
        return ApiError(413, "body_too_large", message, headers={"Connection": "close"})
