"""Read operations on an immutable snapshot of a collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from embedserve.errors import InputError
from indexing.base import Hits, make_hits
from indexing.engines.bm25_index import PostingsSegment, rank
from indexing.engines.bm25_postings import Postings
from indexing.query.filters import Filter
from indexing.query.metadata import plain
from indexing.segments.fields import Field
from indexing.segments.memtable import Memory
from indexing.segments.segment import Segment
from indexing.sources.corpus import Document

FEW_DEAD = 100  # up to this many deleted rows are filtered from the hits; more are excluded from the search


@dataclass(frozen=True, eq=False)
class Part:
    """The visible rows of one segment in a snapshot.

    Attributes:
        segment: Holds the rows.
        base: Added to the sequence numbers of its rows.
        count: Number of its rows that belong to the snapshot.
        live: (count,) bool, False for deleted rows; None if no row is deleted.
    """

    segment: Segment | Memory
    base: int
    count: int
    live: np.ndarray | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """(n,) int64, the live rows."""
        return np.arange(self.count) if self.live is None else np.flatnonzero(self.live)

    @cached_property
    def sequences(self) -> np.ndarray:
        """(count,) int64, ascending: the sequence number of each row, its position in write order."""
        return self.segment.sequences(self.count) + self.base

    @property
    def dead(self) -> int:
        """Number of deleted rows."""
        return self.count - len(self.rows)

    def is_live(self, row: int) -> bool:
        """Return whether a row is not deleted."""
        return self.live is None or bool(self.live[row])

    def mask(self, condition: Filter | None) -> np.ndarray | None:
        """Return which rows (count,) bool are live and match a filter; None for all."""
        if condition is None:
            return self.live
        matching = self.segment.mask(condition, self.count)
        return matching if self.live is None else matching & self.live

    def without(self, rows: np.ndarray) -> Part:
        """Return a copy with ``rows`` deleted."""
        live = np.ones(self.count, dtype=bool) if self.live is None else self.live.copy()
        live[rows] = False
        return Part(self.segment, self.base, self.count, live)

    def postings(self, name: str, word: str) -> Postings:
        """Return the live rows that contain a word, and its frequency in each."""
        rows, counts = self.segment.engines[name].postings(word, self.count)
        if self.live is None:
            return rows, counts
        keep = self.live[rows]
        return rows[keep], counts[keep]

    def search(self, name: str, queries: Any, k: int, condition: Filter | None) -> Hits:
        """Return the best rows by one field of vectors, as sequence numbers."""
        hits = self._hits(name, queries, k, condition)
        return Hits(self.sequences[hits.rows] if self.count else hits.rows, hits.scores, hits.counts)

    def _hits(self, name: str, queries: Any, k: int, condition: Filter | None) -> Hits:
        engine = self.segment.engines[name]
        mask = self.mask(condition)
        allowed = None if mask is None else self.rows if condition is None else np.flatnonzero(mask)
        if isinstance(self.segment, Memory):
            return engine.search(queries, k, allowed, self.count)
        if mask is None or condition is not None or self.dead > FEW_DEAD:
            return engine.search(queries, k, allowed)
        hits: Hits = engine.search(queries, k + self.dead)
        rows = _padded(hits)
        return first(make_hits(np.where(mask[rows], rows, -1), hits.scores), k)


View = tuple[Part, ...]
Location = tuple[int, int]  # index of a part in a view, and a row of it
K = TypeVar("K", int, str)


def first(hits: Hits, k: int) -> Hits:
    """Return the best ``k`` hits of each query."""
    return Hits(hits.rows[:, :k], hits.scores[:, :k], np.minimum(hits.counts, k))


def size(view: View) -> int:
    """Return the number of documents."""
    return sum(len(part.rows) for part in view)


def merge(rankings: Sequence[Hits], k: int) -> Hits:
    """Return the best ``k`` of the hits of several engines for the same queries over disjoint rows."""
    rows = np.concatenate([_padded(hits) for hits in rankings], axis=1)
    return first(make_hits(rows, np.concatenate([hits.scores for hits in rankings], axis=1)), k)


def _padded(hits: Hits) -> np.ndarray:
    """Return the rows of hits with -1 in unused columns."""
    return np.where(np.arange(hits.rows.shape[1]) < hits.counts[:, None], hits.rows, -1)


def search_field(view: View, name: str, field: Field, queries: Any, k: int, condition: Filter | None) -> Hits:
    """Return the best ``k`` documents by one field; rows are sequence numbers.

    Args:
        view: The snapshot.
        name: Name of the field.
        field: Its definition.
        queries: Q vectors, or Q texts for words.
        k: Hits per query.
        condition: Only documents that match.
    """
    if field.output == "words":
        return _search_words(view, name, queries, k, condition)
    parts = [part for part in view if len(part.rows)]
    if not parts:
        empty = np.empty((len(queries), 0))
        return make_hits(empty.astype(np.int64), empty.astype(np.float32))
    return merge([part.search(name, queries, k, condition) for part in parts], k)


def _search_words(view: View, name: str, queries: Sequence[str], k: int, condition: Filter | None) -> Hits:
    """Return the best ``k`` documents of each text by BM25, see `indexing.engines.bm25_index`."""
    segments = [
        PostingsSegment(
            partial(part.postings, name),
            part.segment.engines[name].lengths(part.count),
            part.rows,
            part.mask(condition),
            part.sequences,
        )
        for part in view
        if len(part.rows)
    ]
    return rank(segments, queries, k)


def locate(view: View, sequences: np.ndarray) -> list[Location]:
    """Return the location of each sequence number; (-1, -1) if the document was deleted or replaced."""
    locations = [(-1, -1)] * len(sequences)
    for number, part in enumerate(view):
        if not part.count:
            continue
        rows = np.minimum(np.searchsorted(part.sequences, sequences), part.count - 1)
        for index in np.flatnonzero(part.sequences[rows] == sequences):
            if part.is_live(row := int(rows[index])):
                locations[index] = (number, row)
    return locations


def documents_at(view: View, sequences: Sequence[int]) -> dict[int, Document]:
    """Return the document of each sequence number."""
    distinct = np.array(sorted(set(sequences)), dtype=np.int64)
    return _read(view, zip(distinct.tolist(), locate(view, distinct), strict=True))


def documents_by_id(view: View, ids: Sequence[str]) -> dict[str, Document]:
    """Return the document of each id that exists."""
    return _read(view, find(view, list(dict.fromkeys(ids))).items())


def _read(view: View, locations: Iterable[tuple[K, Location]]) -> dict[K, Document]:
    """Return the document at each location, by its key; one read per part."""
    by_part: dict[int, list[tuple[K, int]]] = {}
    for key, (number, row) in locations:
        by_part.setdefault(number, []).append((key, row))
    documents: dict[K, Document] = {}
    for number, pairs in by_part.items():
        rows = view[number].segment.get([row for _, row in pairs])
        documents.update(zip((key for key, _ in pairs), rows, strict=True))
    return documents


def find(view: View, ids: Sequence[str]) -> dict[str, Location]:
    """Return the location of each id that exists."""
    locations: dict[str, Location] = {}
    for number in reversed(range(len(view))):  # recent documents are looked up most
        part = view[number]
        if len(part.rows):
            missing = [name for name in ids if name not in locations]
            rows = part.segment.find(missing, part.count)
            locations.update((name, (number, row)) for name, row in rows.items() if part.is_live(row))
    return locations


def scroll(view: View, after: int, limit: int, condition: Filter | None) -> list[tuple[int, Document]]:
    """Return the first ``limit`` documents with a sequence number above ``after``, each with its number."""
    numbers = []
    for part in view:
        mask = part.mask(condition)
        start = int(np.searchsorted(part.sequences, after, side="right"))
        rows = np.arange(start, part.count) if mask is None else start + np.flatnonzero(mask[start:])
        numbers.append(part.sequences[rows[:limit]])
    page = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *numbers]))[:limit].tolist()
    documents = documents_at(view, page)
    return [(number, documents[number]) for number in page]


def count(view: View, condition: Filter | None) -> int:
    """Return the number of documents that match a filter."""
    if condition is None:
        return size(view)
    return sum(int(np.count_nonzero(part.segment.mask(condition, part.count)[part.rows])) for part in view)


def facet(view: View, path: str, limit: int, condition: Filter | None) -> list[tuple[Any, int]]:
    """Return the values at a metadata path and their document counts, most frequent first."""
    if not isinstance(path, str) or not path:
        raise InputError(f"field must be the path of a metadata field, got {path!r}", field="field")
    counts: Counter[tuple[int, Any]] = Counter()
    for part in view:
        mask = part.mask(condition)
        for kind, value, rows in part.segment.groups(path, part.count):
            distinct = np.unique(rows)
            if matches := len(distinct) if mask is None else int(np.count_nonzero(mask[distinct])):
                counts[kind, value] += matches
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [(plain(kind, value), matches) for (kind, value), matches in ordered]


def token_scores(view: View, name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return exact MaxSim by a field of token vectors: query (q, d), sequence numbers (n,) -> (n,) float32."""

    def score(query: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(sequences), dtype=np.float32)
        locations = np.array(locate(view, sequences), dtype=np.int64).reshape(-1, 2)
        for number in np.unique(locations[:, 0]):
            indices = np.flatnonzero(locations[:, 0] == number)
            engine, rows = view[number].segment.engines[name], locations[indices, 1]
            if isinstance(view[number].segment, Memory):
                scores[indices] = engine.score(query, rows)
            else:
                scores[indices] = engine.store.score(query, engine.store.table.find_known(rows))
        return scores

    return score
