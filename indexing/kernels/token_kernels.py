"""Kernels that decode the stored token vectors of scattered documents into one contiguous float32 array."""

from __future__ import annotations

import numpy as np

from indexing.kernels.jit import compiled


@compiled
def copy_rows(values: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Copy rows ``starts[i]`` to ``stops[i]`` of ``values`` (T, d) float32 to ``out`` (n, d)."""
    position = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target = values[row], out[position]
            for i in range(len(source)):
                target[i] = source[i]
            position += 1


@compiled
def scale_rows(values: np.ndarray, scales: np.ndarray, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
    """Write rows of ``values`` (T, d) int8 times ``scales`` (T,) to ``out`` (n, d)."""
    position = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            source, target, scale = values[row], out[position], scales[row]
            for i in range(len(source)):
                target[i] = scale * np.float32(source[i])
            position += 1


@compiled
def add_residuals(
    codes: np.ndarray,
    entries: np.ndarray,
    centroids: np.ndarray,
    table: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the normalised sums of centroid and residual to ``out`` (n, d).

    Args:
        codes: (T, d · bits / 8) uint8.
        entries: (T,) int32, the centroid of each row.
        centroids: (C, d) float32.
        table: (256, 8 / bits) float32, the residuals that a byte encodes.
        starts: (n,) int64, the first row of each document.
        stops: (n,) int64, the last rows, exclusive.
        out: (n, d) float32.
    """
    step = table.shape[1]
    position = 0
    for document in range(len(starts)):
        for row in range(starts[document], stops[document]):
            target, centroid = out[position], centroids[entries[row]]
            for i in range(codes.shape[1]):
                residuals = table[codes[row, i]]
                for j in range(step):
                    target[i * step + j] = centroid[i * step + j] + residuals[j]
            square = np.float32(0)
            for i in range(len(target)):
                square += target[i] * target[i]
            scale = np.float32(1) / np.sqrt(square) if square > 0 else np.float32(1)
            for i in range(len(target)):
                target[i] *= scale
            position += 1
