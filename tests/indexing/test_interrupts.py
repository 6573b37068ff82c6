"""Ctrl-C in a block that takes locks: it waits for the end of the block, and leaves no lock taken."""

import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest

from indexing.collections.catalog import collection_path
from indexing.jobs.interrupts import deferred_interrupt
from indexing.jobs.job import JobOptions, job_path, run_job
from tests.indexing.bag import BagEncoder, make_documents


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_it_comes_at_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupt(lambda: done.append("woken")):
        interrupt()
        done.append("end")
    assert done == ["woken", "end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_of_the_block_is_not_hidden():
    with pytest.raises(ValueError, match="mine"), deferred_interrupt(list):
        interrupt()
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_lock_is_left_taken():
    """Without the block, about half of these interrupts leave the lock of the future with this thread."""
    made = Future()
    made.set_result(1)
    for _ in range(50):
        sender = threading.Thread(target=lambda: (time.sleep(0.001), interrupt()))
        came = []
        with pytest.raises(KeyboardInterrupt), deferred_interrupt(lambda came=came: came.append(1)):
            sender.start()
            while not came:
                made.done()
        sender.join()
        other = threading.Thread(target=made.done, daemon=True)  # needs the lock
        other.start()
        other.join(10)
        assert not other.is_alive()


def test_other_handlers_and_other_threads_keep_theirs():
    handlers = []

    def look():
        with deferred_interrupt(list):
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    try:
        for handler in (signal.SIG_IGN, print):
            signal.signal(signal.SIGINT, handler)
            look()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert handlers == [signal.default_int_handler, signal.SIG_IGN, print]


class HeldBag(BagEncoder):
    """Interrupts the main thread once it waits, and computes only then."""

    def __init__(self):
        super().__init__()
        self.told = threading.Event()

    def embed(self, texts, task="document", **options):
        if not self.told.is_set():
            self.told.set()
            time.sleep(0.2)
            interrupt()
        return super().embed(texts, task)


def test_a_job_that_waits_for_a_shard_ends_and_the_next_goes_on(tmp_path):
    place = collection_path(tmp_path, "docs"), job_path(tmp_path, "docs"), JobOptions(shard_size=10)
    with pytest.raises(KeyboardInterrupt):
        run_job(make_documents(40), HeldBag(), *place)
    report = run_job(make_documents(40), BagEncoder(), *place)
    assert report.documents == 40
