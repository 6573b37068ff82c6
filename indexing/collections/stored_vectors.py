"""Read stored vectors from a snapshot, across its segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedserve.types import SparseEmbeddings, TokenEmbeddings
from indexing.collections.view import View, locate
from indexing.segments.fields import Field, Vectors


def is_live(view: View, sequence: int) -> bool:
    """Return whether the document with a sequence number still exists."""
    return locate(view, np.array([sequence], dtype=np.int64))[0][0] >= 0


def vectors_at(view: View, name: str, field: Field, sequences: Sequence[int]) -> Vectors:
    """Return the vectors of the field ``name`` of existing sequence numbers, in the given order."""
    locations = locate(view, np.array(sequences, dtype=np.int64))
    parts: list[Vectors] = []
    order: list[int] = []
    for number in sorted({part for part, _ in locations}):
        indices = [index for index, (part, _) in enumerate(locations) if part == number]
        rows = np.array([locations[index][1] for index in indices], dtype=np.int64)
        parts.append(view[number].segment.take(name, rows))
        order += indices
    if not parts:
        return _empty(field)
    return _reordered(parts, np.argsort(np.array(order, dtype=np.int64)))


def _reordered(parts: Sequence[Vectors], order: np.ndarray) -> Vectors:
    first = parts[0]
    if isinstance(first, np.ndarray):
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])[order]
    if isinstance(first, TokenEmbeddings):
        return TokenEmbeddings.concatenate([part for part in parts if isinstance(part, TokenEmbeddings)]).take(order)
    return SparseEmbeddings.concatenate([part for part in parts if isinstance(part, SparseEmbeddings)]).take(order)


def _empty(field: Field) -> Vectors:
    none, start = np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    if field.output == "dense":
        return np.empty((0, field.dim), dtype=np.float32)
    if field.output == "multi":
        return TokenEmbeddings(np.empty((0, field.dim), dtype=np.float32), start, none, none, none.astype(bool))
    return SparseEmbeddings(none, none.astype(np.float32), start, none, none.astype(bool))
