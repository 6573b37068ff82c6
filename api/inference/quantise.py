"""Quantisation of unit vectors to int8 and binary types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

VectorType = Literal["float", "int8", "uint8", "binary", "ubinary"]
VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)


def quantise(vectors: np.ndarray, to: VectorType) -> np.ndarray:
    """Convert unit vectors to another type; the type names are those of Cohere and Voyage.

    Rows are independent and the scale is the same for every model, so vectors quantised in different requests are
    comparable.

    - ``float``: unchanged.
    - ``int8``: ``round(127 x)``, -127 to 127. ``q / 127`` is x to 1 / 254, and ``q . p / 127**2`` their cosine.
    - ``uint8``: ``int8 + 128``, 1 to 255.
    - ``ubinary``: bit ``x > 0``, eight values per byte, the first in the highest bit; if d is not a multiple
      of eight, the last byte is padded with zeros.
    - ``binary``: ``ubinary - 128``, -128 to 127, as sentence-transformers and Cohere shift it.

    Args:
        vectors: (N, d) float32 of length 1. Longer vectors are clipped by int8 and uint8.
        to: The target type.

    Returns:
        float32, int8 or uint8 (N, d); for the binary types int8 or uint8 (N, ceil(d / 8)). Rows are contiguous.
    """
    return np.ascontiguousarray(_QUANTISERS[to](vectors))


def _float(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float32, copy=False)


def _int8(vectors: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(vectors * np.float32(127)), -127, 127).astype(np.int8)


def _uint8(vectors: np.ndarray) -> np.ndarray:
    return _int8(vectors).view(np.uint8) ^ np.uint8(128)


def _ubinary(vectors: np.ndarray) -> np.ndarray:
    return np.packbits(vectors > 0, axis=1)


def _binary(vectors: np.ndarray) -> np.ndarray:
    return (_ubinary(vectors) ^ np.uint8(128)).view(np.int8)


_QUANTISERS: dict[VectorType, Callable[[np.ndarray], np.ndarray]] = {
    "float": _float,
    "int8": _int8,
    "uint8": _uint8,
    "binary": _binary,
    "ubinary": _ubinary,
}
