"""One error shape for every refusal, and the status that belongs to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from api.http import error_styles
from api.http.paths import Paths, path_of
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
    from fastapi import FastAPI
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

CODE_TYPES = {"rate_limited": "rate_limit_error"}  # where the status alone does not tell

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

PERMANENT = ("model_failed", "load_failed", "device_failed")  # of status 503, and yet nothing to wait for


class ApiError(EmbedserveError):
    """A refusal with a status of its own.

    Args:
        status: HTTP status.
        code: Stable word for programs.
        message: What was got, what was wanted, what to do.
        param: The request field at fault.
        headers: Headers to add to the answer.
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
    """Replace what no encoding can carry (lone surrogates) by a mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def error_body(error: EmbedserveError, request_id: str | None = None) -> bytes:
    """Return an error as JSON, in the one shape."""
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
    """Return the answer to a request that ended in an error."""
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
    answered = error_styles.openai_status(status) if style == "openai" else status
    return Response(body, status_code=answered, media_type="application/json", headers=headers)


def status_of(error: EmbedserveError) -> int:
    """Return the HTTP status that belongs to an error of the project."""
    if isinstance(error, ApiError):
        return error.status
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def install(app: FastAPI) -> None:
    """Make every error of the application leave in the one shape."""
    app.add_exception_handler(EmbedserveError, on_known)
    app.add_exception_handler(HTTPException, on_http)


async def on_known(request: Request, error: Exception) -> Response:
    """Return the answer to a request that ended in an error of the project, and log it where it is the service's."""
    assert isinstance(error, EmbedserveError)
    status = status_of(error)
    if status >= 500:
        level = logging.ERROR if status == 500 else logging.INFO
        logger.log(level, "request_id=%s code=%s %s", request_id_of(request.scope), error.code, error.message)
    return error_response(error, request.scope)


async def on_http(request: Request, error: Exception) -> Response:
    """Return the answer to a request that the framework refuses: no such route or method, a form it cannot read."""
    assert isinstance(error, HTTPException)
    path, method = path_of(request.scope), request.method
    routes: dict[str, set[str]] = request.app.state.paths
    headers: dict[str, Any] = dict(error.headers or {})
    if error.status_code == 404:
        message = f"there is no route {path!r}; {did_you_mean(path, routes)}the routes are {', '.join(sorted(routes))}"
        return error_response(ApiError(404, "route_not_found", message), request.scope)
    if error.status_code == 405:
        allowed = sorted({name for template in Paths(routes).matching(path) for name in routes[template]})
        headers["Allow"] = ", ".join(allowed)
        message = f"{path} does not take {method}; it takes {', '.join(allowed)}"
        return error_response(ApiError(405, "method_not_allowed", message, headers=headers), request.scope)
    refusal = ApiError(error.status_code, "bad_request", str(error.detail), headers=headers)
    return error_response(refusal, request.scope)


def request_id_of(scope: Scope) -> str:
    """Return the id that the middleware gave this request."""
    return str(scope.get("state", {}).get("request_id", ""))
