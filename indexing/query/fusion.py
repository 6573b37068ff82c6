"""Joining rankings of the same query by different retrievers, and ranking the joined candidates anew.

A ranking is the score of each document by its key (an id or a row number); higher is better. Every fusion here is
independent of the order in which rankings and documents are given, and settles equal scores by the lower key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import fsum, sqrt
from typing import Any, Literal, TypeVar

import numpy as np

from embedserve.errors import InputError
from embedserve.types import SparseEmbeddings
from indexing.base import Hits, clip_k, make_hits

K = TypeVar("K", bound=Any)  # keys of one kind, which can be ordered
Method = Literal["rrf", "weighted", "dbsf"]
RRF_K = 60


def reciprocal_rank(
    rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None = None, *, k: int = RRF_K
) -> dict[K, float]:
    """Return Σ weight / (k + rank) for each document, rank from 1, best first (Cormack et al. 2009, equation 1; k 60).

    Scores count only as an order; of equal ones the lower key stands first.

    Raises:
        InputError: ``k`` is negative, or the weights do not fit.
    """
    if k < 0:
        raise InputError(f"k must not be negative, got {k}", field="k")
    ranks = [{key: 1 / (k + rank) for rank, (key, _) in enumerate(_ordered(ranking), 1)} for ranking in rankings]
    return _weighted(ranks, weights)


def weighted_sum(rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None = None) -> dict[K, float]:
    """Return Σ weight · score for each document, best first, each ranking stretched to [0, 1] over its own scores.

    The lowest of a ranking becomes 0, and so does a document that it lacks or that is its only one (PromptReps, Zhuang
    et al. 2024, section 3.3).

    Raises:
        InputError: The weights do not fit.
    """
    return _weighted([_stretched(ranking) for ranking in rankings], weights)


def distribution_based(rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None = None) -> dict[K, float]:
    """Return Σ weight · score for each document, best first, after mean - 3σ became 0 and mean + 3σ became 1.

    Distribution-based score fusion (Mazzeschi 2023): one far outlier does not press all others together, as it does
    under `weighted_sum`. σ is the standard deviation over n - 1; where it is 0, as for a single document, every score
    becomes 0.5. What lies outside of the limits stays outside; a document that a ranking lacks has 0 there.

    Raises:
        InputError: The weights do not fit.
    """
    return _weighted([_standardised(ranking) for ranking in rankings], weights)


def min_max_fusion(dense: Mapping[str, float], sparse: Mapping[str, float], alpha: float = 0.5) -> dict[str, float]:
    """Return alpha · dense + (1 - alpha) · sparse by `weighted_sum`.

    Raises:
        InputError: ``alpha`` lies not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie from 0 to 1, got {alpha}", field="alpha")
    return weighted_sum([dense, sparse], [alpha, 1 - alpha])


METHODS: dict[Method, Callable[..., dict[Any, float]]] = {
    "rrf": reciprocal_rank,
    "weighted": weighted_sum,
    "dbsf": distribution_based,
}


def fuse(
    rankings: Sequence[Hits],
    k: int,
    method: Method = "rrf",
    weights: Sequence[float] | None = None,
    *,
    rrf_k: int = RRF_K,
) -> Hits:
    """Return the best ``k`` rows of each query over several retrievers' hits for the same queries.

    Args:
        rankings: Hits of each retriever, all of Q queries and over the same row numbers.
        k: Hits for each query.
        method: ``rrf``, ``weighted`` or ``dbsf``.
        weights: One for each retriever; 1 if left out.
        rrf_k: Of `reciprocal_rank`: the larger, the less the first ranks stand out.

    Raises:
        InputError: No retriever, different numbers of queries, an unknown method, or what that refuses.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}", field="method")
    join = partial(reciprocal_rank, k=rrf_k) if method == "rrf" else METHODS[method]
    counts = {len(hits) for hits in rankings}
    if len(counts) != 1:
        raise InputError(f"rankings must be of the same queries, got {sorted(counts)} of them", field="rankings")
    fused = []
    for query in range(counts.pop()):
        found = [dict(zip(*map(np.ndarray.tolist, hits.of(query)), strict=True)) for hits in rankings]
        fused.append(join(found, weights))
    width = clip_k(k, max(map(len, fused), default=0))
    rows = np.full((len(fused), width), -1, dtype=np.int64)
    scores = np.zeros((len(fused), width), dtype=np.float32)
    for query, ranking in enumerate(fused):
        best = list(ranking.items())[:width]
        rows[query, : len(best)] = [row for row, _ in best]
        scores[query, : len(best)] = [score for _, score in best]
    return make_hits(rows, scores)


def rerank(candidates: Hits, score: Callable[[int, np.ndarray], np.ndarray], k: int) -> Hits:
    """Return the best ``k`` of the candidates of each query by another score; equal scores by lower row.

    >>> rerank(fused, lambda query, rows: maxsim(tokens[query], store.take(rows)), 10)  # doctest: +SKIP

    Args:
        candidates: Hits of Q queries.
        score: The number of a query and its candidates' rows (n,) to their scores (n,), higher is better.
        k: Hits for each query.

    Raises:
        InputError: ``k`` is no whole number of at least 1, or ``score`` gives another number of scores, or NaN.
    """
    width = clip_k(k, candidates.rows.shape[1])
    rows = np.full(candidates.rows.shape, -1, dtype=np.int64)
    scores = np.zeros(candidates.rows.shape, dtype=np.float32)
    for query in range(len(candidates)):
        found = candidates.of(query)[0]
        if not len(found):
            continue
        new = np.asarray(score(query, found), dtype=np.float32)
        if new.shape != found.shape or np.isnan(new).any():
            what = "NaN" if new.shape == found.shape else f"scores of shape {new.shape}"
            raise InputError(f"score gave {what} for {len(found)} candidates of query {query}", field="score")
        rows[query, : len(found)], scores[query, : len(found)] = found, new
    hits = make_hits(rows, scores)
    return Hits(hits.rows[:, :width], hits.scores[:, :width], np.minimum(hits.counts, width))


def _weighted(rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None) -> dict[K, float]:
    """Return the weighted sums, best first; a document that a ranking lacks has 0 there."""
    used = [1.0] * len(rankings) if weights is None else list(weights)
    if len(used) != len(rankings) or not all(0 <= weight < float("inf") for weight in used):
        message = f"weights must be {len(rankings)} numbers that are not negative, got {used}"
        raise InputError(message, field="weights")
    keys = {key for ranking in rankings for key in ranking}
    pairs = list(zip(used, rankings, strict=True))
    fused = {key: fsum(weight * ranking.get(key, 0.0) for weight, ranking in pairs) for key in keys}
    return dict(_ordered(fused))


def _ordered(ranking: Mapping[K, float]) -> list[tuple[K, float]]:
    return sorted(ranking.items(), key=lambda item: (-item[1], item[0]))


def _stretched(scores: Mapping[K, float]) -> dict[K, float]:
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    return {document: (score - low) / max(high - low, 1e-9) for document, score in scores.items()}


def _standardised(scores: Mapping[K, float]) -> dict[K, float]:
    mean = fsum(scores.values()) / max(len(scores), 1)
    deviation = sqrt(fsum((score - mean) ** 2 for score in scores.values()) / max(len(scores) - 1, 1))
    if deviation == 0 or min(scores.values()) == max(scores.values()):
        return dict.fromkeys(scores, 0.5)
    return {document: (score - mean) / (6 * deviation) + 0.5 for document, score in scores.items()}


def sparse_scores(queries: SparseEmbeddings, documents: SparseEmbeddings) -> np.ndarray:
    """Return the exact dot products (Q, N) float32 of sparse vectors."""
    from scipy.sparse import csr_array

    width = 1 + max(int(part.indices.max(initial=-1)) for part in (queries, documents))
    matrices = [
        csr_array((part.values, part.indices, part.offsets), shape=(len(part), max(width, 1)))
        for part in (queries, documents)
    ]
    found: np.ndarray = (matrices[0] @ matrices[1].T).toarray()
    return found


def as_impacts(weights: np.ndarray) -> np.ndarray:
    """Return weights as the whole numbers of an impact index: 100 · w rounded half to even, int64 (section 3.2)."""
    return np.rint(100 * weights).astype(np.int64)
