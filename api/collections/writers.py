"""The writers of the service: one per collection, in its own thread, closed when idle."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from api.collections.open_collections import Collections
from api.http.error_responses import ApiError
from embedserve.errors import BusyError

if TYPE_CHECKING:
    from indexing import Collection

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[["Collection"], Any]


class Writers:
    """Opens a collection for writing at the first write, and closes it once it has been idle.

    While it is open, no other process can write to it. Writes to one collection run one after another, writes to
    several collections in parallel; searches never wait for a write.

    Args:
        collections: Serve searches through the open writers.
        idle_s: Seconds without a successful write after which a writer is closed.
    """

    def __init__(self, collections: Collections, idle_s: float) -> None:
        self._collections, self._idle_s = collections, idle_s
        self._threads: dict[str, _WriterThread] = {}
        self._reserved: dict[str, str] = {}
        self._lock = threading.Lock()  # held briefly
        self._closed = False

    def submit(self, name: str, work: Callable[[Collection], T]) -> Future[T]:
        """Run ``work`` with the writer of the collection of a name or alias.

        Raises:
            ApiError: 404, the collection does not exist; 503, the server is shutting down. Other errors are set on the
                future.
            BusyError: The collection is being replaced.
        """
        from indexing.collections.catalog import collection_path
        from indexing.collections.manifest import MANIFEST

        key = self._collections.key(name)
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                message = "the server is shutting down; send the request to another server"
                raise ApiError(503, "shutting_down", message)
            self._check_free(key)
            if not (collection_path(self._collections.data_dir, key) / MANIFEST).exists():
                raise self._collections.unknown(name)
            writer = self._threads.get(key)
            if writer is None:
                writer = self._threads[key] = _WriterThread(self, self._collections, key, self._idle_s)
            writer.work.put((work, future))
        return future

    def _check_free(self, key: str) -> None:
        if key in self._reserved:
            message = f"collection {key!r} is not writable now: {self._reserved[key]}; try again later"
            raise BusyError(message, field="collection")

    def release(self, key: str) -> None:
        """Finish the pending writes to a collection and close its writer; a later write opens it again."""
        with self._lock:
            writer = self._threads.get(key)
            if writer is not None:
                writer.work.put(None)
        if writer is not None:
            writer.thread.join()

    @contextmanager
    def reserved(self, key: str, reason: str) -> Iterator[None]:
        """Reject writes to a collection for the duration of the block, for example while it is replaced.

        Raises:
            BusyError: It is reserved already.
        """
        with self._lock:
            self._check_free(key)
            self._reserved[key] = reason
        try:
            self.release(key)
            yield
        finally:
            with self._lock:
                self._reserved.pop(key, None)

    def close(self) -> None:
        """Finish pending writes, reject new ones, and close every writer."""
        with self._lock:
            self._closed = True
            keys = list(self._threads)
        for key in keys:
            self.release(key)

    def remove_idle(self, key: str, writer: _WriterThread) -> bool:
        """Remove a writer if it has no pending work; return whether it was removed."""
        with self._lock:
            if not writer.work.empty():
                return False
            self._threads.pop(key, None)
            return True


class _WriterThread:
    """The thread that writes to one collection."""

    def __init__(self, writers: Writers, collections: Collections, key: str, idle_s: float) -> None:
        self.work: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._writers, self._collections, self._key, self._idle_s = writers, collections, key, idle_s
        self._writer: Collection | None = None
        self._idle_at = time.monotonic() + idle_s  # deadline of the next successful write
        self.thread = threading.Thread(target=self._run, name=f"write-{key}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                item = self.work.get(timeout=max(0.0, self._idle_at - time.monotonic()))
            except queue.Empty:
                item = None
            if item is not None:
                self._do(*item)
                if time.monotonic() < self._idle_at:
                    continue
            self._close()
            if self._writers.remove_idle(self._key, self):
                return

    def _do(self, work: Work, future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work(self._open())
        except BaseException as error:  # raised in the caller, which waits for the future
            future.set_exception(error)
            return
        self._idle_at = time.monotonic() + self._idle_s  # after a success only: failures do not keep the lock
        future.set_result(result)

    def _open(self) -> Collection:
        from indexing import Collection
        from indexing.collections.catalog import collection_path

        if self._writer is not None and not self._writer.is_writable:
            self._close()  # poisoned by a failed write; a new writer recovers
        if self._writer is None:
            directory = collection_path(self._collections.data_dir, self._key)
            with self._collections.held(self._key) as previous:
                self._writer = Collection.open(directory, writable=True, previous=previous)
            self._collections.attach_writer(self._key, self._writer)
            self._idle_at = time.monotonic() + self._idle_s
            logger.info("collection=%s opened for writing", self._key)
        return self._writer

    def _close(self) -> None:
        """Release the write lock; searches keep the written state."""
        if self._writer is not None:
            self._collections.detach_writer(self._key)  # first, to miss no later write of others
            self._writer.stop_writing()
            self._writer = None
            logger.info("collection=%s closed for writing", self._key)
