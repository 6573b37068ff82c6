"""Checks of ragged token vectors, and their division into blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embedserve.errors import InputError
from embedserve.types import TokenEmbeddings
from indexing.base import as_vectors


def check_token_vectors(vectors: np.ndarray, dim: int, name: str = "documents") -> np.ndarray:
    """Return token vectors as contiguous and writable float32 (T, d).

    Raises:
        InputError: Another shape or width, NaN or infinity.
    """
    checked = as_vectors(vectors, dim, field=name)
    return checked if checked.flags.writeable else checked.copy()


def check_offsets(offsets: np.ndarray, total: int, name: str = "documents") -> np.ndarray:
    """Return ``offsets`` (N + 1,) int64 of texts with at least one row each and ``total`` rows together.

    Raises:
        InputError: They do not go from 0 to ``total``, descend, or a text is empty.
    """
    checked = np.array(offsets, dtype=np.int64, order="C", copy=None)
    if checked.ndim != 1 or len(checked) == 0 or checked[0] != 0 or checked[-1] != total:
        raise InputError(f"offsets of {name} must go from 0 to their {total} rows, got {offsets!r}", field="offsets")
    lengths = np.diff(checked)
    if (lengths < 0).any():
        raise InputError(f"offsets of {name} must not descend", field="offsets")
    if (lengths == 0).any():
        text = int(np.argmin(lengths))
        raise InputError(f"{name}[{text}] is empty: it has no token vectors; omit it", field=f"{name}[{text}]")
    return checked


def check_tokens(tokens: TokenEmbeddings, dim: int, name: str = "documents") -> tuple[np.ndarray, np.ndarray]:
    """Return the checked vectors (T, d) float32 and offsets (N + 1,) int64 of ``tokens``."""
    vectors = check_token_vectors(tokens.vectors, dim, name)
    offsets = check_offsets(tokens.offsets, len(vectors), name)
    if np.shape(tokens.token_ids) != (len(vectors),):
        message = f"token_ids must be one for each of {len(vectors)} rows, got shape {np.shape(tokens.token_ids)}"
        raise InputError(message, field="token_ids")
    return vectors, offsets


def check_weights(weights: np.ndarray | None, count: int) -> np.ndarray:
    """Return ``weights`` as (count,) float32; all ones if None."""
    if weights is None:
        return np.ones(count, dtype=np.float32)
    checked = np.array(weights, dtype=np.float32, order="C", copy=None)
    if checked.shape != (count,) or not np.isfinite(checked).all():
        raise InputError(f"weights must be {count} finite numbers, got shape {checked.shape}", field="weights")
    return checked


def blocks(offsets: np.ndarray, rows: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (start, stop) of texts with at most ``rows`` rows together, or one longer text."""
    start, count = 0, len(offsets) - 1
    while start < count:
        stop = int(np.searchsorted(offsets, offsets[start] + rows, side="right")) - 1
        stop = min(max(stop, start + 1), count)
        yield start, stop
        start = stop
