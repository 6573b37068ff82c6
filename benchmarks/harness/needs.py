"""What the commands of the harness need beside embedserve itself: the packages of one extra."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from embedserve import EmbedserveError


@contextmanager
def needing_extra() -> Iterator[None]:
    """Import what needs packages of the extra ``mteb``.

    Raises:
        EmbedserveError: One of them is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise EmbedserveError(f"this needs {error.name}; run: pip install 'embedserve[mteb]'") from error


@contextmanager
def needing_mteb() -> Iterator[None]:
    """Import what needs mteb, and keep it quiet.

    Raises:
        EmbedserveError: mteb or what it needs is not installed.
    """
    with needing_extra():
        import datasets

        yield
    datasets.disable_progress_bars()
    logging.getLogger("mteb").setLevel(logging.ERROR)
