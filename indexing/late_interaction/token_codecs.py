"""How a token vector is kept: float32, float16, int8 with a scale for each row, or centroid and residual.

| codec | bytes for 128 dimensions | |
|---|---|---|
| float32 | 512 | as given |
| float16 | 256 | relative error 2^-11 |
| int8 | 132 | error at most 1/254 of the row's largest number |
| residual4, residual2 | 68, 36 | nearest of up to 4096 centroids and 4 or 2 bits for each dimension |
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
    """Rows in, arrays of one entry for each row out, and back."""

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows, by name."""
        ...

    def train(self, vectors: np.ndarray) -> None:
        """Learn what the codec needs from the first rows (T, d); most need nothing."""
        ...

    def learnt(self) -> dict[str, np.ndarray]:
        """Return what was learnt, by name, to be given back to `open_codec`."""
        ...

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the arrays of rows (T, d) float32."""
        ...

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Write rows ``starts[i]`` to ``stops[i]`` one behind another to ``out`` (n, d) float32."""
        ...


class Float32Codec:
    """Rows as they are."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows."""
        return {"values": np.empty((0, self.dim), dtype=np.float32)}

    def train(self, vectors: np.ndarray) -> None:
        """Learn nothing."""

    def learnt(self) -> dict[str, np.ndarray]:
        """Return nothing."""
        return {}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows."""
        return {"values": vectors}

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Copy rows."""
        copy_rows(arrays["values"], starts, stops, out)


class Float16Codec(Float32Codec):
    """Rows at half the precision."""

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows."""
        return {"values": np.empty((0, self.dim), dtype=np.float16)}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the rows as float16; raise `InputError` for numbers that are too large for it."""
        if vectors.size and np.abs(vectors).max() > np.finfo(np.float16).max:
            raise InputError("token vectors hold numbers above 65,504; use codec float32", field="documents")
        return {"values": vectors.astype(np.float16)}

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Widen rows."""
        widen_rows(arrays["values"].view(np.uint16), starts, stops, out)


class Int8Codec(Float32Codec):
    """Rows as whole numbers from -127 to 127 times a scale of their own."""

    def empty(self) -> dict[str, np.ndarray]:
        """Return the arrays of no rows."""
        return {"values": np.empty((0, self.dim), dtype=np.int8), "scales": np.empty(0, dtype=np.float32)}

    def encode(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Return the whole numbers and the scales."""
        scales = (np.abs(vectors).max(axis=1, initial=0) / np.float32(127)).astype(np.float32)
        values = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
        return {"values": values, "scales": scales}

    def decode(self, arrays: Arrays, starts: np.ndarray, stops: np.ndarray, out: np.ndarray) -> None:
        """Multiply rows by their scales."""
        scale_rows(arrays["values"], arrays["scales"], starts, stops, out)


CODECS = ("float16", "float32", "int8", "residual4", "residual2")


def open_codec(name: str, dim: int, learnt: Arrays | None = None) -> Codec:
    """Return the codec called ``name`` for rows of ``dim`` numbers, as new or with what it had `learnt`.

    Raises:
        InputError: No such codec, or one that does not fit ``dim``.
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
