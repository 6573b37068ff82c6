"""Ctrl-C where locks are held: raised in the middle of taking one, it would leave it taken for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(wake: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C take effect at the end of the block, in the main thread; elsewhere change nothing.

    `concurrent.futures` takes its locks in Python: an exception between taking one and the block that gives it back
    leaves the thread that sets a result waiting for ever, and the interpreter waiting for that thread.

    Args:
        wake: Called from the signal handler; must take no lock. The block may raise `KeyboardInterrupt` earlier.
    """
    before = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(before):  # not the main thread, or Ctrl-C is ignored, or ends the process without Python
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
        signal.signal(signal.SIGINT, before)
    if came:
        before(signal.SIGINT, None)
