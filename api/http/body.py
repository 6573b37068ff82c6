"""Request bodies: read them, validate them, and run work while the client is connected."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from api.http.error_responses import ApiError
from api.http.validation_errors import kind_of, rejection_of, shown

__all__ = ["check_content_type", "disconnected", "kind_of", "parse", "read_body", "shown", "while_connected"]

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

UNWATCHED_S = 0.2  # time before a request is watched for a disconnect
LARGE_BODY = 256 * 1024  # bytes from which parsing leaves the event loop


async def read_body(request: Request, model: type[M]) -> M:
    """Return the validated JSON body of a request.

    Validators see the limits of the service as their context.

    Raises:
        ApiError: 415 for another content type, 400 if the body is not JSON, 422 if the model rejects it.
    """
    check_content_type(request)
    try:
        body = await request.body()
    except ClientDisconnect:
        raise disconnected() from None
    limits = request.app.state.limits
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(parse, body, model, limits)
    return parse(body, model, limits)


def check_content_type(request: Request) -> None:
    """Raise an error 415 unless the request declares its body as uncompressed JSON."""
    declared = request.headers.get("content-type", "")
    media_type = declared.split(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        message = f"Content-Type is {declared or 'missing'}; send 'Content-Type: application/json'"
        raise ApiError(415, "unsupported_media_type", message, param="Content-Type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding is {encoding}; send the body uncompressed"
        raise ApiError(415, "unsupported_encoding", message, param="Content-Encoding")


def parse(body: bytes, model: type[M], context: object = None) -> M:
    """Return the body as ``model``; the error names the first problem and counts the others."""
    if not body.strip():
        raise ApiError(400, "invalid_json", "the body is empty; send a JSON object")
    try:
        return model.model_validate_json(body, context=context)
    except ValidationError as error:
        raise rejection_of(error, model) from None


def disconnected() -> ApiError:
    """Return the error of a client that disconnected; only the log and the metrics see it."""
    return ApiError(499, "client_closed_request", "the client closed the connection")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``; cancel it if the client disconnects."""
    task = asyncio.current_task()
    assert task is not None, "a request is handled in a task"
    watchers: list[asyncio.Task[None]] = []
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        task.cancel()

    # Most requests end before the timer: a watcher task for each would cost more than it saves.
    timer = asyncio.get_running_loop().call_later(UNWATCHED_S, lambda: watchers.append(asyncio.ensure_future(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if not hung_up or task.uncancel():
            raise
        raise disconnected() from None
    finally:
        timer.cancel()
        for watcher in watchers:
            watcher.cancel()
