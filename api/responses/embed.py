"""Embeddings as bytes: JSON serialised from the arrays, lines of JSON, raw rows, .npy."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from api.inference.quantise import VectorType, quantise
from api.responses.external_formats import base64_rows
from api.responses.json_response import NUMPY
from embedserve.types import Encoded


@dataclass(frozen=True)
class VectorFormat:
    """Serialisation of vectors.

    Attributes:
        types: Types of the dense vectors under ``embeddings``. Default: float32 as ``embedding``.
        base64: Whether vectors are the base64 of their bytes.
    """

    types: Sequence[VectorType] | None = None
    base64: bool = False

    def rows(self, vectors: np.ndarray) -> Any:
        """Return the rows (N, d) of vectors as orjson serialises them."""
        return base64_rows(vectors) if self.base64 else vectors


def embed_response(
    encoded: Encoded,
    model: str,
    fingerprint: str,
    vector_format: VectorFormat | None = None,
    timing_ms: Mapping[str, float] | None = None,
) -> bytes:
    """Return the JSON of a response, serialised from the arrays."""
    data = {"data": embed_items(encoded, vector_format=vector_format)}
    return orjson.dumps(
        {**model_fields(encoded, model, fingerprint), **data, **usage_fields(encoded, timing_ms)}, option=NUMPY
    )


def model_fields(encoded: Encoded, model: str, fingerprint: str) -> dict[str, Any]:
    """Return the fields of a response that precede its vectors."""
    vectors = encoded.dense or encoded.multi
    return {
        "model": model,
        "fingerprint": fingerprint,
        "dim": vectors.vectors.shape[1] if vectors is not None else None,
    }


def usage_fields(encoded: Encoded, timing_ms: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return the fields of a response that follow its vectors."""
    total = sum(encoded.tokens.tolist())
    usage = {"usage": {"prompt_tokens": total, "total_tokens": total}}
    return usage if timing_ms is None else {**usage, "timing_ms": dict(timing_ms)}


def embed_items(
    encoded: Encoded,
    first: int = 0,
    *,
    indices: Sequence[int] | None = None,
    vector_format: VectorFormat | None = None,
) -> list[dict[str, Any]]:
    """Return one object for each text with the outputs of its encoder; arrays stay arrays.

    ``embedding`` is the vector, ``multi`` those of the tokens, ``sparse`` the vocabulary entries and their weights.

    Args:
        encoded: The outputs.
        first: Index of the first text.
        indices: Index of each text, in place of ``first``.
        vector_format: Serialisation of the vectors.
    """
    vector_format = vector_format or VectorFormat()
    tokens, truncated = encoded.tokens.tolist(), encoded.truncated.tolist()
    numbers = range(first, first + len(encoded)) if indices is None else indices
    items: list[dict[str, Any]] = [
        {"index": int(number), "tokens": tokens[row], "truncated": truncated[row]} for row, number in enumerate(numbers)
    ]
    if encoded.dense is not None:
        _add_dense(items, encoded.dense.vectors, vector_format)
    multi, sparse = encoded.multi, encoded.sparse
    for row, item in enumerate(items):
        if multi is not None:
            item["multi"] = vector_format.rows(multi[row][None])[0]
            item["multi_token_ids"] = multi.token_ids[multi.offsets[row] : multi.offsets[row + 1]]
        if sparse is not None:
            part = slice(sparse.offsets[row], sparse.offsets[row + 1])
            item["sparse"] = {"indices": sparse.indices[part], "values": sparse.values[part]}
    return items


def _add_dense(items: list[dict[str, Any]], vectors: np.ndarray, vector_format: VectorFormat) -> None:
    if vector_format.types is None:
        for item, row in zip(items, vector_format.rows(vectors), strict=True):
            item["embedding"] = row
        return
    typed = {kind: vector_format.rows(quantise(vectors, kind)) for kind in vector_format.types}
    for row, item in enumerate(items):
        item["embeddings"] = {kind: rows[row] for kind, rows in typed.items()}


def little_endian(array: np.ndarray) -> np.ndarray:
    """Return the array in little-endian byte order, C-contiguous."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def npy(array: np.ndarray) -> bytes:
    """Return an array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
