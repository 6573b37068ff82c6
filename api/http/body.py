"""A request body: read off the wire, checked by its model, refused with the field and the remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from api.http.error_responses import ApiError
from embedserve.errors import did_you_mean

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

UNWATCHED_S = 0.2  # of an answer's making, before its caller is watched for hanging up
LARGE_BODY = 256 * 1024  # bytes from which parsing leaves the event loop
MAX_SHOWN = 40
KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
WANTED = {"int_type": "a whole number", "string_type": "a string", "list_type": "a list", "bool_type": "true or false"}


async def read_body(request: Request, model: type[M], context: object = None) -> M:
    """Return the checked body of a request.

    Args:
        request: The request, its body not read yet.
        model: The model that checks it.
        context: Handed to the validators of ``model``.

    Raises:
        ApiError: 415 for another content type, 400 for what is not JSON, 422 for what the model refuses.
    """
    check_content_type(request)
    try:
        body = await request.body()
    except ClientDisconnect:
        raise gone() from None
    if len(body) > LARGE_BODY:
        return await asyncio.to_thread(parse, body, model, context)
    return parse(body, model, context)


def check_content_type(request: Request) -> None:
    """Raise unless the request says that its body is JSON, uncompressed."""
    given = request.headers.get("content-type", "")
    kind = given.split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"Content-Type is {given or 'missing'}; send 'Content-Type: application/json'"
        raise ApiError(415, "unsupported_media_type", message, param="Content-Type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding is {encoding}; send the body uncompressed"
        raise ApiError(415, "unsupported_encoding", message, param="Content-Encoding")


def parse(body: bytes, model: type[M], context: object = None) -> M:
    """Return the body as ``model``; complain about the first problem and count the others."""
    if not body.strip():
        raise ApiError(400, "invalid_json", "the body is empty; send a JSON object")
    try:
        return model.model_validate_json(body, context=context)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
        raise _refusal(problems[0], len(problems) - 1, model) from None


def _refusal(problem: Any, others: int, model: type[BaseModel]) -> ApiError:
    kind, reason = problem["type"], problem["msg"]
    if kind == "json_invalid":
        hint = " (half a surrogate pair; send valid Unicode)" if "hex escape" in reason else ""
        return ApiError(400, "invalid_json", f"the body is not JSON: {reason.removeprefix('Invalid JSON: ')}{hint}")
    context = problem.get("ctx", {})
    name = context.get("param") or place_of(problem["loc"]) or None
    if kind in ("model_type", "model_attributes_type", "dataclass_type"):
        message = f"{name or 'the body'} must be a JSON object, got {kind_of(problem['input'])}"
        return ApiError(422, "invalid_type", message, param=name)
    fields = list(model.model_fields)
    if kind == "extra_forbidden" and len(problem["loc"]) > 1:
        code, message = "unknown_field", f"unknown field {name}; leave it out"
    elif kind == "extra_forbidden":
        hint = did_you_mean(str(name), fields)
        code, message = "unknown_field", f"unknown field {shown(name)}; {hint}the fields are {', '.join(fields)}"
    elif kind == "missing":
        code, message = "missing_field", f"{name} is missing; send {describe(model, name)}"
    elif kind in WANTED:
        code, message = "invalid_type", f"{name} must be {WANTED[kind]}, got {kind_of(problem['input'])}"
    elif "code" in context:
        code, message = context["code"], reason
    else:
        code, message = "invalid_value", f"{name}: {reason[0].lower()}{reason[1:]}; got {shown(problem['input'])}"
    if others:
        message += f" (and {others} more {'problem' if others == 1 else 'problems'})"
    return ApiError(422, code, message, param=name)


def place_of(loc: Sequence[str | int]) -> str:
    """Return a place in a body as people write it.

    >>> place_of(("documents", 3, "text"))
    'documents[3].text'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def describe(model: type[BaseModel], name: str | None) -> str:
    """Return what a field is for, as the model says it."""
    field = model.model_fields.get(name or "")
    text = (field.description or "a value") if field is not None else "a value"
    return text[0].lower() + text[1:].rstrip(".")


def kind_of(value: object) -> str:
    """Return the JSON kind of a value, in words."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """Return a value short enough for a message."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def gone() -> ApiError:
    """Return the error for a caller who has hung up; nobody reads it."""
    return ApiError(499, "client_closed_request", "the caller closed the connection")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of ``work``; cancel it when the caller hangs up."""
    own = asyncio.current_task()
    assert own is not None, "a request is answered in a task"
    watchers: list[asyncio.Task[None]] = []
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up = True
        own.cancel()

    # Most answers are there before anybody looks: a task for each request would cost more than it saves.
    begin = asyncio.get_running_loop().call_later(UNWATCHED_S, lambda: watchers.append(asyncio.ensure_future(watch())))
    try:
        return await work
    except asyncio.CancelledError:
        if not hung_up or own.uncancel():
            raise
        raise gone() from None
    finally:
        begin.cancel()
        for watcher in watchers:
            watcher.cancel()
