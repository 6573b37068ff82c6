"""The loops of fixed dimensional encodings: token projections into partitions, documents one by one."""

from __future__ import annotations

import numpy as np

from indexing.compiled import compiled

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
    """Fill ``codes`` (R, t) with the tokens' bit strings: bit j of repetition r is product r · k + j > threshold."""
    repetitions, k = thresholds.shape
    for token in range(len(products)):
        row = products[token]
        for r in range(repetitions):
            code = 0
            for j in range(k):
                code = 2 * code + (row[r * k + j] > thresholds[r, j])
            codes[r, token] = code


@compiled
def add_tokens(
    codes: np.ndarray,
    payload: np.ndarray,
    weights: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    keys: np.ndarray,
    block: np.ndarray,
) -> None:
    """Sum the payload (t, p) of tokens by partition into ``block`` (2^k, p); count them, and note each one's first."""
    block[:] = 0
    counts[:] = 0
    for token in range(len(payload)):
        code = codes[token]
        if counts[code] == 0:
            keys[code] = token
        counts[code] += 1
        total, part, weight = block[order[code]], payload[token], weights[token]
        for i in range(len(part)):
            total[i] += weight * part[i]


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
    payload: np.ndarray, order: np.ndarray, counts: np.ndarray, keys: np.ndarray, fill: bool, block: np.ndarray
) -> None:
    """Turn the sums of ``block`` into means; with ``fill`` an empty partition becomes the payload its key names."""
    for code in range(len(counts)):
        total, number = block[order[code]], np.float32(counts[code])
        if counts[code] > 1:
            for i in range(len(total)):
                total[i] /= number
        elif counts[code] == 0 and fill:
            part = payload[keys[code] & (FAR - 1)]
            for i in range(len(total)):
                total[i] = part[i]


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
        products: (T, >= R · k) float32; column r · k + j decides bit j of repetition r.
        thresholds: (R, k) float32; a bit is set above, not at, its threshold.
        payload: (T, c) float32; a token adds columns ``first_column + r · step`` onwards, p of them.
        first_column: See ``payload``.
        step: See ``payload``; 0 where every repetition adds the same columns.
        weights: (T,) float32, what a query token's payload is multiplied by; ones for documents.
        offsets: (n + 1,) int64 of the texts in T, starting at 0.
        order: (2^k,) int64, from `partition_order`.
        is_document: Partitions hold means, not sums.
        fill: Empty partitions of a document take the token with the fewest differing bits, of equals the first.
        out: (n, R, 2^k, p) float32, written whole.
    """
    repetitions, k = thresholds.shape
    partitions, width = out.shape[2], out.shape[3]
    codes = np.empty((repetitions, np.max(np.diff(offsets))), np.int32)
    counts = np.empty(partitions, np.int64)
    keys = np.empty(partitions, np.int64)
    for text in range(len(out)):
        start, stop = offsets[text], offsets[text + 1]
        find_partitions(products[start:stop], thresholds, codes)
        for r in range(repetitions):
            column = first_column + r * step
            part, block = payload[start:stop, column : column + width], out[text, r]
            keys[:] = FAR * (k + 1)
            add_tokens(codes[r], part, weights[start:stop], order, counts, keys, block)
            if is_document:
                if fill:
                    spread(k, keys)
                average(part, order, counts, keys, fill, block)


@compiled
def sketch(encodings: np.ndarray, columns: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """Bring ``encodings`` (n, F) to ``out`` (n, f): coordinate i goes to ``columns[i]`` times ``signs[i]``."""
    for text in range(len(encodings)):
        out[text] = 0
        for i in range(len(columns)):
            out[text, columns[i]] += signs[i] * encodings[text, i]
