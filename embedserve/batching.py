"""Rows of token ids -> padded batches within a token budget."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# Tokens of one batch, padding included. On a CPU the hidden states of about a thousand tokens stay in the cache;
# a GPU wants as much work as fits.
BATCH_TOKENS = {"cpu": 1024, "cuda": 65_536}
OVERHEAD = 0.05  # what a batch costs beside its tokens, as a share of the budget: weights to read, kernels to start
STEPS = 1024  # places, about, where short rows may be parted if there are thousands


def token_batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield row numbers, longest rows first, such that rows x longest row <= ``budget`` in every batch.

    Rows of one batch have like lengths. They are parted where that costs least in all: each batch costs its tokens,
    padding included, and as much again as `OVERHEAD` of the budget. A row longer than the budget is a batch of its own.
    The longest come first: if memory is short, it shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    if len(order) < 2:
        if len(order):
            yield order
        return
    by_length = lengths[order]
    fitting = budget // max(1, int(by_length[0]))
    step = max(1, min(len(order) // STEPS, fitting // 8))  # rows that stay together
    starts = np.arange(0, len(order), step)
    ends = np.append(starts[1:], len(order))
    cost = np.zeros(len(starts) + 1)  # of the rows from there on
    count = np.ones(len(starts), dtype=np.int64)  # steps of the best batch that begins there
    for here in range(len(starts) - 1, -1, -1):
        longest = max(1, int(by_length[starts[here]]))
        most = max(1, (budget // longest) // step)
        sizes = ends[here : here + most] - starts[here]
        costs = sizes * longest + cost[here + 1 : here + 1 + len(sizes)]
        best = int(costs.argmin())
        cost[here], count[here] = costs[best] + OVERHEAD * budget, best + 1
    here = 0
    while here < len(starts):
        last = here + int(count[here])
        yield order[starts[here] : ends[last - 1]]
        here = last


def pad_right(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (B, T) int64, each row filled up with its own last token, and the attention mask (B, T) int64.

    The mask alone says what is padding: pad ids are ordinary tokens in some models and missing in others.
    """
    if len(rows) == 1:
        return rows[0][None].copy(), np.ones((1, len(rows[0])), dtype=np.int64)
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    ids = np.repeat(np.array([row[-1] for row in rows], dtype=np.int64)[:, None], mask.shape[1], axis=1)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64)


def pad_ids(rows: list[np.ndarray]) -> np.ndarray:
    """Return rows of ids as one int64 array (B, M), filled up with -1; M is at least 1."""
    out = np.full((len(rows), max(1, *(len(row) for row in rows))), -1, dtype=np.int64)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out
