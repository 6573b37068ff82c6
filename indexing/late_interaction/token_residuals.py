"""ColBERTv2's codes (Santhanam et al. 2022, arXiv 2112.01488, section 3.3): a centroid and a quantised residual.

Residuals are quantised to 2^bits levels. The boundaries are quantiles of all residuals and the levels lie midway
between them, as in PLAID's index. Decoded rows have unit length.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from embedserve.errors import InputError
from indexing.kernels.token_kernels import add_residuals

TRAIN_ROWS = 1 << 16
MAX_CENTROIDS = 4096
QUANTILE_VALUES = 1 << 20
ITERATIONS = 8
BLOCK = 1 << 14
UNIT_TOLERANCE = 1e-2


class ResidualCodec:
    """Unit rows as the number of their nearest centroid and 2 or 4 bits per dimension.

    Args:
        dim: d.
        bits: 2 or 4.
        learnt: The arrays of a trained codec (`learnt`). Default: untrained.

    Raises:
        InputError: The codes of ``dim`` dimensions do not fill whole bytes.
    """

    def __init__(self, dim: int, bits: int, learnt: Mapping[str, np.ndarray] | None = None) -> None:
        if dim * bits % 8:
            raise InputError(f"codec residual{bits} needs a width that 8 / {bits} divides, got {dim}", field="codec")
        self.dim, self.bits = dim, bits
        self._centroids = np.empty((0, dim), dtype=np.float32)
        self._borders = self._levels = np.empty(0, dtype=np.float32)
        if learnt is not None:
            self._centroids, self._borders, self._levels = (learnt[name] for name in ("centroids", "borders", "levels"))
            self._table = byte_table(self._levels, bits)

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows: ``values`` (0, d · bits / 8) uint8 and ``entries`` (0,) int32."""
        width = self.dim * self.bits // 8
        return {"values": np.empty((0, width), dtype=np.uint8), "entries": np.empty(0, dtype=np.int32)}

    def train(self, vectors: np.ndarray) -> None:
        """Train centroids and levels on the first rows (T, d); at most 65,536 of them are used."""
        rng = np.random.default_rng(0)
        if len(vectors) > TRAIN_ROWS:
            vectors = vectors[np.sort(rng.choice(len(vectors), TRAIN_ROWS, replace=False))]
        count = 1 << round(np.log2(4 * len(vectors) ** 0.5))
        self._centroids = spherical_kmeans(vectors, min(count, len(vectors), MAX_CENTROIDS))
        residuals = (vectors - self._centroids[nearest(vectors, self._centroids)]).ravel()
        residuals = residuals[:: max(1, len(residuals) // QUANTILE_VALUES)]
        steps = 1 << self.bits
        self._borders = np.quantile(residuals, np.arange(1, steps) / steps).astype(np.float32)
        self._levels = np.quantile(residuals, (np.arange(steps) + 0.5) / steps).astype(np.float32)
        self._table = byte_table(self._levels, self.bits)

    def learnt(self) -> dict[str, np.ndarray]:
        """Return ``centroids`` (C, d), ``borders`` (2^bits - 1,) and ``levels`` (2^bits,), all float32."""
        return {"centroids": self._centroids, "borders": self._borders, "levels": self._levels}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the codes of rows (T, d) float32; raise `InputError` if one is not of unit length."""
        lengths = np.sqrt(np.einsum("td,td->t", vectors, vectors))
        if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
            row = int(np.argmax(np.abs(lengths - 1)))
            message = f"codec residual{self.bits} requires vectors of unit length, row {row} has {lengths[row]:.3f}"
            raise InputError(f"{message}; use float16 or int8", field="documents")
        entries = nearest(vectors, self._centroids)
        values = np.empty((len(vectors), self.dim * self.bits // 8), dtype=np.uint8)
        for start in range(0, len(vectors), BLOCK):
            part = slice(start, start + BLOCK)
            codes = np.searchsorted(self._borders, vectors[part] - self._centroids[entries[part]])
            codes = codes.astype(np.uint8).reshape(len(codes), -1, 8 // self.bits)
            shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
            values[part] = np.bitwise_or.reduce(codes << shifts, axis=2)
        return {"values": values, "entries": entries}

    def decode(self, arrays: Mapping[str, np.ndarray], starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Add residuals to centroids, and normalise."""
        add_residuals(arrays["values"], arrays["entries"], self._centroids, self._table, starts, stops, out)


def byte_table(levels: np.ndarray, bits: int) -> np.ndarray:
    """Return (256, 8 / bits) float32: the levels that each byte encodes, lowest bits first."""
    shifts = np.arange(0, 8, bits)
    table: np.ndarray = levels[(np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)]
    return np.ascontiguousarray(table, dtype=np.float32)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the centroid (T,) int32 with the largest dot product for each row (T, d), the first of several."""
    out = np.empty(len(vectors), dtype=np.int32)
    for start in range(0, len(vectors), BLOCK):
        part = slice(start, start + BLOCK)
        out[part] = np.argmax(vectors[part] @ centroids.T, axis=1)
    return out


def spherical_kmeans(vectors: np.ndarray, count: int, iterations: int = ITERATIONS, seed: int = 0) -> np.ndarray:
    """Return ``count`` unit centroids (count, d) float32 of unit rows (T, d), T at least ``count``.

    Starts from rows drawn without replacement; a centroid without rows is not moved.
    """
    sampled = np.random.default_rng(seed).choice(len(vectors), count, replace=False)
    centroids = np.ascontiguousarray(vectors[np.sort(sampled)])
    for _ in range(iterations):
        entries = nearest(vectors, centroids)
        order = np.argsort(entries, kind="stable")
        used, first = np.unique(entries[order], return_index=True)
        sums = np.add.reduceat(vectors[order], first, axis=0)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        nonzero = norms[:, 0] > 0
        centroids[used[nonzero]] = sums[nonzero] / norms[nonzero]
    return centroids
