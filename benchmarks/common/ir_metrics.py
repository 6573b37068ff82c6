"""nDCG@k and Spearman correlation, in per cent as the leaderboards print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from benchmarks.common.eval_sets import RetrievalSet


def ndcg(ranked: Mapping[str, Sequence[str]], qrels: Mapping[str, Mapping[str, int]], k: int = 10) -> float:
    """Return mean nDCG@k in per cent over the queries of ``ranked`` (Järvelin and Kekäläinen 2002; gain linear).

    Args:
        ranked: Document ids of each query, best first.
        qrels: The gain of each judged document.
        k: Ranks that count.
    """
    discounts = 1 / np.log2(np.arange(k) + 2)
    found = []
    for query, documents in ranked.items():
        gains = np.array([qrels[query].get(document, 0) for document in documents[:k]], dtype=np.float64)
        best = np.array(sorted(qrels[query].values(), reverse=True)[:k], dtype=np.float64)
        ideal = float(best @ discounts[: len(best)])
        found.append(float(gains @ discounts[: len(gains)]) / ideal if ideal > 0 else 0.0)
    return 100 * float(np.mean(found))


def ndcg_of_rows(found: Sequence[np.ndarray], data: RetrievalSet) -> float:
    """Return mean nDCG@10 in per cent from the rows that each query of ``data`` found, best first.

    Row i is document i of ``data``; rows beyond are documents that nobody judged, which are no answers.
    """
    ids = data.document_ids
    ranked = {
        name: [ids[row] if row < len(ids) else f"other {row}" for row in rows[:10]]
        for name, rows in zip(data.query_ids, found, strict=True)
    }
    return ndcg(ranked, data.qrels)


def spearman(scores: np.ndarray, gold: Sequence[float]) -> float:
    """Return the Spearman rank correlation of ``scores`` (N,) with ``gold`` in per cent."""
    return 100 * float(spearmanr(scores, gold).statistic)
