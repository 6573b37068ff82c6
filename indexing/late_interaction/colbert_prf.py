"""ColBERT-PRF (Wang et al. 2021, arXiv 2106.11251): pseudo-relevance feedback for late interaction.

The token vectors of the best documents are clustered. The centroids whose nearest tokens in the collection are the
rarest words are appended to the query, weighted by their inverse document frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.errors import InputError
from embedserve.scoring import maxsim
from embedserve.types import TokenEmbeddings

NearestTokens = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ExpandedQuery:
    """A query with appended rows.

    Attributes:
        rows: (q + e, d) float32: the original rows, then the new ones, which are not of unit length.
        weights: (q + e,) float32: 1 for the original rows.
        tokens: (e,) int64: the vocabulary entry of each new row.
    """

    rows: np.ndarray
    weights: np.ndarray
    tokens: np.ndarray


def document_frequencies(documents: TokenEmbeddings, vocabulary: int) -> np.ndarray:
    """Return df (vocabulary,) int64: the number of documents in which each entry occurs."""
    document = np.repeat(np.arange(len(documents)), np.diff(documents.offsets))
    pairs = np.unique(np.stack([document, documents.token_ids]), axis=1)[1]
    return np.bincount(pairs[pairs >= 0], minlength=vocabulary)


def nearest_tokens(documents: TokenEmbeddings, count: int = 10, rows: int = 1 << 20) -> NearestTokens:
    """Return the exact lookup in a collection: centroids (k, d) -> entries (k, count) int64 of the nearest rows.

    Args:
        documents: The collection.
        count: Number of rows.
        rows: Rows compared at a time.
    """

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(documents.vectors), rows):
            yield documents.vectors[start : start + rows], documents.token_ids[start : start + rows]

    return lambda centroids: nearest_entries(centroids, blocks(), count)


def nearest_entries(centroids: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """Return the vocabulary entries (k, count) int64 of the rows nearest to each centroid, nearest first.

    Args:
        centroids: (k, d) float32.
        blocks: Rows (n, d) float32 and their entries (n,) int64.
        count: Number of rows.
    """
    scores, entries = np.zeros((len(centroids), 0), np.float32), np.zeros((len(centroids), 0), np.int64)
    for vectors, ids in blocks:
        products = centroids @ vectors.T
        scores = np.concatenate([scores, products], axis=1)
        entries = np.concatenate([entries, np.broadcast_to(ids, products.shape)], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        scores, entries = np.take_along_axis(scores, best, 1), np.take_along_axis(entries, best, 1)
    return entries


def cluster(feedback: np.ndarray, clusters: int = 24, seed: int = 42) -> np.ndarray:
    """Return the centroids (k, d) float32 of the rows (n, d) of the feedback documents, by k-means; k is at most n."""
    from sklearn.cluster import KMeans

    kmeans = KMeans(min(clusters, len(feedback)), random_state=seed, n_init=10).fit(feedback)
    return np.asarray(kmeans.cluster_centers_, dtype=np.float32)


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

    The word of a centroid is the most frequent vocabulary entry of its nearest rows; of equally frequent ones, the
    nearest. Its weight is beta · ln((N + 1) / (df + 1)).

    Args:
        query: (q, d).
        centroids: (k, d), from `cluster`.
        lookup: For example `nearest_tokens`.
        frequencies: From `document_frequencies`.
        num_documents: N.
        rows: Maximum number of new rows.
        beta: Factor of their weights.
        skips: Entries that are not words, such as prefixes and punctuation.

    Raises:
        InputError: ``rows`` exceeds the number of centroids, or ``beta`` is negative.
    """
    if beta < 0:
        raise InputError(f"beta must not be negative, got {beta}", field="beta")
    if not 0 <= rows <= len(centroids):
        message = f"rows must lie from 0 to the number of clusters ({len(centroids)}), got {rows}"
        raise InputError(f"{message}; raise clusters or lower rows", field="rows")
    entries = lookup(centroids)
    ids = np.array([_most_frequent([entry for entry in row if entry >= 0 and entry not in skips]) for row in entries])
    known = np.flatnonzero(ids >= 0)
    rarity = np.log((num_documents + 1) / (frequencies[ids[known]] + 1))
    chosen = np.argsort(-rarity, kind="stable")[:rows]
    new = centroids[known[chosen]]
    weights = np.concatenate([np.ones(len(query)), beta * rarity[chosen]]).astype(np.float32)
    return ExpandedQuery(np.concatenate([query, new]).astype(np.float32), weights, ids[known[chosen]].astype(np.int64))


def _most_frequent(entries: Sequence[int]) -> int:
    """Return the most frequent entry, of several the first; -1 if there are no entries."""
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
    centroids = cluster(np.concatenate([documents[row] for row in best]), clusters, seed)
    expanded = expand(
        query, centroids, lookup, frequencies, len(documents), rows=min(rows, len(centroids)), beta=beta, skips=skips
    )
    scores = maxsim(expanded.rows, documents, expanded.weights)
    order = np.argsort(-scores, kind="stable")
    return order, scores[order]
