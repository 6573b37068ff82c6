"""Reusable per-thread buffers: allocating new memory pages would cost about as much as the loops that fill them."""

from __future__ import annotations

import threading

import numpy as np


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}


_BUFFERS = _Buffers()


def scratch_buffer(name: str, count: int, width: int) -> np.ndarray:
    """Return an uninitialised array (count, width) float32; each thread reuses the memory of the same name."""
    buffer = _BUFFERS.arrays.get(name)
    if buffer is None or buffer.size < count * width:
        buffer = _BUFFERS.arrays[name] = np.empty(count * width, dtype=np.float32)
    return buffer[: count * width].reshape(count, width)
