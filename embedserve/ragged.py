"""Ragged arrays: the rows of N texts are contiguous in one array, and ``offsets`` (N + 1,) int64 delimits them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def offsets_of(counts: ArrayLike) -> np.ndarray:
    """Return the offsets (N + 1,) int64 of texts with ``counts`` (N,) rows each.

    >>> offsets_of([2, 0, 3]).tolist()
    [0, 2, 2, 5]
    """
    counts = np.asarray(counts, dtype=np.int64)
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def take_rows(offsets: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers (T,) int64 of ``texts`` (n,), in that order, and their new offsets (n + 1,) int64.

    >>> rows, offsets = take_rows(np.array([0, 2, 2, 5]), np.array([2, 0]))
    >>> rows.tolist(), offsets.tolist()
    ([2, 3, 4, 0, 1], [0, 3, 5])
    """
    starts = offsets[texts]
    counts = offsets[np.asarray(texts) + 1] - starts
    taken = offsets_of(counts)
    return np.arange(taken[-1]) + np.repeat(starts - taken[:-1], counts), taken


def concatenate_offsets(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the offsets of the concatenation of several ragged arrays, at least one, given the offsets of each.

    >>> concatenate_offsets([np.array([0, 2]), np.array([0, 1, 4])]).tolist()
    [0, 2, 3, 6]
    """
    return offsets_of(np.concatenate([np.diff(offsets) for offsets in parts]))
