"""Token pooling: fewer vectors for a document, by averaging similar ones (Clavié et al. 2024, arXiv 2409.14683)."""

from __future__ import annotations

import numpy as np


def pool_tokens(rows: np.ndarray, factor: int, protected: int = 1) -> np.ndarray:
    """Return the first ``protected`` of unit ``rows`` (n, d), then the means of clusters of the others, not normalised.

    At most ``max((n - protected) // factor, 1)`` clusters, in the order of their first member.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    free = rows[protected:]
    if factor == 1 or len(free) < 2:
        return rows
    upper = np.triu_indices(len(free), k=1)
    distances = np.maximum(1 - (free @ free.T)[upper], 0)  # rounding can give less than 0 for equal rows
    labels = fcluster(linkage(distances, method="ward"), max(len(free) // factor, 1), "maxclust")
    _, first, cluster = np.unique(labels, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), rows.shape[1]), dtype=np.float64)
    np.add.at(sums, cluster, free)
    means = sums / np.bincount(cluster)[:, None]
    return np.concatenate([rows[:protected], means[np.argsort(first)].astype(rows.dtype)])
