"""Codecs of token vectors: float32, float16, int8 with a scale per row, or centroid and residual.

| codec | bytes for 128 dimensions | |
|---|---|---|
| float32 | 512 | exact |
| float16 | 256 | relative error 2^-11 |
| int8 | 132 | error at most 1/254 of the row's largest magnitude |
| residual4, residual2 | 68, 36 | nearest of up to 4096 centroids, and 4 or 2 bits per dimension |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from embedserve.errors import InputError, did_you_mean
from indexing.kernels.float16 import widen_rows
from indexing.kernels.token_kernels import copy_rows, scale_rows
from indexing.late_interaction.token_residuals import ResidualCodec

Arrays = Mapping[str, np.ndarray]


class Codec(Protocol):
    """Encodes rows to arrays with one entry per row, and decodes them."""

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows, by name."""
        ...

    def train(self, vectors: np.ndarray) -> None:
        """Train the codec on the first rows (T, d); most codecs need no training."""
        ...

    def learnt(self) -> dict[str, np.ndarray]:
        """Return the trained arrays by name, for `open_codec`."""
        ...

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of rows (T, d) float32."""
        ...

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Write rows ``starts[i]`` to ``stops[i]`` contiguously to ``out`` (n, d) float32."""
        ...


class Float32Codec:
    """Unchanged rows."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows."""
        return {"values": np.empty((0, self.dim), dtype=np.float32)}

    def train(self, vectors: np.ndarray) -> None:
        """Do nothing."""

    def learnt(self) -> dict[str, np.ndarray]:
        """Return no arrays."""
        return {}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows."""
        return {"values": vectors}

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Copy rows."""
        copy_rows(arrays["values"], starts, stops, out)


class Float16Codec(Float32Codec):
    """Rows rounded to float16."""

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows."""
        return {"values": np.empty((0, self.dim), dtype=np.float16)}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows as float16; raise `InputError` for values out of its range."""
        if vectors.size and np.abs(vectors).max() > np.finfo(np.float16).max:
            raise InputError("token vectors contain values above 65,504; use codec float32", field="documents")
        return {"values": vectors.astype(np.float16)}

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Widen rows."""
        widen_rows(arrays["values"].view(np.uint16), starts, stops, out)


class Int8Codec(Float32Codec):
    """Rows as integers from -127 to 127, with a scale per row."""

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows."""
        return {"values": np.empty((0, self.dim), dtype=np.int8), "scales": np.empty(0, dtype=np.float32)}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the integers and the scales."""
        scales = (np.abs(vectors).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
        values = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
        return {"values": values, "scales": scales}

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Multiply rows by their scales."""
        scale_rows(arrays["values"], arrays["scales"], starts, stops, out)


CODECS = ("float16", "float32", "int8", "residual4", "residual2")


def open_codec(name: str, dim: int, learnt: Arrays | None = None) -> Codec:
    """Return the codec ``name`` for rows of ``dim`` dimensions, untrained or with arrays from `Codec.learnt`.

    Raises:
        InputError: An unknown codec, or one that does not support ``dim``.
    """
    if name == "float16":
        return Float16Codec(dim)
    if name == "float32":
        return Float32Codec(dim)
    if name == "int8":
        return Int8Codec(dim)
    if name in ("residual4", "residual2"):
        return ResidualCodec(dim, int(name[-1]), learnt)
    message = f"codec must be one of {', '.join(CODECS)}, got {name!r}; {did_you_mean(str(name), CODECS)}"
    raise InputError(message.rstrip("; "), field="codec")
