"""Joining rankings of the same query by different retrievers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedserve.errors import InputError
from embedserve.types import SparseEmbeddings


def min_max_fusion(dense: Mapping[str, float], sparse: Mapping[str, float], alpha: float = 0.5) -> dict[str, float]:
    """Return scores of the documents in either ranking, best first: alpha · dense + (1 - alpha) · sparse.

    Each ranking's scores are first stretched to [0, 1] over its own documents; a document that a ranking lacks has 0
    there, and so has the only one of a ranking (PromptReps, Zhuang et al. 2024, section 3.3).

    Raises:
        InputError: ``alpha`` lies not in [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie from 0 to 1, got {alpha}", field="alpha")
    parts = [(alpha, _stretched(dense)), (1 - alpha, _stretched(sparse))]
    documents = dict.fromkeys([*dense, *sparse])
    fused = {document: sum(weight * part.get(document, 0.0) for weight, part in parts) for document in documents}
    return dict(sorted(fused.items(), key=lambda item: -item[1]))


def _stretched(scores: Mapping[str, float]) -> dict[str, float]:
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    return {document: (score - low) / max(high - low, 1e-9) for document, score in scores.items()}


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
