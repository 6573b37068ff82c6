"""Which rows go into the next batch: those of like length around the one whose turn it is."""

from __future__ import annotations

import numpy as np


def window(lengths: np.ndarray, first: int, budget: int, workers: int = 1) -> np.ndarray:
    """Return which rows to compute together with row ``first``: as many real tokens as fit, of neighbouring lengths.

    The rows fit ``workers`` batches in each of which rows x longest row <= ``budget``. A row longer than the budget is
    a batch of its own.

    Args:
        lengths: (N,) int64, tokens of the rows that wait, in the order in which they came.
        first: The row that must be among them.
        budget: Tokens of one batch, padding included.
        workers: Batches that run at the same time.

    Returns:
        (n,) int64, places in ``lengths``, longest rows first.
    """
    order = np.argsort(-lengths, kind="stable")
    if len(order) <= workers * max(1, budget // max(1, int(lengths.max()))):  # all of them fit, as they mostly do
        return order
    by_length = lengths[order]
    most = workers * np.maximum(1, budget // by_length)  # rows of a window that begins here, with its longest
    own = int(np.flatnonzero(order == first)[0])
    starts = np.arange(own + 1)
    stops = np.minimum(starts + most[: own + 1], len(order))
    before = np.concatenate([[0], np.cumsum(by_length)])
    tokens = np.where(stops > own, before[stops] - before[starts], -1)
    best = int(tokens.argmax())
    return order[best : stops[best]]
