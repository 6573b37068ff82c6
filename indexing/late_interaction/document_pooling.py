"""Fewer token vectors for a document: means of like ones (Clavié et al. 2024, arXiv 2409.14683)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from embedserve.ragged import offsets_of
from indexing.base import unit


def pooled(
    vectors: np.ndarray, offsets: np.ndarray, ids: np.ndarray, factor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vectors (T', d) at unit length, offsets (N + 1,) and ids (T',) with like tokens of a document averaged.

    A document's first token stays as it is; all others get -1 for an id, since a mean stands for several.
    """
    from embedserve.strategies.colbert import pool_tokens  # here: it brings the models' library

    parts = [pool_tokens(vectors[start:stop], factor) for start, stop in pairwise(offsets)]
    new_offsets = offsets_of([len(part) for part in parts])
    new_ids = np.full(new_offsets[-1], -1, dtype=np.int32)
    new_ids[new_offsets[:-1]] = ids[offsets[:-1]]
    joined = np.concatenate(parts) if parts else vectors
    return unit(joined), new_offsets, new_ids
