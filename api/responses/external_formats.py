"""What routes in other services' formats share: kinds of vectors, prompts, base64, and bodies of two formats."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request

from api.http.body import disconnected, shown
from api.http.error_responses import ApiError
from embedserve.types import Encoded, SparseEmbeddings, Task, TokenEmbeddings

if TYPE_CHECKING:
    from embedserve import Encoder

TASKS = ("query", "document")


def dense_vectors(encoder: Encoder, encoded: Encoded) -> np.ndarray:
    """Return the vectors (N, d) of texts, contiguous; an error 422 if the encoder has no dense output."""
    if encoded.dense is None:
        raise _unsupported_output(encoder, "one vector for each text", "POST /v1/multi-vector or POST /embed")
    return np.ascontiguousarray(encoded.dense.vectors)


def token_vectors(encoder: Encoder, encoded: Encoded) -> TokenEmbeddings:
    """Return the vectors of the tokens, contiguous; an error 422 if the encoder has no token vectors."""
    if encoded.multi is None:
        raise _unsupported_output(encoder, "a vector for each token", "POST /v1/embeddings or POST /embed")
    return replace(encoded.multi, vectors=np.ascontiguousarray(encoded.multi.vectors))


def sparse_weights(encoder: Encoder, encoded: Encoded) -> SparseEmbeddings:
    """Return the weights of vocabulary entries; an error 422 if the encoder has no sparse output."""
    if encoded.sparse is None:
        raise _unsupported_output(encoder, "weights of vocabulary entries", "POST /embed")
    return encoded.sparse


def _unsupported_output(encoder: Encoder, output: str, alternative: str) -> ApiError:
    outputs = " and ".join(encoder.outputs)
    message = f"{encoder.name} makes {outputs} vectors, not {output}; use {alternative}, or a model that supports it"
    return ApiError(422, "not_made", message, param="model")


def prompt_of(
    encoder: Encoder, task: Task, prompt_name: str | None = None, instruction: str | None = None
) -> tuple[Task, str | None]:
    """Return the task whose prompt precedes the texts, and a prompt in its place or None.

    Args:
        encoder: The encoder with the prompts.
        task: The task of the texts if no prompt is named.
        prompt_name: ``query`` or ``document``.
        instruction: A prompt of the request.
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
def renamed_fields(**names: str) -> Iterator[None]:
    """Rename fields in errors: ``renamed_fields(dimensions="output_dimension")``."""
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


async def peek(request: Request, name: str) -> dict[str, Any]:
    """Return the unvalidated fields of a body that has the string ``name``; {} otherwise."""
    try:
        body = await request.body()
    except ClientDisconnect:
        raise disconnected() from None
    if f'"{name}"'.encode() not in body:  # inside a text the quotes would be escaped
        return {}
    try:
        values = await asyncio.to_thread(orjson.loads, body)
    except orjson.JSONDecodeError:
        return {}
    return values if isinstance(values, dict) else {}


async def has_field(request: Request, name: str, instead_of: str) -> bool:
    """Return whether the body is an object with the field ``name`` and without ``instead_of``."""
    values = await peek(request, name)
    return name in values and instead_of not in values
