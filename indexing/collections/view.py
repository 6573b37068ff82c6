"""A snapshot of a collection, and everything that can be read from one. It never changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

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

FEW_DEAD = 100  # so many deleted rows are searched too and left out of the hits; more are kept from the search


@dataclass(frozen=True, eq=False)
class Part:
    """One segment as a snapshot sees it.

    Attributes:
        segment: Where the rows are.
        base: Added to the numbers of its rows.
        count: Rows of it that the snapshot sees.
        live: (count,) bool, which of them were not deleted; None where all are there.
    """

    segment: Segment | Memory
    base: int
    count: int
    live: np.ndarray | None = None

    @cached_property
    def rows(self) -> np.ndarray:
        """(n,) int64, the rows that were not deleted."""
        return np.arange(self.count) if self.live is None else np.flatnonzero(self.live)

    @cached_property
    def sequences(self) -> np.ndarray:
        """(count,) int64, ascending, the number of each row in the order of writing: its name in the collection."""
        return self.segment.sequences(self.count) + self.base

    @property
    def dead(self) -> int:
        """How many rows were deleted."""
        return self.count - len(self.rows)

    def is_live(self, row: int) -> bool:
        """Say whether a row was not deleted."""
        return self.live is None or bool(self.live[row])

    def mask(self, wanted: Filter | None) -> np.ndarray | None:
        """Return which rows (count,) bool may be found; None for all."""
        if wanted is None:
            return self.live
        passing = self.segment.mask(wanted, self.count)
        return passing if self.live is None else passing & self.live

    def without(self, rows: np.ndarray) -> Part:
        """Return the same with ``rows`` deleted."""
        live = np.ones(self.count, dtype=bool) if self.live is None else self.live.copy()
        live[rows] = False
        return Part(self.segment, self.base, self.count, live)

    def postings(self, name: str, word: str) -> Postings:
        """Return the live rows with a word, and how often they have it."""
        rows, counts = self.segment.engines[name].postings(word, self.count)
        if self.live is None:
            return rows, counts
        keep = self.live[rows]
        return rows[keep], counts[keep]

    def search(self, name: str, queries: Any, k: int, wanted: Filter | None) -> Hits:
        """Return the best rows by one field of vectors, named by their numbers."""
        hits = self._hits(name, queries, k, wanted)
        return Hits(self.sequences[hits.rows] if self.count else hits.rows, hits.scores, hits.counts)

    def _hits(self, name: str, queries: Any, k: int, wanted: Filter | None) -> Hits:
        engine = self.segment.engines[name]
        mask = self.mask(wanted)
        allowed = None if mask is None else self.rows if wanted is None else np.flatnonzero(mask)
        if isinstance(self.segment, Memory):
            return engine.search(queries, k, allowed, self.count)
        if mask is None or wanted is not None or self.dead > FEW_DEAD:
            return engine.search(queries, k, allowed)
        hits: Hits = engine.search(queries, k + self.dead)
        rows = _marked(hits)
        return first(make_hits(np.where(mask[rows], rows, -1), hits.scores), k)


View = tuple[Part, ...]


def first(hits: Hits, k: int) -> Hits:
    """Return the best ``k`` hits of each query."""
    return Hits(hits.rows[:, :k], hits.scores[:, :k], np.minimum(hits.counts, k))


def size(view: View) -> int:
    """Return how many documents there are."""
    return sum(len(part.rows) for part in view)


def merge(found: Sequence[Hits], k: int) -> Hits:
    """Return the best ``k`` of several engines' hits for the same queries, over different rows."""
    rows = np.concatenate([_marked(hits) for hits in found], axis=1)
    return first(make_hits(rows, np.concatenate([hits.scores for hits in found], axis=1)), k)


def _marked(hits: Hits) -> np.ndarray:
    return np.where(np.arange(hits.rows.shape[1]) < hits.counts[:, None], hits.rows, -1)


def search_field(view: View, name: str, field: Field, queries: Any, k: int, wanted: Filter | None) -> Hits:
    """Return the best ``k`` documents by one field; rows are numbers in the order of writing.

    Args:
        view: What is searched.
        name: Of the field.
        field: What it is.
        queries: Q vectors, or Q texts for words.
        k: Hits for each query.
        wanted: What they must pass.
    """
    if field.output == "words":
        return _search_words(view, name, queries, k, wanted)
    parts = [part for part in view if len(part.rows)]
    if not parts:
        empty = np.empty((len(queries), 0))
        return make_hits(empty.astype(np.int64), empty.astype(np.float32))
    return merge([part.search(name, queries, k, wanted) for part in parts], k)


