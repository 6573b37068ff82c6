"""MaxSim for search on a CPU: one matrix product per block of documents, then the maxima over each document's rows.

s(q, D) = sum over i of w_i · max over j of q_i · d_j   (Khattab and Zaharia 2020, section 3.3, eq. 3)

`embedserve.scoring.maxsim` is the NumPy reference. This version decodes stored vectors block by block, from scattered
documents such as the candidates of an index.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from embedserve.errors import InputError
from indexing.kernels.buffers import scratch_buffer
from indexing.kernels.float16 import widen_rows
from indexing.kernels.jit import compiled
from indexing.kernels.simd import LANES, maximum_of_rows
from indexing.late_interaction.ragged_checks import blocks, check_offsets, check_token_vectors, check_weights

BLOCK = 2048  # document rows per matrix product: 1 MiB of 128 float32, which fits into the CPU cache
FLAT_BLOCK = 16384  # rows per matrix product if nothing is decoded
Rows = Callable[[int, int, np.ndarray], np.ndarray]


@compiled
def sum_of_maxima(scores: np.ndarray, offsets: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (n,) from ``scores`` (T, q): the weighted sum of the columns' maxima over each document's rows.

    Args:
        scores: (T, q) float32, contiguous.
        offsets: (n + 1,) int64, ascending; the first one, not necessarily 0, belongs to row 0 of ``scores``.
        weights: (q,) float32.
        out: (n,) float32.
    """
    width = scores.shape[1]
    aligned, flat = width - width % LANES, scores.reshape(-1)
    best = np.empty(width, np.float32)
    for document in range(len(out)):
        first, last = offsets[document] - offsets[0], offsets[document + 1] - offsets[0]
        best[:] = scores[first]
        last_aligned = first + (last - first) // LANES * LANES
        for row in range(first, last_aligned, LANES):
            for i in range(0, aligned, LANES):
                maximum_of_rows(best, i, flat, row * width + i, width)
        for row in range(last_aligned, last):
            for i in range(aligned):
                best[i] = max(best[i], scores[row, i])
        for i in range(aligned, width):
            for row in range(first, last):
                best[i] = max(best[i], scores[row, i])
        total = np.float32(0)
        for i in range(width):
            total += weights[i] * best[i]
        out[document] = total


def maxsim_blocks(
    query: np.ndarray, offsets: np.ndarray, rows: Rows, weights: np.ndarray | None = None, block_rows: int = BLOCK
) -> np.ndarray:
    """Return the scores (N,) float32 of N documents whose rows are read block by block.

    Args:
        query: (q, d) float32, checked.
        offsets: (N + 1,) int64, checked.
        rows: Called with the first and the exclusive last document of a block and a float32 buffer (n, d); returns the
            filled buffer, or rows (n, d) float32 that are already in memory.
        weights: (q,), the weights of the query rows. Default: 1.
        block_rows: Maximum number of rows of a block; a longer document is a block of its own.
    """
    out = np.empty(len(offsets) - 1, dtype=np.float32)
    factors = check_weights(weights, len(query))
    columns = torch.from_numpy(np.ascontiguousarray(query.T))  # (d, q)
    for start, stop in blocks(offsets, block_rows):
        count = int(offsets[stop] - offsets[start])
        block = rows(start, stop, scratch_buffer("rows", count, query.shape[1]))
        scores = scratch_buffer("scores", count, len(query))
        torch.mm(torch.from_numpy(block), columns, out=torch.from_numpy(scores))
        sum_of_maxima(scores, offsets[start : stop + 1], factors, out[start:stop])
    return out


def maxsim_flat(
    query: np.ndarray, vectors: np.ndarray, offsets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the scores (N,) float32 of N contiguous documents, whose values are not checked.

    Args:
        query: (q, d) float32.
        vectors: (T, d) float32 or float16; float16 is widened a block at a time.
        offsets: (N + 1,) int64, at least one row each.
        weights: (q,), the weights of the query rows. Default: 1.

    Raises:
        InputError: Different widths, an empty document, NaN in the query.
    """
    query = check_token_vectors(query, vectors.shape[-1], "queries")
    offsets = check_offsets(offsets, len(vectors))
    if vectors.dtype == np.float32:
        flat = vectors if vectors.flags.carray else vectors.copy()
        return maxsim_blocks(
            query, offsets, lambda start, stop, _: flat[offsets[start] : offsets[stop]], weights, FLAT_BLOCK
        )
    if vectors.dtype != np.float16:
        raise InputError(f"vectors must be float32 or float16, got {vectors.dtype}", field="documents")
    bits = np.ascontiguousarray(vectors).view(np.uint16)

    def widened(start: int, stop: int, out: np.ndarray) -> np.ndarray:
        widen_rows(bits, offsets[start:stop], offsets[start + 1 : stop + 1], out)
        return out

    return maxsim_blocks(query, offsets, widened, weights)


def maxsim_torch(query: Tensor, vectors: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the scores (N,) float32 of documents on any device, such as a GPU; nothing is checked.

    Args:
        query: (q, d), of the dtype of ``vectors``.
        vectors: (T, d) float32, float16 or bfloat16; all T · q products are in memory at the same time.
        offsets: (N + 1,) int64 on the same device, at least one row each.
        weights: (q,) float32. Default: 1.
    """
    best = torch.segment_reduce((vectors @ query.T).float(), "max", offsets=offsets, axis=0)  # (N, q)
    return best.sum(dim=1) if weights is None else best @ weights
