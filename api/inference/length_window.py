"""The rows of the next batch: rows of similar length around one that must be included."""

from __future__ import annotations

import numpy as np


def window(lengths: np.ndarray, first: int, budget: int, workers: int = 1) -> np.ndarray:
    """Return the rows to compute together with row ``first``: as many real tokens as fit, of neighbouring lengths.

    The rows fit into ``workers`` batches, each with rows x longest row <= ``budget``. A row longer than the budget is a
    batch of its own.

    Args:
        lengths: (N,) int64, tokens of the waiting rows, in order of arrival.
        first: The row that must be included.
        budget: Tokens of one batch, padding included.
        workers: Batches that run in parallel.

    Returns:
        (n,) int64, indices into ``lengths``, longest rows first.
    """
    order = np.argsort(-lengths, kind="stable")
    if len(order) <= workers * max(1, budget // max(1, int(lengths.max()))):  # all rows fit, the usual case
        return order
    by_length = lengths[order]
    capacity = workers * np.maximum(1, budget // by_length)  # rows of a window that starts here, with its longest row
    position = int(np.flatnonzero(order == first)[0])
    starts = np.arange(position + 1)
    stops = np.minimum(starts + capacity[: position + 1], len(order))
    before = np.concatenate([[0], np.cumsum(by_length)])
    tokens = np.where(stops > position, before[stops] - before[starts], -1)
    best = int(tokens.argmax())
    return order[best : stops[best]]
