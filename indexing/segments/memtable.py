"""The memtable: documents that are in the log but not in a segment yet, searched exhaustively.

All arrays are append-only. A reader passes the row count of its snapshot and ignores later rows, so it needs no lock.
"""

from __future__ import annotations

import sqlite3
import weakref
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from embedserve.ragged import take_rows
from embedserve.types import SparseEmbeddings, TokenEmbeddings
from indexing.base import Hits, clip_k, make_hits, unit
from indexing.engines.bm25_postings import GrowingWords
from indexing.engines.exact import ROW_BLOCK, search_blocks, top_columns
from indexing.query.filters import Condition, Filter, evaluate
from indexing.segments.document_table import DocumentTable, matching_rows, value_groups
from indexing.segments.fields import Field, Vectors, vector_fields
from indexing.sources.corpus import Document
from indexing.storage.growing_array import GrowingArray


class Memory:
    """Append-only documents and vectors; has the read methods of `Segment`.

    Args:
        fields: Of the collection.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self.fields = fields
        self.count = 0
        self.num_bytes = 0
        self.engines: dict[str, Any] = {name: _ENGINES[field.output](field) for name, field in fields.items()}
        self._documents: list[Document] = []
        self._metadata: list[bytes] = []
        self._rows_of: dict[str, array[int]] = {}
        self._sequences = GrowingArray(np.empty(0, dtype=np.int64))
        self._lock = Lock()  # of the database, which is extended when a filter needs it
        self._table: DocumentTable | None = None
        self._connection: sqlite3.Connection | None = None
        self._in_table = 0

    def append(
        self, documents: Sequence[Document], metadata: Sequence[bytes], vectors: Mapping[str, Vectors], first: int
    ) -> None:
        """Append documents, with their metadata as JSON; their sequence numbers start at ``first``."""
        for name, field in self.fields.items():
            texts = field.output == "words"
            self.engines[name].append([document.content for document in documents] if texts else vectors[name])
        self._sequences.append(np.arange(first, first + len(documents), dtype=np.int64))
        self._documents += documents
        self._metadata += metadata
        for row, document in enumerate(documents, start=self.count):
            self._rows_of.setdefault(document.id, array("q")).append(row)
        self.count += len(documents)

    def sequences(self, count: int) -> np.ndarray:
        """Return the sequence number (count,) int64 of each row, ascending."""
        return self._sequences.values[:count]

    def get(self, rows: Sequence[int]) -> list[Document]:
        """Return the documents at ``rows``."""
        return [self._documents[row] for row in rows]

    def find(self, ids: Sequence[str], count: int) -> dict[str, int]:
        """Return the last row below ``count`` of each id that has one."""
        row_of = {}
        for name in ids:
            rows = self._rows_of.get(name)
            position = bisect_left(rows, count) if rows is not None else 0
            if rows is not None and position:
                row_of[name] = rows[position - 1]
        return row_of

    def mask(self, condition: Filter, count: int) -> np.ndarray:
        """Return which of the first ``count`` rows match a filter, (count,) bool."""

        def matches(comparison: Condition) -> np.ndarray:
            rows = matching_rows(connection, comparison)
            mask = np.zeros(count, dtype=bool)
            mask[rows[rows < count]] = True
            return mask

        with self._lock:
            connection = self._database(count)
            return evaluate(condition, matches)

    def groups(self, path: str, count: int) -> list[tuple[int, Any, np.ndarray]]:
        """Return each value at a metadata path of the first ``count`` rows: kind, value, rows."""
        with self._lock:
            groups = value_groups(self._database(count), path)
        return [(kind, value, rows[rows < count]) for kind, value, rows in groups]

    def _database(self, count: int) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._connection.close)
            self._table = DocumentTable(self._connection, unique=False)
        if self._table is not None and self._in_table < count:
            rows = slice(self._in_table, count)
            self._table.insert(self._in_table, self._documents[rows], self._metadata[rows])
            self._in_table = count
        return self._connection

    def take(self, name: str, rows: np.ndarray) -> Vectors:
        """Return the vectors at ``rows`` (m,) of a field with vectors."""
        vectors: Vectors = self.engines[name].take(rows)
        return vectors

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[list[Document], dict[str, Vectors], np.ndarray]]:
        """Yield the arguments of `SegmentWriter.add` for ``rows`` (m,), ``size`` rows at a time."""
        names = vector_fields(self.fields)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            vectors = {name: self.take(name, part) for name in names}
            yield self.get(part.tolist()), vectors, self._sequences.values[part]


class _Dense:
    """Dense vectors as given, and normalised for cosine."""

    def __init__(self, field: Field) -> None:
        self._cosine, self.dim = field.metric == "cosine", field.dim
        self._original = GrowingArray(np.empty((0, field.dim), dtype=np.float32))
        self._normalised = GrowingArray(np.empty((0, field.dim), dtype=np.float32)) if self._cosine else self._original

    def append(self, vectors: np.ndarray) -> None:
        if self._cosine:
            self._normalised.append(unit(vectors))
        self._original.append(vectors)

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self._original.values[rows]

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None, count: int) -> Hits:
        normalised = self._normalised.values[:count]
        rows = np.arange(count) if allowed is None else allowed

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for start in range(0, len(rows), ROW_BLOCK):
                part = rows[start : start + ROW_BLOCK]
                yield part, normalised[start : start + ROW_BLOCK] if allowed is None else normalised[part]

        return search_blocks(unit(queries) if self._cosine else queries, clip_k(k, len(rows)), blocks())


class _Multi:
    """Token vectors, stored as float16 as in a segment."""

    def __init__(self, field: Field) -> None:
        self._values = GrowingArray(np.empty((0, field.dim), dtype=np.float16))
        self._ids = GrowingArray(np.empty(0, dtype=np.int64))
        self._offsets = GrowingArray(np.zeros(1, dtype=np.int64))

    def append(self, vectors: TokenEmbeddings) -> None:
        self._offsets.append(vectors.offsets[1:] + len(self._values))
        self._values.append(vectors.vectors)
        self._ids.append(vectors.token_ids)

    def take(self, rows: np.ndarray) -> TokenEmbeddings:
        positions, offsets = take_rows(self._offsets.values, rows)
        nothing = np.zeros(len(rows), dtype=bool)
        vectors = self._values.values[positions].astype(np.float32)
        return TokenEmbeddings(vectors, offsets, self._ids.values[positions], np.diff(offsets), nothing)

    def score(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        from indexing.late_interaction.maxsim import maxsim_flat

        positions, offsets = take_rows(self._offsets.values, rows)
        return maxsim_flat(query, self._values.values[positions], offsets)

    def search(self, queries: TokenEmbeddings, k: int, allowed: np.ndarray | None, count: int) -> Hits:
        rows = np.arange(count) if allowed is None else allowed
        width = clip_k(k, len(rows))
        best_rows = np.full((len(queries), width), -1, dtype=np.int64)
        scores = np.zeros((len(queries), width), dtype=np.float32)
        for number in range(len(queries) if width else 0):
            values = self.score(queries[number], rows)
            best = top_columns(values, width)
            best_rows[number], scores[number] = rows[best], values[best]
        return make_hits(best_rows, scores)


class _Sparse:
    """Sparse vectors."""

    def __init__(self, field: Field) -> None:
        self.dim = field.dim
        self._indices = GrowingArray(np.empty(0, dtype=np.int64))
        self._values = GrowingArray(np.empty(0, dtype=np.float32))
        self._offsets = GrowingArray(np.zeros(1, dtype=np.int64))

    def append(self, vectors: SparseEmbeddings) -> None:
        self._offsets.append(np.asarray(vectors.offsets[1:], dtype=np.int64) + len(self._values))
        self._values.append(vectors.values)
        self._indices.append(vectors.indices)

    def take(self, rows: np.ndarray) -> SparseEmbeddings:
        positions, offsets = take_rows(self._offsets.values, rows)
        nothing = np.zeros(len(rows), dtype=np.int64)
        indices, values = self._indices.values[positions], self._values.values[positions]
        return SparseEmbeddings(indices, values, offsets, nothing, nothing.astype(bool))

    def search(self, queries: SparseEmbeddings, k: int, allowed: np.ndarray | None, count: int) -> Hits:
        from indexing.engines.sparse_index import SparseIndex

        rows = np.arange(count) if allowed is None else allowed
        index = SparseIndex(self.dim)
        index.add(rows, self.take(rows))
        return index.search(queries, k)


class _Words(GrowingWords):
    """The words of texts, see `indexing.engines.bm25_postings`."""

    def __init__(self, field: Field) -> None:
        super().__init__()


_ENGINES = {"dense": _Dense, "multi": _Multi, "sparse": _Sparse, "words": _Words}
