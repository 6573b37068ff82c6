"""ColBERT-PRF (Wang et al. 2021, arXiv 2106.11251): a query learns from the documents it finds first.

The token vectors of the best documents are clustered; a cluster whose nearest tokens in the collection are rare words
becomes a further row of the query, weighted by how rare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.errors import InputError
from embedserve.scoring import maxsim
from embedserve.types import TokenEmbeddings

NearestTokens = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExpandedQuery:
    """A query with further rows.

    Attributes:
        rows: (q + e, d) float32: the query's own, then the new ones, which are not of unit length.
        weights: (q + e,) float32: 1 for the query's own.
        tokens: (e,) int64: the vocabulary entry that each new row stands for.
    """

    rows: np.ndarray
    weights: np.ndarray
    tokens: np.ndarray


def document_frequencies(documents: TokenEmbeddings, vocabulary: int) -> np.ndarray:
    """Return df (vocabulary,) int64: in how many documents each entry occurs."""
    place = np.repeat(np.arange(len(documents)), np.diff(documents.offsets))
    pairs = np.unique(np.stack([place, documents.token_ids]), axis=1)[1]
    return np.bincount(pairs[pairs >= 0], minlength=vocabulary)


def nearest_tokens(documents: TokenEmbeddings, count: int = 10, rows: int = 1 << 20) -> NearestTokens:
    """Return the exact lookup over a collection: centroids (k, d) -> entries (k, count) int64 of the nearest rows.

    Args:
        documents: The collection.
        count: How many rows.
        rows: Rows compared at a time.
    """

    def lookup(centroids: np.ndarray) -> np.ndarray:
        scores, entries = np.zeros((len(centroids), 0), np.float32), np.zeros((len(centroids), 0), np.int64)
        for start in range(0, len(documents.vectors), rows):
            block = slice(start, start + rows)
            found = centroids @ documents.vectors[block].T
            scores = np.concatenate([scores, found], axis=1)
            ids = np.broadcast_to(documents.token_ids[block], found.shape)
            entries = np.concatenate([entries, ids], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
            scores, entries = np.take_along_axis(scores, best, 1), np.take_along_axis(entries, best, 1)
        return entries

    return lookup


def cluster(feedback: np.ndarray, clusters: int = 24, seed: int = 42) -> np.ndarray:
    """Return the centroids (k, d) float32 of the feedback documents' rows (n, d), by k-means; k is at most n."""
    from sklearn.cluster import KMeans

    found = KMeans(min(clusters, len(feedback)), random_state=seed, n_init=10).fit(feedback)
    return np.asarray(found.cluster_centers_, dtype=np.float32)


def expand(
    query: np.ndarray,
    centroids: np.ndarray,
    lookup: NearestTokens,
    frequencies: np.ndarray,
    num_documents: int,
    *,
    rows: int = 10,
    beta: float = 1.0,
    skips: Sequence[int] = (),
) -> ExpandedQuery:
    """Return the query with the ``rows`` centroids whose words are rarest.

    A centroid stands for the entry that most of its nearest rows were read at; ties go to the nearer. Its weight is
    beta · ln((N + 1) / (df + 1)).

    Args:
        query: (q, d).
        centroids: (k, d), from `cluster`.
        lookup: Such as `nearest_tokens`.
        frequencies: From `document_frequencies`.
        num_documents: N.
        rows: New rows at most.
        beta: Scales their weights.
        skips: Entries that stand for no word, such as prefixes and punctuation.

    Raises:
        InputError: There would be fewer centroids than rows asked for, or beta is negative.
    """
    if beta < 0:
        raise InputError(f"beta must not be negative, got {beta}", field="beta")
    if not 0 <= rows <= len(centroids):
        message = f"rows must lie from 0 to the number of clusters ({len(centroids)}), got {rows}"
        raise InputError(f"{message}; raise clusters or lower rows", field="rows")
    entries = lookup(centroids)
    ids = np.array([_commonest([entry for entry in row if entry >= 0 and entry not in skips]) for row in entries])
    known = np.flatnonzero(ids >= 0)
    rarity = np.log((num_documents + 1) / (frequencies[ids[known]] + 1))
    chosen = np.argsort(-rarity, kind="stable")[:rows]
    new = centroids[known[chosen]]
    weights = np.concatenate([np.ones(len(query)), beta * rarity[chosen]]).astype(np.float32)
    return ExpandedQuery(np.concatenate([query, new]).astype(np.float32), weights, ids[known[chosen]].astype(np.int64))


def _commonest(entries: Sequence[int]) -> int:
    """Return the entry that occurs most often, of several the first; -1 where there is none."""
    return max(entries, key=list(entries).count) if len(entries) else -1


def search_with_feedback(
    query: np.ndarray,
    documents: TokenEmbeddings,
    lookup: NearestTokens,
    frequencies: np.ndarray,
    *,
    feedback: int = 3,
    clusters: int = 24,
    rows: int = 10,
    beta: float = 1.0,
    skips: Sequence[int] = (),
    seed: int = 42,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank a collection by MaxSim, expand the query from the best ``feedback`` documents, and rank again.

    Returns:
        Rows of documents (N,) int64, best first, and their scores (N,) float32.
    """
    best = np.argsort(-maxsim(query, documents), kind="stable")[:feedback]
    centroids = cluster(np.concatenate([documents[place] for place in best]), clusters, seed)
    expanded = expand(
        query, centroids, lookup, frequencies, len(documents), rows=min(rows, len(centroids)), beta=beta, skips=skips
    )
    scores = maxsim(expanded.rows, documents, expanded.weights)
    order = np.argsort(-scores, kind="stable")
    return order, scores[order]
