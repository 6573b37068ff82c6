"""Rows of token ids -> padded batches within a token budget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Tokens of one batch, padding included. On a CPU the hidden states of about a thousand tokens stay in the cache;
# a GPU is fastest with as much work as fits.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
OVERHEAD = 0.05  # fixed cost of a batch (reading weights, launching kernels) as a share of the budget
STEPS = 1024  # approximate number of candidate split points if there are thousands of short rows


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield row numbers, longest rows first, such that rows x longest row <= ``budget`` in every batch.

    Rows of a batch have similar lengths. A dynamic programme minimises the total cost: a batch costs its tokens,
    padding included, plus `OVERHEAD` of the budget. A row longer than the budget is a batch of its own.
    The longest rows come first, so that a lack of memory shows immediately.
    """
    order = np.argsort(-lengths, kind="stable")
    if len(order) < 2:
        if len(order):
            yield order
        return
    by_length = lengths[order]
    capacity = budget // max(1, int(by_length[0]))
    step = max(1, min(len(order) // STEPS, capacity // 8))  # rows between split points
    starts = np.arange(0, len(order), step)
    ends = np.append(starts[1:], len(order))
    cost = np.zeros(len(starts) + 1)  # of the rows from each split point on
    count = np.ones(len(starts), dtype=np.int64)  # steps in the best batch that starts there
    for start in range(len(starts) - 1, -1, -1):
        longest = max(1, int(by_length[starts[start]]))
        limit = max(1, (budget // longest) // step)
        sizes = ends[start : start + limit] - starts[start]
        costs = sizes * longest + cost[start + 1 : start + 1 + len(sizes)]
        best = int(costs.argmin())
        cost[start], count[start] = costs[best] + OVERHEAD * budget, best + 1
    start = 0
    while start < len(starts):
        end = start + int(count[start])
        yield order[starts[start] : ends[end - 1]]
        start = end


def pad_right(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (B, T) int64, each row padded with its last token, and the attention mask (B, T) int64.

    Only the mask marks padding: pad ids are ordinary tokens in some models and missing in others.
    """
    if len(rows) == 1:
        return rows[0][None].copy(), np.ones((1, len(rows[0])), dtype=np.int64)
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = np.repeat(np.array([row[-1] for row in rows], dtype=np.int64)[:, None], mask.shape[1], axis=1)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64)


def pad_ids(rows: list[np.ndarray]) -> np.ndarray:
    """Return rows of ids as one int64 array (B, M), padded with -1; M is at least 1."""
    out = np.full((len(rows), max(1, *(len(row) for row in rows))), -1, dtype=np.int64)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out
