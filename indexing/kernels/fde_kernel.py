"""The loops of fixed dimensional encodings: token projections into partitions, documents one by one."""

from __future__ import annotations

import numpy as np

from indexing.kernels.jit import compiled
from indexing.kernels.simd import LANES, add_scaled, divide

FAR = 1 << 32  # one step of Hamming distance in a key; below it stands the number of a token


def partition_order(bits: int) -> np.ndarray:
    """Return the place (2^k,) int64 of each bit string in the encoding: its number as a Gray code.

    Bit strings are read first bit first. (The published code's layout; any other order would rank the same.)
    """
    codes = np.arange(1 << bits, dtype=np.int64)
    places = codes.copy()
    for shift in range(1, bits):
        places ^= codes >> shift
    return places


@compiled
def find_partitions(products: np.ndarray, thresholds: np.ndarray, codes: np.ndarray) -> None:
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
def add_tokens(
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
    """Sum the tokens' payload by partition into ``block`` (2^k · p,); count them, and note each one's first.

    Token t's payload are the ``width`` numbers from ``t · columns + column`` of the flat ``payload``.
    """
    block[:] = 0
    counts[:] = 0
    whole = width - width % LANES
    for token in range(len(codes)):
        code = codes[token]
        if counts[code] == 0:
            keys[code] = token
        counts[code] += 1
        place, start, weight = order[code] * width, token * columns + column, weights[token]
        for i in range(0, whole, LANES):
            add_scaled(block, place + i, payload, start + i, weight)
        for i in range(whole, width):
            block[place + i] += weight * payload[start + i]


@compiled
def spread(k: int, keys: np.ndarray) -> None:
    """Give each key (2^k,), distance and token, the least of all keys when a differing bit costs one step.

    The exact distance transform on a hypercube, bit by bit; of tokens equally near the first wins.
    """
    for j in range(k):
        for code in range(len(keys)):
            keys[code] = min(keys[code], keys[code ^ (1 << j)] + FAR)


@compiled
def average(
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
    """Turn the sums of ``block`` into means; with ``fill`` an empty partition becomes the payload its key names."""
    whole = width - width % LANES
    for code in range(len(counts)):
        place, number = order[code] * width, np.float32(counts[code])
        if counts[code] > 1:
            for i in range(0, whole, LANES):
                divide(block, place + i, number)
            for i in range(whole, width):
                block[place + i] /= number
        elif counts[code] == 0 and fill:
            start = (keys[code] & (FAR - 1)) * columns + column
            block[place : place + width] = payload[start : start + width]


@compiled
def scatter(
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
        products: (T, >= k · R) float32; column j · R + r decides bit j of repetition r.
        thresholds: (k, R) float32; a bit is set above, not at, its threshold.
        payload: (T, c) float32, contiguous; a token adds columns ``first_column + r · step`` onwards, p of them.
        first_column: See ``payload``.
        step: See ``payload``; 0 where every repetition adds the same columns.
        weights: (T,) float32, what a query token's payload is multiplied by; ones for documents.
        offsets: (n + 1,) int64 of the texts in T, starting at 0.
        order: (2^k,) int64, from `partition_order`.
        is_document: Partitions hold means, not sums.
        fill: Empty partitions of a document take the token with the fewest differing bits, of equals the first.
        out: (n, R, 2^k, p) float32, written whole.
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
        find_partitions(products[start:stop], thresholds, codes)
        for r in range(repetitions):
            column, block = first_column + r * step, out[text, r].reshape(-1)
            keys[:] = FAR * (k + 1)
            add_tokens(codes[:, r], part, columns, column, weights[start:stop], order, counts, keys, block, width)
            if is_document:
                if fill:
                    spread(k, keys)
                average(part, columns, column, order, counts, keys, fill, block, width)


@compiled
def sketch(encodings: np.ndarray, columns: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """Bring ``encodings`` (n, F) to ``out`` (n, f): coordinate i goes to ``columns[i]`` times ``signs[i]``."""
    for text in range(len(encodings)):
        out[text] = 0
        for i in range(len(columns)):
            out[text, columns[i]] += signs[i] * encodings[text, i]
