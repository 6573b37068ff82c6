"""The base of the engines over token vectors: exact MaxSim of candidates, and ColBERT-PRF."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.errors import InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits, clip_k, make_hits
from indexing.engines.exact import top_columns
from indexing.late_interaction.ball_carving import carve
from indexing.late_interaction.colbert_prf import (
    NearestTokens,
    cluster,
    document_frequencies,
    expand,
    nearest_entries,
)
from indexing.late_interaction.ragged_checks import check_tokens
from indexing.late_interaction.token_store import TokenStore

Retrieve = Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]
Ranking = tuple[np.ndarray, np.ndarray]
Rank = Callable[[np.ndarray, np.ndarray | None, int], Ranking]
EXACT_BELOW = 10_000
LOOKUP_DOCUMENTS = 512


def check_count(name: str, value: int | None) -> None:
    """Raise `InputError` unless ``value`` is an integer of at least 1, or None."""
    if value is not None and (type(value) is not int or value < 1):
        raise InputError(f"{name} must be an integer of at least 1, got {value!r}", field=name)


@dataclass(frozen=True)
class Feedback:
    """ColBERT-PRF (Wang et al. 2021, arXiv 2106.11251): search, expand the query from the best documents, search again.

    Attributes:
        documents: Best documents that are read.
        clusters: Clusters of their tokens.
        rows: Maximum number of new query rows.
        beta: Factor of their weights.
        skips: Vocabulary entries that are not words.
        nearest: Nearest tokens that determine the vocabulary entry of a cluster.
        seed: Of the clustering.
    """

    documents: int = 3
    clusters: int = 24
    rows: int = 10
    beta: float = 1.0
    skips: Sequence[int] = ()
    nearest: int = 10
    seed: int = 42

    def __post_init__(self) -> None:
        for name, low in (("documents", 1), ("clusters", 1), ("rows", 0), ("nearest", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                field = f"feedback.{name}"
                raise InputError(f"{field} must be an integer of at least {low}, got {value!r}", field=field)


class MultiIndex:
    """Documents of several vectors each, by row number. Subclasses add candidate retrieval and files.

    Not thread-safe: do not search an index while it is being modified. Concurrent searches are safe.

    Args:
        store: The token vectors.
        exact_below: If fewer documents than this can match a query, all of them are scored. Default: 10,000.
    """

    def __init__(self, store: TokenStore, exact_below: int = EXACT_BELOW) -> None:
        check_count("exact_below", exact_below)
        self.store, self.exact_below = store, exact_below
        self._frequencies: np.ndarray | None = None

    @property
    def dim(self) -> int:
        """Dimensions of a token vector."""
        return self.store.dim

    @property
    def num_removed(self) -> int:
        """Removed documents that still occupy space; rebuild the index to free it."""
        return self.store.table.num_removed

    def __len__(self) -> int:
        return len(self.store)

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`."""
        self.store.add(rows, documents)
        self._frequencies = None

    def remove(self, rows: np.ndarray) -> None:
        """Remove ``rows`` (n,); raise `NotFoundError` for a missing row and change nothing."""
        self.store.remove(rows)
        self._frequencies = None

    def _search(
        self,
        queries: TokenEmbeddings,
        k: int,
        allowed: np.ndarray | None,
        retrieve: Retrieve | None,
        *,
        candidates: int | None = None,
        tau: float | None,
        feedback: Feedback | None,
    ) -> Hits:
        """Return the best ``k`` documents of each query by exact MaxSim over its candidates.

        Args:
            queries: Q queries.
            k: Hits per query, clipped to the number of documents.
            allowed: (m,) int64, the only rows that may match; missing rows are ignored.
            retrieve: Query rows (q, d), their weights (q,) or None, number of candidates -> positions of the
                candidates, ascending by row. All documents are scored if it is None, or if fewer than ``exact_below``
                may match.
            candidates: Candidates per query, at least ``k``. Required with ``retrieve``.
            tau: Merges query rows of at least this cosine (`ball_carving.carve`).
            feedback: Expands the queries. Vocabulary entries are looked up in the candidates or, without
                ``candidates``, in all documents that may match.
        """
        positions = self.store.positions if allowed is None else self.store.find(allowed)
        exhaustive = retrieve is None or len(positions) < self.exact_below

        def rank(query: np.ndarray, weights: np.ndarray | None, k: int) -> Ranking:
            if exhaustive or retrieve is None:
                return self._score(query, weights, k, positions, tau)
            return self._score(query, weights, k, retrieve(query, weights, max(candidates or 0, k)), tau)

        vectors, offsets = check_tokens(queries, self.dim, "queries")
        k = clip_k(k, len(self))
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for number in range(len(queries) if k else 0):
            query, weights = vectors[offsets[number] : offsets[number + 1]], None
            if feedback is not None:
                query, weights = self._expand(query, rank, feedback, candidates or positions)
            best, best_scores = rank(query, weights, k)
            rows[number, : len(best)] = self.store.table.rows[best]
            scores[number, : len(best)] = best_scores
        return make_hits(rows, scores)

    def _score(
        self, query: np.ndarray, weights: np.ndarray | None, k: int, positions: np.ndarray, tau: float | None
    ) -> Ranking:
        """Return the best ``k`` of ``positions``, which ascend by row, and their MaxSim."""
        if tau is not None:
            query, weights = carve(query, weights, tau), None
        scores = self.store.score(query, positions, weights)
        best = top_columns(scores, k)
        return positions[best], scores[best]

    def _expand(
        self, query: np.ndarray, rank: Rank, feedback: Feedback, scope: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the rows of the expanded query and their weights.

        Args:
            query: (q, d).
            rank: Query, weights, k -> positions and scores, best first.
            feedback: The parameters.
            scope: The documents in which vocabulary entries are looked up: positions, or the number of best documents.
        """
        count = feedback.documents if isinstance(scope, np.ndarray) else max(feedback.documents, scope)
        best, _ = rank(query, None, min(count, len(self)))
        if not len(best):
            return query, None
        centroids = cluster(self.store.read(best[: feedback.documents]).vectors, feedback.clusters, feedback.seed)
        if self._frequencies is None:
            self._frequencies = stored_frequencies(self.store)
        expanded = expand(
            query,
            centroids,
            nearest_stored(self.store, scope if isinstance(scope, np.ndarray) else best, feedback.nearest),
            self._frequencies,
            len(self),
            rows=min(feedback.rows, len(centroids)),
            beta=feedback.beta,
            skips=feedback.skips,
        )
        return expanded.rows, expanded.weights


def stored_frequencies(store: TokenStore) -> np.ndarray:
    """Return the number of documents in which each vocabulary entry occurs, (V,) int64."""
    ids, offsets = store.read_ids(store.positions)
    empty = np.empty(0, dtype=np.int64)
    documents = TokenEmbeddings(np.empty((0, store.dim), dtype=np.float32), offsets, ids, empty, empty)
    return document_frequencies(documents, int(ids.max(initial=0)) + 1)


def nearest_stored(store: TokenStore, positions: np.ndarray, count: int) -> NearestTokens:
    """Return the exact lookup in the documents at ``positions``: centroids (c, d) -> entries (c, count) int64."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(positions), LOOKUP_DOCUMENTS):
            block = store.read(positions[start : start + LOOKUP_DOCUMENTS])
            yield block.vectors, block.token_ids

    return lambda centroids: nearest_entries(centroids, blocks(), count)
