"""MaxSim on a CPU: one matrix product for a block of documents, then the maxima of each document's part of it.

s(q, D) = sum over i of w_i · max over j of q_i · d_j   (Khattab and Zaharia 2020, section 3.3, eq. 3)

`embedserve.scoring.maxsim` is the plain form of the same; this one reads float16 block by block and takes its rows from
anywhere, such as candidates scattered over a memory map.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from embedserve.errors import InputError
from indexing.compiled import compiled
from indexing.ragged import blocks, check_offsets, check_token_vectors, check_weights

BLOCK = 2048  # document rows multiplied at a time: 1 MiB of 128 float32, so what is read again is in the cache
Rows = Callable[[int, int, np.ndarray], np.ndarray]


class _Scratch(threading.local):
    """Memory that a thread uses again and again: new pages would cost as much as the maxima."""

    def __init__(self) -> None:
        self._rows = np.empty(0, dtype=np.float32)
        self._scores = np.empty(0, dtype=np.float32)

    def rows(self, count: int, width: int) -> np.ndarray:
        if self._rows.size < count * width:
            self._rows = np.empty(count * width, dtype=np.float32)
        return self._rows[: count * width].reshape(count, width)

    def scores(self, count: int, width: int) -> np.ndarray:
        if self._scores.size < count * width:
            self._scores = np.empty(count * width, dtype=np.float32)
        return self._scores[: count * width].reshape(count, width)


_SCRATCH = _Scratch()


@compiled
def sum_of_maxima(scores: np.ndarray, offsets: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """Fill ``out`` (n,) from ``scores`` (T, q): the weighted sum of the columns' maxima over each document's rows.

    Args:
        scores: (T, q) float32.
        offsets: (n + 1,) int64, not from 0 but ascending; the first belongs to row 0 of ``scores``.
        weights: (q,) float32.
        out: (n,) float32.
    """
    width = scores.shape[1]
    best = np.empty(width, np.float32)
    for place in range(len(out)):
        first, last = offsets[place] - offsets[0], offsets[place + 1] - offsets[0]
        line = scores[first]
        for i in range(width):
            best[i] = line[i]
        for row in range(first + 1, last):
            line = scores[row]
            for i in range(width):
                best[i] = line[i] if line[i] > best[i] else best[i]
        total = np.float32(0)
        for i in range(width):
            total += weights[i] * best[i]
        out[place] = total


def maxsim_blocks(query: np.ndarray, offsets: np.ndarray, rows: Rows, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the scores (N,) float32 of N documents whose rows are handed over in blocks.

    Args:
        query: (q, d) float32, checked.
        offsets: (N + 1,) int64, checked.
        rows: Called with first and last document of a block and a float32 buffer (n, d) for their rows; returns the
            filled buffer, or rows (n, d) float32 that are in memory already.
        weights: (q,) of the query's rows; 1 by default.
    """
    out = np.empty(len(offsets) - 1, dtype=np.float32)
    factors = check_weights(weights, len(query))
    columns = torch.from_numpy(np.ascontiguousarray(query.T))  # (d, q)
    for start, stop in blocks(offsets, BLOCK):
        count = int(offsets[stop] - offsets[start])
        block = rows(start, stop, _SCRATCH.rows(count, query.shape[1]))
        scores = _SCRATCH.scores(count, len(query))
        torch.mm(torch.from_numpy(block), columns, out=torch.from_numpy(scores))
        sum_of_maxima(scores, offsets[start : stop + 1], factors, out[start:stop])
    return out


def maxsim_flat(
    query: np.ndarray, vectors: np.ndarray, offsets: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return the scores (N,) float32 of N documents that stand one behind another.

    Args:
        query: (q, d) float32.
        vectors: (T, d) float32 or float16; float16 is widened a block at a time.
        offsets: (N + 1,) int64, at least one row each.
        weights: (q,) of the query's rows; 1 by default.

    Raises:
        InputError: Widths that differ, an empty document, NaN in the query.
    """
    query = check_token_vectors(query, vectors.shape[-1], "queries")
    offsets = check_offsets(offsets, len(vectors))
    if vectors.dtype == np.float32:
        checked = check_token_vectors(vectors, query.shape[1])
        return maxsim_blocks(query, offsets, lambda start, stop, _: checked[offsets[start] : offsets[stop]], weights)
    if vectors.dtype != np.float16:
        raise InputError(f"vectors must be float32 or float16, got {vectors.dtype}", field="documents")
    bits = np.ascontiguousarray(vectors).view(np.uint16)

    def widened(start: int, stop: int, out: np.ndarray) -> np.ndarray:
        widen_rows(bits, offsets[start:stop], offsets[start + 1 : stop + 1], out)
        return out

    return maxsim_blocks(query, offsets, widened, weights)


@compiled
def widen_rows(bits: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Copy rows ``starts[i]`` to ``stops[i]`` of ``bits``, (T, d) uint16 of finite float16, to ``out`` (n, d) float32.

    Sign, exponent and mantissa go to their places; the factor 2^112 mends the exponent's bias, subnormals included.
    """
    raw, scale = out.view(np.uint32), np.float32(2.0**112)
    place = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target, value = bits[row], raw[place], out[place]
            for i in range(len(source)):
                half = np.uint32(source[i])
                sign = (half & np.uint32(0x8000)) << np.uint32(16)
                target[i] = sign | ((half & np.uint32(0x7FFF)) << np.uint32(13))
            for i in range(len(source)):
                value[i] *= scale
            place += 1


def maxsim_torch(query: Tensor, vectors: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the scores (N,) float32 of documents on any device, such as a GPU; nothing is checked.

    Args:
        query: (q, d), of the type of ``vectors``.
        vectors: (T, d) float32, float16 or bfloat16; all T · q products are made at once.
        offsets: (N + 1,) int64 on the same device, at least one row each.
        weights: (q,) float32; 1 by default.
    """
    best = torch.segment_reduce((vectors @ query.T).float(), "max", offsets=offsets, axis=0)  # (N, q)
    return best.sum(dim=1) if weights is None else best @ weights
