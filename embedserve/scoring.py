"""MaxSim in NumPy: the public function, and the reference of the search kernel `indexing.late_interaction.maxsim`."""

from __future__ import annotations

import numpy as np

from embedserve.types import TokenEmbeddings

CHUNK = 1 << 16  # document rows multiplied at a time


def maxsim(query: np.ndarray, documents: TokenEmbeddings, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the scores (N,) float32 of N documents for one query: sum over i of w_i · max over j of q_i · d_j.

    (Khattab and Zaharia 2020, section 3.3, eq. 3.) A document is scored over its own rows alone, so its score does not
    depend on the others: no padding takes part, where padding by zeros would lift negative maxima to 0.

    Args:
        query: Rows (q, d), float32, of unit length.
        documents: Their rows, at least one each.
        weights: (q,) of the query's rows; 1 by default.
    """
    offsets = documents.offsets
    out = np.empty(len(documents), dtype=np.float32)
    start = 0
    while start < len(out):
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + CHUNK, side="right")) - 1)
        rows = documents.vectors[offsets[start] : offsets[stop]]
        best = np.maximum.reduceat(query @ rows.T, offsets[start:stop] - offsets[start], axis=1)
        out[start:stop] = best.sum(axis=0) if weights is None else weights @ best
        start = stop
    return out
