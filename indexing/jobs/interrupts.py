"""Ctrl-C where locks are held: raised in the middle of taking one, it would leave it taken for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(wake: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` at the end of the block, in the main thread; elsewhere change nothing.

    `concurrent.futures` takes its locks in Python: an exception between taking one and the block that gives it back
    leaves the thread that sets a result waiting for ever, and the interpreter waiting for that thread. Where Ctrl-C
    does something else than raise that, it goes on doing so.

    Args:
        wake: Called from the signal handler; must take no lock. The block may raise `KeyboardInterrupt` earlier.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(number: int, frame: object) -> None:
        nonlocal came
        came = True
        wake()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt
