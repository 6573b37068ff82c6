"""Brute force in numpy: the index that is right by construction, and the judge of all the others."""

from __future__ import annotations

import numpy as np

from indexing.base import Hits, Metric, as_metric, as_queries, as_vectors, make_hits, unit

QUERY_BLOCK = 64
ROW_BLOCK = 16_384  # a block of scores is at most 4 MiB


class ExactIndex:
    """Compares every query with every row.

    Args:
        vectors: (N, d) float32.
        metric: ``cosine`` or ``inner_product``.
    """

    kind = "exact"

    def __init__(self, vectors: np.ndarray, metric: Metric = "cosine") -> None:
        self.metric = as_metric(metric)
        checked = as_vectors(vectors)
        self._vectors = unit(checked) if self.metric == "cosine" else checked

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """Return the best ``k`` rows of each query (Q, d); equal scores by lower row."""
        queries, k = as_queries(self, queries, k)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            rows[block], scores[block] = self._search_block(queries[block], k)
        return make_hits(rows, scores)

    def _search_block(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (Q, k) and scores (Q, k), keeping the best so far while going through the rows."""
        best_rows = np.empty((len(queries), 0), dtype=np.int64)
        best_scores = np.empty((len(queries), 0), dtype=np.float32)
        for start in range(0, len(self), ROW_BLOCK):
            new = queries @ self._vectors[start : start + ROW_BLOCK].T  # (Q, block)
            new_rows = np.broadcast_to(np.arange(start, start + new.shape[1]), new.shape)
            scores = np.concatenate([best_scores, new], axis=1)
            rows = np.concatenate([best_rows, new_rows], axis=1)
            kept = np.stack([top_columns(line, k) for line in scores])  # (Q, <= k)
            best_rows = np.take_along_axis(rows, kept, axis=1)
            best_scores = np.take_along_axis(scores, kept, axis=1)
        return best_rows, best_scores


def top_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the ``k`` highest of ``scores`` (n,), best first, equal ones in order of position."""
    columns = np.arange(len(scores))
    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        columns = np.flatnonzero(scores >= kth)  # at least k: more where the k-th place is shared
    order = np.argsort(-scores[columns], kind="stable")[:k]
    return columns[order]
