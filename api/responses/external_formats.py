"""What the routes for other services' clients share: prompts, the kind of vector, base64, and answers as bytes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.http.body import gone, shown
from api.http.error_responses import ApiError
from embedserve.types import Encoded, SparseEmbeddings, Task, TokenEmbeddings

if TYPE_CHECKING:
    from embedserve import Encoder

TASKS = ("query", "document")
LARGE_ANSWER = 100_000  # numbers from which serialising leaves the event loop


def dense_vectors(encoder: Encoder, found: Encoded) -> np.ndarray:
    """Return the vectors (N, d) of texts, contiguous; raise an error 422 where the encoder makes none."""
    if found.dense is None:
        raise _not_made(encoder, "one vector for each text", "POST /v1/multi-vector or POST /embed")
    return np.ascontiguousarray(found.dense.vectors)


def token_vectors(encoder: Encoder, found: Encoded) -> TokenEmbeddings:
    """Return the vectors of the tokens, contiguous; raise an error 422 where the encoder makes none."""
    if found.multi is None:
        raise _not_made(encoder, "a vector for each token", "POST /v1/embeddings or POST /embed")
    return replace(found.multi, vectors=np.ascontiguousarray(found.multi.vectors))


def sparse_weights(encoder: Encoder, found: Encoded) -> SparseEmbeddings:
    """Return the weights of vocabulary entries; raise an error 422 where the encoder makes none."""
    if found.sparse is None:
        raise _not_made(encoder, "weights of vocabulary entries", "POST /embed")
    return found.sparse


def _not_made(encoder: Encoder, wanted: str, instead: str) -> ApiError:
    made = " and ".join(encoder.outputs)
    message = f"{encoder.name} makes {made} vectors, not {wanted}; use {instead}, or a model that does"
    return ApiError(422, "not_made", message, param="model")


def prompt_of(
    encoder: Encoder, task: Task, prompt_name: str | None = None, instruction: str | None = None
) -> tuple[Task, str | None]:
    """Return the task whose prompt is put in front of the texts, and a prompt in its place or None.

    Args:
        encoder: Whose prompts may be named.
        task: What the texts are where no prompt is named.
        prompt_name: ``query`` or ``document``.
        instruction: A prompt of the caller's own.
    """
    if prompt_name is not None and instruction is not None:
        message = "both prompt_name and instruction were sent; send one of them"
        raise ApiError(422, "conflicting_fields", message, param="instruction")
    if prompt_name is None:
        return task, instruction
    if prompt_name not in TASKS:
        message = f"{encoder.name} has no prompt {shown(prompt_name)}; its prompts are {' and '.join(TASKS)}"
        raise ApiError(422, "unknown_prompt", message, param="prompt_name")
    return ("query" if prompt_name == "query" else "document"), None


@contextmanager
def fields_called(**names: str) -> Iterator[None]:
    """Have a refusal call a field of ours as the caller does: ``fields_called(dimensions="output_dimension")``."""
    try:
        yield
    except ApiError as error:
        if error.field not in names:
            raise
        name = names[error.field]
        message = error.message.replace(error.field, name, 1)
        raise ApiError(error.status, error.code, message, param=name, headers=error.headers) from error


def base64_rows(rows: np.ndarray) -> list[str]:
    """Return the bytes of each row, little-endian, in base64."""
    if rows.dtype == np.float32:
        rows = rows.astype("<f4", copy=False)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in rows]


async def json_answer(build: Callable[[], object], size: int, headers: Mapping[str, str] | None = None) -> Response:
    """Return what ``build`` makes as JSON, off the event loop where ``size`` numbers are many."""

    def dumped() -> bytes:
        return orjson.dumps(build(), option=orjson.OPT_SERIALIZE_NUMPY)

    body = await asyncio.to_thread(dumped) if size > LARGE_ANSWER else dumped()
    return Response(body, media_type="application/json", headers=dict(headers or {}))


async def peek(request: Request, name: str) -> dict[str, Any]:
    """Return the fields of a body that holds the string ``name``, nothing checked; {} where it does not."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise gone() from None
    if f'"{name}"'.encode() not in body:  # as in nearly every body: inside a text its quotes would be escaped
        return {}
    try:
        values = await asyncio.to_thread(orjson.loads, body)
    except orjson.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}


async def holds_field(request: Request, name: str, instead_of: str) -> bool:
    """Say whether the body is an object with the field ``name`` and not ``instead_of``."""
    values = await peek(request, name)
    return name in values and instead_of not in values
