"""Imports that need the optional packages of the extra ``mteb``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from embedserve import EmbedserveError


@contextmanager
def needing_extra() -> Iterator[None]:
    """Guard imports that need the extra ``mteb``.

    Raises:
        EmbedserveError: A package is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise EmbedserveError(f"this needs {error.name}; run: pip install 'embedserve[mteb]'") from error


@contextmanager
def needing_mteb() -> Iterator[None]:
    """Guard imports that need mteb, and silence its progress bars and logs.

    Raises:
        EmbedserveError: mteb or a dependency is not installed.
    """
    with needing_extra():
        import datasets

        yield
    datasets.disable_progress_bars()
    logging.getLogger("mteb").setLevel(logging.ERROR)
