"""Deferred Ctrl-C: a `KeyboardInterrupt` between acquiring and releasing a lock would leave the lock held forever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt(wake: Callable[[], None]) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at the end of the block instead of within it, in the main thread.

    `concurrent.futures` acquires its locks in Python code. An exception between the acquisition and the release leaves
    the thread that sets a result, and then the exiting interpreter, waiting forever. In other threads, or if the
    application has its own SIGINT handler, nothing changes.

    Args:
        wake: Called from the signal handler; must not acquire a lock. The block may raise `KeyboardInterrupt` earlier.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def handle(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        wake()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt
