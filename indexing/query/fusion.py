"""Fuse rankings of several retrievers for the same query, and rerank the candidates.

A ranking maps document keys (ids or row numbers) to scores; higher is better. The result does not depend on the order
of rankings and documents; ties go to the lower key.
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

K = TypeVar("K", bound=Any)  # keys of one ordered type
Method = Literal["rrf", "weighted", "dbsf"]
RRF_K = 60


def reciprocal_rank(
    rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None = None, *, k: int = RRF_K
) -> dict[K, float]:
    """Return Σ weight / (k + rank) for each document, rank from 1, best first (Cormack et al. 2009, equation 1; k 60).

    Only the order of the scores matters; ties go to the lower key.

    Raises:
        InputError: ``k`` is negative, or the weights are invalid.
    """
    if k < 0:
        raise InputError(f"k must not be negative, got {k}", field="k")
    ranks = [{key: 1 / (k + rank) for rank, (key, _) in enumerate(_ordered(ranking), 1)} for ranking in rankings]
    return _weighted(ranks, weights)


def weighted_sum(rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None = None) -> dict[K, float]:
    """Return Σ weight · score for each document, best first, with each ranking min-max scaled to [0, 1].

    The lowest score of a ranking, a missing document, and the only document of a ranking become 0 (PromptReps, Zhuang
    et al. 2024, section 3.3).

    Raises:
        InputError: The weights are invalid.
    """
    return _weighted([_min_max_scaled(ranking) for ranking in rankings], weights)


def distribution_based(rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None = None) -> dict[K, float]:
    """Return Σ weight · score for each document, best first, with mean - 3σ scaled to 0 and mean + 3σ to 1.

    Distribution-based score fusion (Mazzeschi 2023), which is less sensitive to outliers than `weighted_sum`. σ is the
    sample standard deviation (n - 1); if it is 0, as for a single document, every score becomes 0.5. Scores are not
    clipped; a missing document has 0.

    Raises:
        InputError: The weights are invalid.
    """
    return _weighted([_standardised(ranking) for ranking in rankings], weights)


def min_max_fusion(dense: Mapping[str, float], sparse: Mapping[str, float], alpha: float = 0.5) -> dict[str, float]:
    """Return alpha · dense + (1 - alpha) · sparse by `weighted_sum`.

    Raises:
        InputError: ``alpha`` is not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 and 1, got {alpha}", field="alpha")
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
    """Fuse the hits of several retrievers for the same queries; return the best ``k`` rows of each query.

    Args:
        rankings: Hits of each retriever for Q queries, over the same row numbers.
        k: Hits per query.
        method: ``rrf``, ``weighted`` or ``dbsf``.
        weights: Weight of each retriever. Default: 1.
        rrf_k: Constant of `reciprocal_rank`; larger values reduce the influence of top ranks.

    Raises:
        InputError: No retriever, different numbers of queries, an unknown method, or invalid weights.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}", field="method")
    combine = partial(reciprocal_rank, k=rrf_k) if method == "rrf" else METHODS[method]
    counts = {len(hits) for hits in rankings}
    if len(counts) != 1:
        raise InputError(f"rankings must have the same number of queries, got {sorted(counts)}", field="rankings")
    fused = []
    for query in range(counts.pop()):
        scores_of = [dict(zip(*map(np.ndarray.tolist, hits.of(query)), strict=True)) for hits in rankings]
        fused.append(combine(scores_of, weights))
    width = clip_k(k, max(map(len, fused), default=0))
    rows = np.full((len(fused), width), -1, dtype=np.int64)
    scores = np.zeros((len(fused), width), dtype=np.float32)
    for query, ranking in enumerate(fused):
        best = list(ranking.items())[:width]
        rows[query, : len(best)] = [row for row, _ in best]
        scores[query, : len(best)] = [score for _, score in best]
    return make_hits(rows, scores)


def rerank(candidates: Hits, score: Callable[[int, np.ndarray], np.ndarray], k: int) -> Hits:
    """Return the best ``k`` candidates of each query by another score; ties go to the lower row.

    >>> rerank(fused, lambda query, rows: maxsim(tokens[query], store.take(rows)), 10)  # doctest: +SKIP

    Args:
        candidates: Hits of Q queries.
        score: Function of the index of a query and its rows (n,) that returns scores (n,); higher is better.
        k: Hits per query.

    Raises:
        InputError: ``k`` is not a positive integer, or ``score`` returned a wrong number of scores, or NaN.
    """
    width = clip_k(k, candidates.rows.shape[1])
    rows = np.full(candidates.rows.shape, -1, dtype=np.int64)
    scores = np.zeros(candidates.rows.shape, dtype=np.float32)
    for query in range(len(candidates)):
        matches = candidates.of(query)[0]
        if not len(matches):
            continue
        values = np.asarray(score(query, matches), dtype=np.float32)
        if values.shape != matches.shape or np.isnan(values).any():
            what = "NaN" if values.shape == matches.shape else f"scores of shape {values.shape}"
            raise InputError(f"score returned {what} for {len(matches)} candidates of query {query}", field="score")
        rows[query, : len(matches)], scores[query, : len(matches)] = matches, values
    hits = make_hits(rows, scores)
    return Hits(hits.rows[:, :width], hits.scores[:, :width], np.minimum(hits.counts, width))


def _weighted(rankings: Sequence[Mapping[K, float]], weights: Sequence[float] | None) -> dict[K, float]:
    """Return the weighted sums, best first; a document missing from a ranking has 0 there."""
    used = [1.0] * len(rankings) if weights is None else list(weights)
    if len(used) != len(rankings) or not all(0 <= weight < float("inf") for weight in used):
        message = f"weights must be {len(rankings)} finite numbers, none negative, got {used}"
        raise InputError(message, field="weights")
    keys = {key for ranking in rankings for key in ranking}
    pairs = list(zip(used, rankings, strict=True))
    fused = {key: fsum(weight * ranking.get(key, 0.0) for weight, ranking in pairs) for key in keys}
    return dict(_ordered(fused))


def _ordered(ranking: Mapping[K, float]) -> list[tuple[K, float]]:
    return sorted(ranking.items(), key=lambda item: (-item[1], item[0]))


def _min_max_scaled(scores: Mapping[K, float]) -> dict[K, float]:
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
    products: np.ndarray = (matrices[0] @ matrices[1].T).toarray()
    return products


def as_impacts(weights: np.ndarray) -> np.ndarray:
    """Return weights as integers of an impact index: 100 · w rounded half to even, int64 (section 3.2)."""
    return np.rint(100 * weights).astype(np.int64)
