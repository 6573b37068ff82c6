"""Ball carving: fewer rows for a query (MUVERA, Dhulipala et al. 2024, arXiv 2405.19504)."""

from __future__ import annotations

import numpy as np

from embedserve.errors import InputError
from indexing.base import unit


def carve(query: np.ndarray, weights: np.ndarray | None, tau: float) -> np.ndarray:
    """Return the sums of groups of similar rows, (m, d) float32, m at most q.

    The first row without a group starts one and adds every such row whose cosine to it is at least ``tau``. MaxSim with
    the sums is at most MaxSim with the rows, and equal if a group's rows have their maxima at the same tokens.

    Args:
        query: (q, d) float32.
        weights: (q,), not negative, the weights of the rows. Default: 1.
        tau: From -1 to 1; 1 merges only rows of the same direction.

    Raises:
        InputError: ``tau`` out of range.
    """
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not -1 <= tau <= 1:
        raise InputError(f"tau must lie from -1 to 1, got {tau!r}", field="tau")
    directions = unit(query)
    similar = directions @ directions.T >= np.float32(tau)  # (q, q)
    weighted = query if weights is None else query * np.asarray(weights, dtype=np.float32)[:, None]
    free, sums = np.ones(len(query), dtype=bool), []
    for row in range(len(query)):
        if free[row]:
            group = similar[row] & free
            group[row] = True
            sums.append(weighted[group].sum(axis=0))
            free &= ~group
    return np.array(sums, dtype=np.float32)
