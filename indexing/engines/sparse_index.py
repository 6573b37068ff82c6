"""Learned sparse vectors in an inverted index: for each vocabulary entry the rows that weigh it, and how much."""

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
from indexing.storage.row_table import as_rows, check_new, mask_of, places_of_known

QUERY_BLOCK = 16
FILES = ("rows.npy", "offsets.npy", "indices.npy", "values.npy")


class SparseIndex:
    """Scores by the exact dot product over the entries that query and document share.

    A document that shares no entry with the query scores 0 and is no hit. Safe to search from many threads, as long as
    nobody adds or removes; the first search after either rebuilds the postings.

    Args:
        dim: V, entries of the vocabulary; an entry is a number below it.
    """

    kind = "sparse"
    metric: Metric = "inner_product"

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise InputError(f"dim must be at least 1, got {dim}", field="dim")
        self.dim = dim
        none = np.empty(0, dtype=np.int64)
        self._lock = Lock()
        self._set([(none, _matrix_of(none.astype(np.float32), none, np.zeros(1, dtype=np.int64), dim))])

    def _set(self, parts: list[tuple[np.ndarray, Any]]) -> None:
        """Keep ``parts``, rows (n,) and their documents (n, V) each, to be brought together by `_settle`."""
        self._parts, self._postings = parts, None
        self._rows = np.sort(np.concatenate([rows for rows, _ in parts]))

    def _settle(self) -> Any:
        """Return all documents (N, V) in the order of their rows, after they were turned round as postings (V, N)."""
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
                row that is there already or given twice.
        """
        checked = self._matrix(vectors, "vectors")
        new = as_rows(rows, len(vectors))
        check_new(self._rows, new)
        if len(new):
            self._set([*self._parts, (new, checked)])

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
        keep = np.ones(len(self), dtype=bool)
        keep[places_of_known(self._rows, rows)] = False
        self._set([(self._rows[keep], self._settle()[keep])])

    def search(self, queries: SparseEmbeddings, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best ``k`` rows of each query; equal scores by lower row.

        Args:
            queries: Q sparse vectors, checked as those of `add`.
            k: Hits for each query, clipped to the rows there are.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over.
        """
        k = clip_k(k, len(self))
        matrix = self._matrix(queries, "queries")
        self._settle()
        mask = None if allowed is None else mask_of(self._rows, allowed)
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries) if k else 0, QUERY_BLOCK):
            found = matrix[start : start + QUERY_BLOCK] @ self._postings  # (block, N), entries where any is shared
            found.sort_indices()
            for line in range(found.shape[0]):
                part = slice(found.indptr[line], found.indptr[line + 1])
                places, values = found.indices[part], found.data[part]
                keep = values > 0 if mask is None else (values > 0) & mask[places]
                places, values = places[keep], values[keep]
                best = top_columns(values, k)
                rows[start + line, : len(best)] = self._rows[places[best]]
                scores[start + line, : len(best)] = values[best]
        return make_hits(rows, scores)

    def take(self, rows: np.ndarray) -> SparseEmbeddings:
        """Return the vectors of ``rows`` (n,) in that order; raise `NotFoundError` for a row that is not there."""
        found = self._settle()[places_of_known(self._rows, rows)]
        nothing = np.zeros(found.shape[0], dtype=np.int64)
        offsets = found.indptr.astype(np.int64)
        return SparseEmbeddings(found.indices.astype(np.int64), found.data, offsets, nothing, nothing.astype(bool))

    def _matrix(self, vectors: SparseEmbeddings, field: str) -> Any:
        """Return sparse vectors as a (n, V) matrix, or say what is wrong with them."""
        indices, values = np.asarray(vectors.indices), np.asarray(vectors.values, dtype=np.float32)
        offsets = np.asarray(vectors.offsets)
        lengths = np.diff(offsets)
        whole = offsets.ndim == 1 and offsets.size and offsets[0] == 0 and (lengths >= 0).all()
        if not (whole and len(indices) == len(values) == offsets[-1]):
            message = f"{field}: {len(indices)} entries and {len(values)} weights do not fit their offsets"
            raise InputError(message, field=field)
        of = np.repeat(np.arange(len(lengths)), lengths)

        def refuse(bad: np.ndarray, what: str) -> None:
            if bad.any():
                raise InputError(f"{field}: vector {int(of[np.argmax(bad)])} {what}", field=field)

        refuse(~np.isfinite(values), "holds NaN or infinity")
        refuse(values < 0, "holds a negative weight")
        refuse((indices < 0) | (indices >= self.dim), f"holds an entry that is not from 0 to {self.dim - 1}")
        order = np.lexsort((indices, of))
        indices, values = indices[order], values[order]
        twice = np.zeros(len(indices), dtype=bool)
        twice[1:] = (indices[1:] == indices[:-1]) & (of[1:] == of[:-1])
        refuse(twice, "holds an entry twice")
        return _matrix_of(values, indices, offsets, self.dim)

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory`` as `indexing.storage.engine_files.save_engine` does."""
        documents = self._settle()
        arrays = (self._rows, *(np.asarray(a, np.int64) for a in (documents.indptr, documents.indices)), documents.data)
        files = {name: array_writer(values) for name, values in zip(FILES, arrays, strict=True)}
        save_engine(directory, self.kind, {"dim": self.dim}, files, fingerprint)

    @classmethod
    def load(cls, directory: Path, fingerprint: str | None = None) -> SparseIndex:
        """Return the index that `save` wrote; the errors are those of `indexing.storage.engine_files.open_engine`."""
        opened = open_engine(directory, cls.kind, fingerprint)
        rows, offsets, indices, values = (read_array(opened.files[name]) for name in FILES)
        index = cls(opened.fields["dim"])
        try:
            index._set([(rows, _matrix_of(values, indices, offsets, index.dim))])
            index._settle()
        except (ValueError, IndexError) as error:
            raise CorruptFileError(f"{directory} does not hold sparse vectors: {error}; {ENGINE_REMEDY}") from None
        return index


def _matrix_of(values: np.ndarray, indices: np.ndarray, offsets: np.ndarray, width: int) -> Any:
    from scipy.sparse import csr_array  # late: it takes longer to import than all of ours

    return csr_array((values, indices, offsets), shape=(len(offsets) - 1, width))
