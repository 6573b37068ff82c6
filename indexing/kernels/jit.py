"""The decorator of the numba kernels, which release the GIL while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Return ``function`` compiled on its first call, with an on-disk cache if a folder for it is writable.

    Fast math is off: sums keep their order, so results do not depend on the machine.
    """
    try:
        dispatcher: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no writable cache folder: a read-only installation without a home directory
        dispatcher = njit(nogil=True)(function)
    return cast(F, dispatcher)