def _search_words(view: View, name: str, queries: Sequence[str], k: int, wanted: Filter | None) -> Hits:
    """Return the best ``k`` documents of each text by BM25, see `indexing.engines.bm25_index`."""
    segments = [
        PostingsSegment(
            partial(part.postings, name),
            part.segment.engines[name].lengths(part.count),
            part.rows,
            part.mask(wanted),
            part.sequences,
        )
        for part in view
        if len(part.rows)
    ]
    return rank(segments, queries, k)


def locate(view: View, sequences: np.ndarray) -> list[tuple[int, int]]:
    """Return part and row of each number in the order of writing; all of them are there."""
    places = [(-1, -1)] * len(sequences)
    for number, part in enumerate(view):
        if not part.count:
            continue
        rows = np.minimum(np.searchsorted(part.sequences, sequences), part.count - 1)
        for place in np.flatnonzero(part.sequences[rows] == sequences):
            if part.is_live(row := int(rows[place])):
                places[place] = (number, row)
    return places


def documents_at(view: View, sequences: Sequence[int]) -> dict[int, Document]:
    """Return the document of each number in the order of writing."""
    distinct = np.array(sorted(set(sequences)), dtype=np.int64)
    rows_of: dict[int, list[tuple[int, int]]] = {}
    for name, (part, row) in zip(distinct.tolist(), locate(view, distinct), strict=True):
        rows_of.setdefault(part, []).append((name, row))
    found: dict[int, Document] = {}
    for part, pairs in rows_of.items():
        documents = view[part].segment.get([row for _, row in pairs])
        found.update(zip((name for name, _ in pairs), documents, strict=True))
    return found


def find(view: View, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return part and row of each of ``ids`` that is there."""
    found: dict[str, tuple[int, int]] = {}
    for number in reversed(range(len(view))):  # what was written last is asked for most
        part = view[number]
        if len(part.rows):
            missing = [name for name in ids if name not in found]
            rows = part.segment.find(missing, part.count)
            found.update((name, (number, row)) for name, row in rows.items() if part.is_live(row))
    return found


def scroll(view: View, after: int, limit: int, wanted: Filter | None) -> list[tuple[int, Document]]:
    """Return the first ``limit`` documents whose number in the order of writing is above ``after``, with the number."""
    numbers = []
    for part in view:
        mask = part.mask(wanted)
        start = int(np.searchsorted(part.sequences, after, side="right"))
        rows = np.arange(start, part.count) if mask is None else start + np.flatnonzero(mask[start:])
        numbers.append(part.sequences[rows[:limit]])
    chosen = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *numbers]))[:limit].tolist()
    documents = documents_at(view, chosen)
    return [(number, documents[number]) for number in chosen]


def count(view: View, wanted: Filter | None) -> int:
    """Return how many documents pass a filter."""
    if wanted is None:
        return size(view)
    return sum(int(np.count_nonzero(part.segment.mask(wanted, part.count)[part.rows])) for part in view)


def facet(view: View, path: str, limit: int, wanted: Filter | None) -> list[tuple[Any, int]]:
    """Return the values at a path of the metadata and how many documents have each, most frequent first."""
    if not isinstance(path, str) or not path:
        raise InputError(f"field must be the name of a field, got {path!r}", field="field")
    counts: Counter[tuple[int, Any]] = Counter()
    for part in view:
        mask = part.mask(wanted)
        for kind, value, rows in part.segment.groups(path, part.count):
            distinct = np.unique(rows)
            if found := len(distinct) if mask is None else int(np.count_nonzero(mask[distinct])):
                counts[kind, value] += found
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [(plain(kind, value), found) for (kind, value), found in ordered]


def token_scores(view: View, name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return exact MaxSim by a field of token vectors: query (q, d) and numbers (n,) -> scores (n,) float32."""

    def score(query: np.ndarray, sequences: np.ndarray) -> np.ndarray:
        scores = np.zeros(len(sequences), dtype=np.float32)
        places = np.array(locate(view, sequences), dtype=np.int64).reshape(-1, 2)
        for number in np.unique(places[:, 0]):
            at = np.flatnonzero(places[:, 0] == number)
            engine, rows = view[number].segment.engines[name], places[at, 1]
            if isinstance(view[number].segment, Memory):
                scores[at] = engine.score(query, rows)
            else:
                scores[at] = engine.store.score(query, engine.store.table.find_known(rows))
        return scores

    return score
