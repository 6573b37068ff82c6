"""Memory that a thread uses again and again: new pages would cost about as much as the loops that fill them."""

from __future__ import annotations

import threading

import numpy as np


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}


_SCRATCH = _Scratch()


def scratch(name: str, count: int, width: int) -> np.ndarray:
    """Return (count, width) float32 with anything in it, the same memory for one name and thread each time."""
    held = _SCRATCH.arrays.get(name)
    if held is None or held.size < count * width:
        held = _SCRATCH.arrays[name] = np.empty(count * width, dtype=np.float32)
    return held[: count * width].reshape(count, width)
