"""Kernels of fixed dimensional encodings: the token projections of each document, summed by partition."""

from __future__ import annotations

import numpy as np

from indexing.kernels.jit import compiled
from indexing.kernels.simd import LANES, add_scaled, divide

STEP = 1 << 32  # one bit of Hamming distance in a key; the bits below hold a token number


def partition_order(bits: int) -> np.ndarray:
    """Return the index (2^k,) int64 of each bit string in the encoding: its rank in the Gray code.

    Bit strings are read first bit first. This is the layout of the published code; any order would rank the same.
    """
    codes = np.arange(1 << bits, dtype=np.int64)
    ranks = codes.copy()
    for shift in range(1, bits):
        ranks ^= codes >> shift
    return ranks


@compiled
def assign_partitions(products: np.ndarray, thresholds: np.ndarray, codes: np.ndarray) -> None:
    """Fill ``codes`` (t, R) with the tokens' bit strings: bit j of repetition r is product j · R + r > threshold."""
    k, repetitions = thresholds.shape
    for token in range(len(products)):
        row, code = products[token], codes[token]
        code[:] = 0
        for j in range(k):
            part, limits = row[j * repetitions : (j + 1) * repetitions], thresholds[j]
            for r in range(repetitions):
                code[r] = 2 * code[r] + (part[r] > limits[r])


@compiled
def sum_tokens(
    codes: np.ndarray,
    payload: np.ndarray,
    columns: int,
    column: int,
    weights: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
    block: np.ndarray,
    width: int,
) -> None:
    """Sum the payload of tokens by partition into ``block`` (2^k · p,); set counts, and first tokens in ``keys``.

    The payload of token t is the ``width`` numbers from ``t · columns + column`` of the flat ``payload``.
    """
    block[:] = 0
    counts[:] = 0
    aligned = width - width % LANES
    for token in range(len(codes)):
        code = codes[token]
        if counts[code] == 0:
            keys[code] = token
        counts[code] += 1
        target, start, weight = order[code] * width, token * columns + column, weights[token]
        for i in range(0, aligned, LANES):
            add_scaled(block, target + i, payload, start + i, weight)
        for i in range(aligned, width):
            block[target + i] += weight * payload[start + i]


@compiled
def nearest_tokens(k: int, keys: np.ndarray) -> None:
    """Reduce each key (2^k,), a distance and a token, to the minimum over all keys plus their Hamming distance.

    The exact distance transform on a hypercube, one bit at a time; of equally near tokens the first wins.
    """
    for j in range(k):
        for code in range(len(keys)):
            keys[code] = min(keys[code], keys[code ^ (1 << j)] + STEP)


@compiled
def average_partitions(
    payload: np.ndarray,
    columns: int,
    column: int,
    order: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
    fill: bool,
    block: np.ndarray,
    width: int,
) -> None:
    """Convert the sums in ``block`` to means; with ``fill``, set empty partitions to the payload of their key."""
    aligned = width - width % LANES
    for code in range(len(counts)):
        target, number = order[code] * width, np.float32(counts[code])
        if counts[code] > 1:
            for i in range(0, aligned, LANES):
                divide(block, target + i, number)
            for i in range(aligned, width):
                block[target + i] /= number
        elif counts[code] == 0 and fill:
            start = (keys[code] & (STEP - 1)) * columns + column
            block[target : target + width] = payload[start : start + width]


@compiled
def accumulate_partitions(
    products: np.ndarray,
    thresholds: np.ndarray,
    payload: np.ndarray,
    first_column: int,
    step: int,
    weights: np.ndarray,
    offsets: np.ndarray,
    order: np.ndarray,
    is_document: bool,
    fill: bool,
    out: np.ndarray,
) -> None:
    """Fill the encodings of n texts from the products of their tokens with the matrices.

    Args:
        products: (T, >= k · R) float32; column j · R + r determines bit j of repetition r.
        thresholds: (k, R) float32; a bit is set above, not at, its threshold.
        payload: (T, c) float32, contiguous; repetition r adds the p columns from ``first_column + r · step``.
        first_column: See ``payload``.
        step: See ``payload``; 0 if every repetition adds the same columns.
        weights: (T,) float32, the factor of each token's payload; ones for documents.
        offsets: (n + 1,) int64 of the texts in T, starting at 0.
        order: (2^k,) int64, from `partition_order`.
        is_document: Whether partitions hold means instead of sums.
        fill: Whether an empty partition of a document takes the token at the smallest Hamming distance, the first of
            several.
        out: (n, R, 2^k, p) float32, fully overwritten.
    """
    k, repetitions = thresholds.shape
    partitions, width = out.shape[2], out.shape[3]
    columns = payload.shape[1]
    all_codes = np.empty((np.max(np.diff(offsets)), repetitions), np.int32)
    counts = np.empty(partitions, np.int64)
    keys = np.empty(partitions, np.int64)
    for text in range(len(out)):
        start, stop = offsets[text], offsets[text + 1]
        codes, part = all_codes[: stop - start], payload[start:stop].reshape(-1)
        assign_partitions(products[start:stop], thresholds, codes)
        for r in range(repetitions):
            column, block = first_column + r * step, out[text, r].reshape(-1)
            keys[:] = STEP * (k + 1)
            sum_tokens(codes[:, r], part, columns, column, weights[start:stop], order, counts, keys, block, width)
            if is_document:
                if fill:
                    nearest_tokens(k, keys)
                average_partitions(part, columns, column, order, counts, keys, fill, block, width)


@compiled
def count_sketch(encodings: np.ndarray, columns: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """Project ``encodings`` (n, F) to ``out`` (n, f): coordinate i is added to ``columns[i]`` times ``signs[i]``."""
    for text in range(len(encodings)):
        out[text] = 0
        for i in range(len(columns)):
            out[text, columns[i]] += signs[i] * encodings[text, i]
