"""Token pooling: fewer token vectors per document, by averaging similar ones (Clavié et al. 2024, arXiv 2409.14683)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from embedserve.ragged import offsets_of
from indexing.base import unit


def pooled(
    vectors: np.ndarray, offsets: np.ndarray, ids: np.ndarray, factor: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors (T', d), offsets (N + 1,) and ids (T',) with similar tokens of each document averaged.

    The first token of a document is unchanged; the others get the id -1, because a mean covers several tokens.
    """
    from embedserve.strategies.colbert import pool_tokens  # imports transformers, therefore on first use

    parts = [pool_tokens(vectors[start:stop], factor) for start, stop in pairwise(offsets)]
    new_offsets = offsets_of([len(part) for part in parts])
    new_ids = np.full(new_offsets[-1], -1, dtype=np.int32)
    new_ids[new_offsets[:-1]] = ids[offsets[:-1]]
    return unit(np.concatenate(parts) if parts else vectors), new_offsets, new_ids
