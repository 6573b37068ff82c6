"""Error responses: one shape for every error, and the status of each class."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route

from api.http import error_styles
from api.http.error_styles import path_of
from embedserve.errors import (
    BusyError,
    CorruptFileError,
    DeviceError,
    EmbedserveError,
    IndexMismatchError,
    InputError,
    LoadError,
    NotFoundError,
    OverloadedError,
    SpecError,
    did_you_mean,
)

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope

logger = logging.getLogger(__name__)

STATUS_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "overloaded_error",
    499: "cancelled_error",
    500: "server_error",
    503: "unavailable_error",
}

CODE_TYPES = {"rate_limited": "rate_limit_error"}  # more specific than the status

STATUSES: tuple[tuple[type[EmbedserveError], int], ...] = (
    (InputError, 422),
    (SpecError, 422),
    (NotFoundError, 404),
    (IndexMismatchError, 409),
    (BusyError, 409),
    (OverloadedError, 429),
    (LoadError, 503),
    (DeviceError, 503),
    (CorruptFileError, 500),
    (EmbedserveError, 500),
)

PERMANENT = ("model_failed", "load_failed", "device_failed")  # errors 503 that a retry does not resolve


class ApiError(EmbedserveError):
    """An error response with a status and a code of its own.

    Args:
        status: HTTP status.
        code: Stable code for programs.
        message: What is wrong and what to do.
        param: The field of the request with the wrong value.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, field=param)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})


def printable(text: str) -> str:
    """Replace lone surrogates, which cannot be encoded, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def error_body(error: EmbedserveError, request_id: str | None = None) -> bytes:
    """Return an error as JSON, in the shape of the service."""
    status = status_of(error)
    kind = CODE_TYPES.get(error.code) or STATUS_TYPES.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    values = {
        "message": error.message,
        "type": kind,
        "code": error.code,
        "param": error.field,
        "request_id": request_id,
    }
    return orjson.dumps({"error": {name: value and printable(value) for name, value in values.items()}})


def error_response(error: EmbedserveError, scope: Scope) -> Response:
    """Return the response to a request that ended in an error, in the format of its route."""
    status = status_of(error)
    headers = dict(error.headers) if isinstance(error, ApiError) else {}
    style = error_styles.style_of(scope)
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(error.retry_after_s)
    elif status == 503 and error.code not in PERMANENT:
        headers.setdefault("Retry-After", "1")
    if style == "tei":
        body = error_styles.tei_error(printable(error.message), status)
    else:
        body = error_body(error, request_id_of(scope))
    if style == "openai":
        status = error_styles.openai_status(status)
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def status_of(error: EmbedserveError) -> int:
    """Return the HTTP status of an error of the project."""
    if isinstance(error, ApiError):
        return error.status
    return next(status for kind, status in STATUSES if isinstance(error, kind))


async def on_error(request: Request, error: Exception) -> Response:
    """Return the response to an error of the project; log an error of the service."""
    assert isinstance(error, EmbedserveError)
    status = status_of(error)
    if status >= 500:
        level = logging.ERROR if status == 500 else logging.INFO
        logger.log(level, "request_id=%s code=%s %s", request_id_of(request.scope), error.code, error.message)
    return error_response(error, request.scope)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Return the response to an error of the framework: an unknown route, a wrong method, a malformed form."""
    assert isinstance(error, HTTPException)
    path, method = path_of(request.scope), request.method
    headers = dict(error.headers or {})
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    if error.status_code == 404:
        known = sorted({route.path for route in routes})
        message = f"there is no route {path!r}; {did_you_mean(path, known)}the routes are {', '.join(known)}"
        return error_response(ApiError(404, "route_not_found", message), request.scope)
    if error.status_code == 405:
        matching = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        allowed = sorted({name for route in matching for name in route.methods or ()})
        headers["Allow"] = ", ".join(allowed)
        message = f"{path} does not allow {method}; it allows {', '.join(allowed)}"
        return error_response(ApiError(405, "method_not_allowed", message, headers=headers), request.scope)
    rejection = ApiError(error.status_code, "bad_request", str(error.detail), headers=headers)
    return error_response(rejection, request.scope)


EXCEPTION_HANDLERS: dict[Any, Any] = {EmbedserveError: on_error, HTTPException: on_http_error}


def request_id_of(scope: Scope) -> str:
    """Return the id of a request."""
    return str(scope.get("state", {}).get("request_id", ""))
