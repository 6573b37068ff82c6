"""Ctrl-C in a block that takes locks: it waits for the end of the block, and is never lost."""

import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest

from indexing.interrupts import deferred_interrupt


class Alarm(Exception):
    """Stands for KeyboardInterrupt, which pytest would take for its own."""


@pytest.fixture
def alarmed():
    """SIGINT raises `Alarm` in this test."""

    def raise_it(number, frame):
        raise Alarm

    before = signal.signal(signal.SIGINT, raise_it)
    yield raise_it
    signal.signal(signal.SIGINT, before)


def test_it_comes_at_the_end_of_the_block(alarmed):
    done = []
    with pytest.raises(Alarm), deferred_interrupt(lambda: done.append("woken")):
        os.kill(os.getpid(), signal.SIGINT)
        done.append("end")
    assert done == ["woken", "end"]
    assert signal.getsignal(signal.SIGINT) is alarmed


def test_an_error_of_the_block_is_not_hidden(alarmed):
    with pytest.raises(ValueError, match="mine"), deferred_interrupt(list):
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is alarmed


def test_no_lock_is_left_taken(alarmed):
    """Without the block, about half of these interrupts leave the lock of the future with this thread."""
    made = Future()
    made.set_result(1)
    for _ in range(50):
        sender = threading.Thread(target=lambda: (time.sleep(0.001), os.kill(os.getpid(), signal.SIGINT)))
        came = []
        with pytest.raises(Alarm), deferred_interrupt(lambda came=came: came.append(1)):
            sender.start()
            while not came:
                made.done()
        sender.join()
        assert not made._condition._lock._is_owned()


def test_where_it_is_ignored_or_elsewhere_nothing_changes(alarmed):
    handlers = []

    def look():
        with deferred_interrupt(list):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    look()
    assert handlers == [alarmed, signal.SIG_IGN]
