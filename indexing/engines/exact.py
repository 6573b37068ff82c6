"""Brute force in numpy: the index that is right by construction, and the judge of all the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from embedserve.errors import CorruptFileError
from indexing.base import Hits, Metric, as_metric, as_queries, as_vectors, make_hits, unit
from indexing.storage.engine_files import ENGINE_REMEDY, array_writer, open_engine, read_array, save_engine
from indexing.storage.row_table import as_rows, check_new, mask_of, places_of_known

QUERY_BLOCK = 64
ROW_BLOCK = 16_384  # a block of scores is at most 4 MiB


class ExactIndex:
    """Compares every query with every row.

    Safe to search from many threads, as long as nobody adds or removes.

    Args:
        vectors: (N, d) float32; N may be 0.
        metric: ``cosine`` or ``inner_product``.
        rows: (N,) int64, the row number of each vector; 0 to N - 1 if left out.

    Raises:
        InputError: What `as_vectors` or `indexing.storage.row_table.as_rows` refuse.
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
        """Keep vectors in the order of their rows, so that the order of places settles ties as rows do."""
        order = np.argsort(self._rows)
        self._rows, self._vectors = self._rows[order], self._vectors[order]

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return int(self._vectors.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors (n, d) float32 under the row numbers ``rows`` (n,).

        Raises:
            InputError: Another width, NaN, a row that is there already or given twice.
        """
        checked = as_vectors(vectors, self.dim)
        new = as_rows(rows, len(checked))
        check_new(self._rows, new)
        self._rows = np.concatenate([self._rows, new])
        self._vectors = np.concatenate([self._vectors, unit(checked) if self.metric == "cosine" else checked])
        self._sort()

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
        places = places_of_known(self._rows, rows)
        self._rows, self._vectors = np.delete(self._rows, places), np.delete(self._vectors, places, axis=0)

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best ``k`` rows of each query (Q, d); equal scores by lower row.

        Args:
            queries: (Q, d) float32.
            k: Hits for each query, clipped to the rows there are.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over.
        """
        queries, k = as_queries(self, queries, k)
        if allowed is None:
            return search_blocks(queries, k, self._blocks())
        places = np.flatnonzero(mask_of(self._rows, allowed))
        return search_blocks(queries, min(k, len(places)), self._blocks(places))

    def _blocks(self, places: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = len(self) if places is None else len(places)
        for start in range(0, count, ROW_BLOCK):
            block = slice(start, start + ROW_BLOCK)
            wanted = block if places is None else places[block]
            yield self._rows[wanted], self._vectors[wanted]

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        files = {"vectors.npy": array_writer(self._vectors), "rows.npy": array_writer(self._rows)}
        save_engine(directory, self.kind, {"metric": self.metric}, files, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None) -> ExactIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        opened = open_engine(directory, cls.kind, fingerprint)
        vectors, rows = (read_array(opened.files[name]) for name in ("vectors.npy", "rows.npy"))
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise CorruptFileError(f"{directory} has {len(rows)} rows for vectors {vectors.shape}; {ENGINE_REMEDY}")
        index = cls(np.empty((0, vectors.shape[1]), dtype=np.float32), opened.fields["metric"])
        index._rows, index._vectors = rows, vectors  # at unit length already where that is wanted
        return index


def search_blocks(queries: np.ndarray, k: int, blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Hits:
    """Return the best ``k`` of the rows in ``blocks`` for each query, by dot product; equal scores by lower row.

    Args:
        queries: (Q, d) float32.
        k: At most as many as there are rows.
        blocks: Rows (n,) int64 and their vectors (n, d); rows ascend over all blocks.
    """
    rows = np.full((len(queries), k), -1, dtype=np.int64)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for block_rows, vectors in blocks if k else ():
        for start in range(0, len(queries), QUERY_BLOCK):
            part = slice(start, start + QUERY_BLOCK)
            found = queries[part] @ vectors.T
            rows[part], scores[part] = _merge(rows[part], scores[part], block_rows, found, k)
    return make_hits(rows, scores)


def _merge(
    best_rows: np.ndarray, best_scores: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best ``k`` of those so far and of new ``rows`` (n,) with ``scores`` (Q, n)."""
    all_scores = np.concatenate([best_scores, scores], axis=1)
    all_rows = np.concatenate([best_rows, np.broadcast_to(rows, scores.shape)], axis=1)
    kept = np.stack([top_columns(line, k) for line in all_scores])  # (Q, <= k)
    return np.take_along_axis(all_rows, kept, axis=1), np.take_along_axis(all_scores, kept, axis=1)


def top_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the ``k`` highest of ``scores`` (n,), best first, equal ones in order of position."""
    columns = np.arange(len(scores))
    if k < len(scores):
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        columns = np.flatnonzero(scores >= kth)  # at least k: more where the k-th place is shared
    order = np.argsort(-scores[columns], kind="stable")[:k]
    return columns[order]
