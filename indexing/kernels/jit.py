"""Loops that numba compiles on their first call; they hold no lock while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Return ``function`` compiled on its first call, kept on the disk for the next process where that can be written.

    Floating point stays as written: sums keep their order, so results do not depend on the machine.
    """
    try:
        made: Any = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder for its cache: a read-only install without a home
        made = njit(nogil=True)(function)
    return cast(F, made)
