"""Exhaustive search in NumPy: the reference for the approximate engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from embedserve.errors import CorruptFileError
from indexing.base import Hits, Metric, as_metric, as_queries, as_vectors, make_hits, unit
from indexing.storage.engine_files import ENGINE_REMEDY, array_writer, open_engine, save_engine
from indexing.storage.row_table import as_rows, check_new, known_positions, mask_of

QUERY_BLOCK = 64
ROW_BLOCK = 16_384  # a block of scores is at most 4 MiB


class ExactIndex:
    """Scores every row for every query.

    Not thread-safe: do not search an index while it is being modified. Concurrent searches are safe.

    Args:
        vectors: (N, d) float32; N may be 0.
        metric: ``cosine`` or ``inner_product``.
        rows: (N,) int64, the row number of each vector; Default: 0 to N - 1.

    Raises:
        InputError: As `as_vectors` and `indexing.storage.row_table.as_rows`.
    """

    kind = "exact"

    def __init__(self, vectors: np.ndarray, metric: Metric = "cosine", rows: np.ndarray | None = None) -> None:
        self.metric = as_metric(metric)
        checked = as_vectors(vectors)
        self._vectors = unit(checked) if self.metric == "cosine" else checked
        if rows is None:
            self._rows = np.arange(len(checked), dtype=np.int64)
        else:
            self._rows = as_rows(rows, len(checked))
            self._sort()

    def _sort(self) -> None:
        """Sort vectors by row, so that equal scores are ordered by row."""
        order = np.argsort(self._rows)
        self._rows, self._vectors = self._rows[order], self._vectors[order]

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors (n, d) float32 under the row numbers ``rows`` (n,).

        Raises:
            InputError: Another width, NaN, a row that exists or is given twice.
        """
        checked = as_vectors(vectors, self.dim)
        new = as_rows(rows, len(checked))
        check_new(self._rows, new)
        self._rows = np.concatenate([self._rows, new])
        self._vectors = np.concatenate([self._vectors, unit(checked) if self.metric == "cosine" else checked])
        self._sort()

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        positions = known_positions(self._rows, rows)
        self._rows, self._vectors = np.delete(self._rows, positions), np.delete(self._vectors, positions, axis=0)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best ``k`` rows of each query (Q, d); equal scores are ordered by row.

        Args:
            queries: (Q, d) float32.
            k: Hits per query, clipped to the number of rows.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored. Default: all.
        """
        queries, k = as_queries(self, queries, k)
        if allowed is None:
            return search_blocks(queries, k, self._blocks())
        positions = np.flatnonzero(mask_of(self._rows, allowed))
        return search_blocks(queries, min(k, len(positions)), self._blocks(positions))

    def _blocks(self, positions: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = len(self) if positions is None else len(positions)
        for start in range(0, count, ROW_BLOCK):
            block = slice(start, start + ROW_BLOCK)
            selected = block if positions is None else positions[block]
            yield self._rows[selected], self._vectors[selected]

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        files = {"vectors.npy": array_writer(self._vectors), "rows.npy": array_writer(self._rows)}
        save_engine(directory, self.kind, {"metric": self.metric}, files, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None) -> ExactIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        saved = open_engine(directory, cls.kind, fingerprint)
        vectors, rows = saved.arrays(("vectors", "rows")).values()
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise CorruptFileError(f"{directory} has {len(rows)} rows for vectors {vectors.shape}; {ENGINE_REMEDY}")
        index = cls(np.empty((0, vectors.shape[1]), dtype=np.float32), saved.fields["metric"])
        index._rows, index._vectors = rows, vectors  # normalised when they were saved
        return index


def search_blocks(queries: np.ndarray, k: int, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Hits:
    """Return the best ``k`` rows of ``blocks`` for each query by dot product; equal scores are ordered by row.

    Args:
        queries: (Q, d) float32.
        k: At most the number of rows.
        blocks: Rows (n,) int64 and their vectors (n, d); rows ascend over all blocks.
    """
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for block_rows, vectors in blocks if k else ():
        for start in range(0, len(queries), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            products = queries[part] @ vectors.T
            rows[part], scores[part] = _merge(rows[part], scores[part], block_rows, products, k)
    return make_hits(rows, scores)


def _merge(
    best_rows: np.ndarray, best_scores: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best ``k`` of the current best and of new ``rows`` (n,) with ``scores`` (Q, n)."""
    all_scores = np.concatenate([best_scores, scores], axis=1)
    all_rows = np.concatenate([best_rows, np.broadcast_to(rows, scores.shape)], axis=1)
    best = np.stack([top_columns(line, k) for line in all_scores])  # (Q, <= k)
    return np.take_along_axis(all_rows, best, axis=1), np.take_along_axis(all_scores, best, axis=1)


def top_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the ``k`` highest of ``scores`` (n,), best first; equal scores by position."""
    columns = np.arange(len(scores))
    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        columns = np.flatnonzero(scores >= kth)  # more than k if the k-th score is tied
    order = np.argsort(-scores[columns], kind="stable")[:k]
    return columns[order]
