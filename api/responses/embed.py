"""What a model made of texts as bytes: JSON straight from the arrays, lines of JSON, raw rows, .npy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from api.inference.quantise import VectorType, quantise
from api.responses.external_formats import base64_rows
from embedserve.types import Encoded

OPTIONS = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Form:
    """How vectors are written.

    Attributes:
        types: Types of the dense vectors under ``embeddings``; None for float32 as ``embedding``.
        base64: The base64 of a vector's bytes in place of its numbers.
    """

    types: Sequence[VectorType] | None = None
    base64: bool = False

    def rows(self, vectors: np.ndarray) -> Any:
        """Return each row (d,) as it is written."""
        return base64_rows(vectors) if self.base64 else vectors


def embed_answer(
    found: Encoded,
    model: str,
    fingerprint: str,
    form: Form | None = None,
    timing_ms: Mapping[str, float] | None = None,
) -> bytes:
    """Return the JSON of an answer, straight from the arrays."""
    data = {"data": embed_items(found, form=form)}
    return orjson.dumps({**about(found, model, fingerprint), **data, **closing(found, timing_ms)}, option=OPTIONS)


def about(found: Encoded, model: str, fingerprint: str) -> dict[str, Any]:
    """Return what an answer says of all its vectors."""
    vectors = found.dense or found.multi
    return {
        "model": model,
        "fingerprint": fingerprint,
        "dim": vectors.vectors.shape[1] if vectors is not None else None,
    }


def closing(found: Encoded, timing_ms: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return what an answer says behind its vectors."""
    total = sum(found.tokens.tolist())
    usage = {"usage": {"prompt_tokens": total, "total_tokens": total}}
    return usage if timing_ms is None else {**usage, "timing_ms": dict(timing_ms)}


def embed_items(
    found: Encoded, first: int = 0, *, places: Sequence[int] | None = None, form: Form | None = None
) -> list[dict[str, Any]]:
    """Return one object for each text with what its encoder makes: arrays stay arrays.

    ``embedding`` is the vector, ``multi`` those of the tokens, ``sparse`` the vocabulary entries and their weights.

    Args:
        found: What was made.
        first: The number of the first text.
        places: The number of each text, in place of that.
        form: How the vectors are written.
    """
    form = form or Form()
    tokens, truncated = found.tokens.tolist(), found.truncated.tolist()
    numbers = range(first, first + len(found)) if places is None else places
    items: list[dict[str, Any]] = [
        {"index": int(number), "tokens": tokens[row], "truncated": truncated[row]} for row, number in enumerate(numbers)
    ]
    if found.dense is not None:
        _put_dense(items, found.dense.vectors, form)
    for row, item in enumerate(items):
        if found.multi is not None:
            item["multi"] = form.rows(found.multi[row][None])[0]
            item["multi_token_ids"] = found.multi.token_ids[found.multi.offsets[row] : found.multi.offsets[row + 1]]
        if found.sparse is not None:
            part = slice(found.sparse.offsets[row], found.sparse.offsets[row + 1])
            item["sparse"] = {"indices": found.sparse.indices[part], "values": found.sparse.values[part]}
    return items


def _put_dense(items: list[dict[str, Any]], vectors: np.ndarray, form: Form) -> None:
    if form.types is None:
        for item, row in zip(items, form.rows(vectors), strict=True):
            item["embedding"] = row
        return
    typed = {kind: form.rows(quantise(vectors, kind)) for kind in form.types}
    for place, item in enumerate(items):
        item["embeddings"] = {kind: rows[place] for kind, rows in typed.items()}


def little_endian(array: np.ndarray) -> np.ndarray:
    """Return the array with its numbers' lowest bytes first, in rows."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def npy(array: np.ndarray) -> bytes:
    """Return an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
