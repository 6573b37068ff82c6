"""What engines over token vectors share: rows in and out, filters, hits, and ColBERT-PRF as an option of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.errors import InputError
from embedserve.types import TokenEmbeddings
from indexing.base import Hits, clip_k, make_hits
from indexing.engines.exact import top_columns
from indexing.late_interaction.ball_carving import carve
from indexing.late_interaction.colbert_prf import NearestTokens, cluster, document_frequencies, expand
from indexing.late_interaction.ragged_checks import check_tokens
from indexing.late_interaction.token_store import TokenStore

Ranked = tuple[np.ndarray, np.ndarray]
Rank = Callable[[np.ndarray, np.ndarray | None, int], Ranked]
LOOKUP_DOCUMENTS = 512


def check_count(name: str, value: int) -> None:
    """Raise `InputError` unless ``value`` is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}", field=name)


@dataclass(frozen=True)
class Feedback:
    """ColBERT-PRF (Wang et al. 2021, arXiv 2106.11251): search, expand the query by what was found, search again.

    Attributes:
        documents: Best documents that are read.
        clusters: Of their tokens.
        rows: New rows of the query at most.
        beta: Scales their weights.
        skips: Vocabulary entries that stand for no word.
        nearest: Tokens that say which entry a cluster stands for.
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
        for name, least in (("documents", 1), ("clusters", 1), ("rows", 0), ("nearest", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                field = f"feedback.{name}"
                raise InputError(f"{field} must be a whole number of at least {least}, got {value!r}", field=field)


class MultiIndex:
    """Documents of several vectors each, by row number; the engines differ in how they `search`.

    Safe to search from many threads, as long as nobody adds or removes.

    Args:
        store: The token vectors.
    """

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self._frequencies: np.ndarray | None = None

    @property
    def dim(self) -> int:
        """Numbers in a token vector."""
        return self.store.dim

    @property
    def buried(self) -> int:
        """How many removed documents still take room; building anew frees it."""
        return len(self.store.table.rows) - len(self.store)

    def __len__(self) -> int:
        return len(self.store)

    def add(self, rows: np.ndarray, documents: TokenEmbeddings) -> None:
        """Add ``documents`` (n) under the row numbers ``rows`` (n,); the errors are those of `TokenStore.add`."""
        self.store.add(rows, documents)
        self._frequencies = None

    def remove(self, rows: np.ndarray) -> None:
        """Take ``rows`` (n,) out; raise `NotFoundError` for a row that is not there, leaving everything as it was."""
        self.store.remove(rows)
        self._frequencies = None

    def _places(self, allowed: np.ndarray | None) -> np.ndarray:
        """Return the places that may be found, in the order of their rows."""
        return self.store.places if allowed is None else self.store.find(allowed)

    def _exact(
        self, query: np.ndarray, weights: np.ndarray | None, k: int, places: np.ndarray, tau: float | None = None
    ) -> Ranked:
        """Return the best ``k`` of ``places``, in the order of their rows, by MaxSim: places and scores.

        With ``tau`` like rows of the query are joined first (`ball_carving.carve`).
        """
        if tau is not None:
            query, weights = carve(query, weights, tau), None
        scores = self.store.score(query, places, weights)
        best = top_columns(scores, k)
        return places[best], scores[best]

    def _search_each(
        self, queries: TokenEmbeddings, k: int, rank: Rank, feedback: Feedback | None, around: np.ndarray | int
    ) -> Hits:
        """Return the hits of each query.

        Args:
            queries: Q of them.
            k: Hits for each, clipped to the number of documents.
            rank: The search itself: query (q, d), weights (q,) or None, k -> places and scores, best first.
            feedback: Expands the queries.
            around: Where feedback looks for the words that its clusters stand for: places, or the number of best ones.
        """
        vectors, offsets = check_tokens(queries, self.dim, "queries")
        k = clip_k(k, len(self))
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        for number in range(len(queries) if k else 0):
            query, weights = vectors[offsets[number] : offsets[number + 1]], None
            if feedback is not None:
                query, weights = self._expanded(query, rank, feedback, around)
            places, found = rank(query, weights, k)
            rows[number, : len(places)] = self.store.table.rows[places]
            scores[number, : len(places)] = found
        return make_hits(rows, scores)

    def _expanded(
        self, query: np.ndarray, rank: Rank, feedback: Feedback, around: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the rows of the expanded query and their weights."""
        wanted = feedback.documents if isinstance(around, np.ndarray) else max(feedback.documents, around)
        places, _ = rank(query, None, min(wanted, len(self)))
        if not len(places):
            return query, None
        read = self.store.read(places[: feedback.documents]).vectors
        centroids = cluster(read, feedback.clusters, feedback.seed)
        if self._frequencies is None:
            self._frequencies = stored_frequencies(self.store)
        expanded = expand(
            query,
            centroids,
            nearest_stored(self.store, around if isinstance(around, np.ndarray) else places, feedback.nearest),
            self._frequencies,
            len(self),
            rows=min(feedback.rows, len(centroids)),
            beta=feedback.beta,
            skips=feedback.skips,
        )
        return expanded.rows, expanded.weights


def stored_frequencies(store: TokenStore) -> np.ndarray:
    """Return in how many of the store's documents each vocabulary entry occurs, (V,) int64."""
    ids, offsets = store.read_ids(store.places)
    nothing = np.empty(0, dtype=np.int64)
    documents = TokenEmbeddings(np.empty((0, store.dim), dtype=np.float32), offsets, ids, nothing, nothing)
    return document_frequencies(documents, int(ids.max(initial=0)) + 1)


def nearest_stored(store: TokenStore, places: np.ndarray, count: int) -> NearestTokens:
    """Return the exact lookup over the documents at ``places``: centroids (c, d) -> entries (c, count) int64."""

    def lookup(centroids: np.ndarray) -> np.ndarray:
        scores, entries = np.zeros((len(centroids), 0), np.float32), np.zeros((len(centroids), 0), np.int64)
        for start in range(0, len(places), LOOKUP_DOCUMENTS):
            block = store.read(places[start : start + LOOKUP_DOCUMENTS])
            found = centroids @ block.vectors.T
            scores = np.concatenate([scores, found], axis=1)
            entries = np.concatenate([entries, np.broadcast_to(block.token_ids, found.shape)], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            scores, entries = np.take_along_axis(scores, best, 1), np.take_along_axis(entries, best, 1)
        return entries

    return lookup
