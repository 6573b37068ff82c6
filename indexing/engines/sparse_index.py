"""An inverted index of learned sparse vectors: the rows and weights of each vocabulary entry."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from embedserve.errors import CorruptFileError, InputError
from embedserve.types import SparseEmbeddings
from indexing.base import Hits, Metric, clip_k, make_hits
from indexing.engines.exact import top_columns
from indexing.storage.engine_files import ENGINE_REMEDY, array_writer, open_engine, read_array, save_engine
from indexing.storage.row_table import as_rows, check_new, known_positions, mask_of

QUERY_BLOCK = 16
FILES = ("rows.npy", "offsets.npy", "indices.npy", "values.npy")


class SparseIndex:
    """Scores by the exact dot product; documents that share no entry with the query are not hits.

    Not thread-safe: do not search an index while it is being modified. Concurrent searches are safe.
    The first search after a modification rebuilds the postings.

    Args:
        dim: V, the size of the vocabulary; entries are integers below it.
    """

    kind = "sparse"
    metric: Metric = "inner_product"

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InputError(f"dim must be at least 1, got {dim}", field="dim")
        self.dim = dim
        empty = np.empty(0, dtype=np.int64)
        self._lock = Lock()
        self._set([(empty, _matrix_of(empty.astype(np.float32), empty, np.zeros(1, dtype=np.int64), dim))])

    def _set(self, parts: list[tuple[np.ndarray, Any]]) -> None:
        """Set the documents: ``parts`` of rows (n,) and a matrix (n, V), which `_documents` merges."""
        self._parts, self._postings = parts, None
        self._rows = np.sort(np.concatenate([rows for rows, _ in parts]))

    def _documents(self) -> Any:
        """Return all documents (N, V) in ascending order of rows; rebuild the postings (V, N) if necessary."""
        from scipy.sparse import vstack

        with self._lock:
            if self._postings is None:
                order = np.argsort(np.concatenate([rows for rows, _ in self._parts]))
                documents = vstack([part for _, part in self._parts], format="csr")[order]
                self._parts = [(self._rows, documents)]
                self._postings = documents.T.tocsr()
        return self._parts[0][1]

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: np.ndarray, vectors: SparseEmbeddings) -> None:
        """Add sparse vectors under the row numbers ``rows`` (n,).

        Raises:
            InputError: A weight that is negative or not finite, an entry not below ``dim`` or twice in one vector, a
                row that exists or is given twice.
        """
        checked = self._matrix(vectors, "vectors")
        new = as_rows(rows, len(vectors))
        check_new(self._rows, new)
        if len(new):
            self._set([*self._parts, (new, checked)])

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        keep = np.ones(len(self), dtype=bool)
        keep[known_positions(self._rows, rows)] = False
        self._set([(self._rows[keep], self._documents()[keep])])

    def search(self, queries: SparseEmbeddings, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best ``k`` rows of each query; equal scores are ordered by row.

        Args:
            queries: Q sparse vectors, checked as in `add`.
            k: Hits per query, clipped to the number of rows.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored. Default: all.
        """
        k = clip_k(k, len(self))
        matrix = self._matrix(queries, "queries")
        self._documents()
        mask = None if allowed is None else mask_of(self._rows, allowed)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries) if k else 0, QUERY_BLOCK):
            products = matrix[start : start + QUERY_BLOCK] @ self._postings  # (block, N), sparse
            products.sort_indices()
            for line in range(products.shape[0]):
                part = slice(products.indptr[line], products.indptr[line + 1])
                positions, values = products.indices[part], products.data[part]
                keep = values > 0 if mask is None else (values > 0) & mask[positions]
                positions, values = positions[keep], values[keep]
                best = top_columns(values, k)
                rows[start + line, : len(best)] = self._rows[positions[best]]
                scores[start + line, : len(best)] = values[best]
        return make_hits(rows, scores)

    def take(self, rows: np.ndarray) -> SparseEmbeddings:
        """Return the vectors of ``rows`` (n,) in that order; raise `NotFoundError` for a missing row."""
        taken = self._documents()[known_positions(self._rows, rows)]
        zeros = np.zeros(taken.shape[0], dtype=np.int64)
        offsets = taken.indptr.astype(np.int64)
        return SparseEmbeddings(taken.indices.astype(np.int64), taken.data, offsets, zeros, zeros.astype(bool))

    def _matrix(self, vectors: SparseEmbeddings, field: str) -> Any:
        """Return sparse vectors as a (n, V) matrix; raise `InputError` for invalid ones."""
        indices, values = np.asarray(vectors.indices), np.asarray(vectors.values, dtype=np.float32)
        offsets = np.asarray(vectors.offsets)
        lengths = np.diff(offsets)
        valid = offsets.ndim == 1 and offsets.size and offsets[0] == 0 and (lengths >= 0).all()
        if not (valid and len(indices) == len(values) == offsets[-1]):
            message = f"{field}: {len(indices)} entries and {len(values)} weights do not fit their offsets"
            raise InputError(message, field=field)
        owner = np.repeat(np.arange(len(lengths)), lengths)

        def check(bad: np.ndarray, problem: str) -> None:
            if bad.any():
                raise InputError(f"{field}: vector {int(owner[np.argmax(bad)])} {problem}", field=field)

        check(~np.isfinite(values), "holds NaN or infinity")
        check(values < 0, "holds a negative weight")
        check((indices < 0) | (indices >= self.dim), f"holds an entry that is not from 0 to {self.dim - 1}")
        order = np.lexsort((indices, owner))
        indices, values = indices[order], values[order]
        duplicate = np.zeros(len(indices), dtype=bool)
        duplicate[1:] = (indices[1:] == indices[:-1]) & (owner[1:] == owner[:-1])
        check(duplicate, "holds an entry twice")
        return _matrix_of(values, indices, offsets, self.dim)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        documents = self._documents()
        arrays = (self._rows, *(np.asarray(a, np.int64) for a in (documents.indptr, documents.indices)), documents.data)
        files = {name: array_writer(values) for name, values in zip(FILES, arrays, strict=True)}
        save_engine(directory, self.kind, {"dim": self.dim}, files, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None) -> SparseIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        saved = open_engine(directory, cls.kind, fingerprint)
        rows, offsets, indices, values = (read_array(saved.files[name]) for name in FILES)
        index = cls(saved.fields["dim"])
        try:
            index._set([(rows, _matrix_of(values, indices, offsets, index.dim))])
            index._documents()
        except (ValueError, IndexError) as error:
            raise CorruptFileError(f"{directory} holds invalid sparse vectors: {error}; {ENGINE_REMEDY}") from None
        return index


def _matrix_of(values: np.ndarray, indices: np.ndarray, offsets: np.ndarray, width: int) -> Any:
    from scipy.sparse import csr_array  # slow to import, therefore on first use

    return csr_array((values, indices, offsets), shape=(len(offsets) - 1, width))
