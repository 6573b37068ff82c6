"""The right to write: one writer for each collection, in a thread of its own, closed when nothing is written."""

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
    """Opens a collection for writing with the first write, and closes it when none has come for a while.

    Until then no other process may write to it. The writes of a collection are done one after another, those of
    several side by side; searches wait for none of them.

    Args:
        collections: Where a collection that is written to is searched.
        idle_s: Seconds without a successful write after which it is closed.
    """

    def __init__(self, collections: Collections, idle_s: float) -> None:
        self._collections, self._idle_s = collections, idle_s
        self._sessions: dict[str, _Session] = {}
        self._reserved: dict[str, str] = {}
        self._lock = threading.Lock()  # held for moments only
        self._closed = False

    def submit(self, name: str, work: Callable[[Collection], T]) -> Future[T]:
        """Let ``work`` write to the collection that is called ``name`` or has that alias.

        Raises:
            ApiError: 404, there is none; 503, the server is shutting down. The future has the other errors.
            BusyError: It is being replaced.
        """
        from indexing.collections.catalog import collection_path
        from indexing.collections.manifest import MANIFEST

        key = self._collections.key(name)
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise ApiError(503, "shutting_down", "the server is shutting down; send the request to another")
            self._check_free(key)
            if not (collection_path(self._collections.data_dir, key) / MANIFEST).exists():
                raise self._collections.unknown(name)
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = _Session(self, key)
            session.work.put((work, future))
        return future

    def _check_free(self, key: str) -> None:
        if key in self._reserved:
            message = f"collection {key!r} cannot be written to just now: {self._reserved[key]}; try again later"
            raise BusyError(message, field="collection")

    def release(self, key: str) -> None:
        """Return once this server writes no more to the collection ``key``; a later write opens it again."""
        with self._lock:
            session = self._sessions.get(key)
            if session is not None:
                session.work.put(None)
        if session is not None:
            session.thread.join()

    @contextmanager
    def reserved(self, key: str, why: str) -> Iterator[None]:
        """Keep the collection ``key`` free for who replaces it: a write is refused meanwhile, and none is under way.

        Raises:
            BusyError: It is reserved already.
        """
        with self._lock:
            self._check_free(key)
            self._reserved[key] = why
        try:
            self.release(key)
            yield
        finally:
            with self._lock:
                self._reserved.pop(key, None)

    def close(self) -> None:
        """Do what was asked for, take nothing more, and close every collection."""
        with self._lock:
            self._closed = True
            keys = list(self._sessions)
        for key in keys:
            self.release(key)

    def ended(self, key: str, session: _Session) -> bool:
        """Take a session away unless more work has come; return whether it is gone."""
        with self._lock:
            if not session.work.empty():
                return False
            self._sessions.pop(key, None)
            return True


class _Session:
    """One collection that is written to, and the thread that does it."""

    def __init__(self, writers: Writers, key: str) -> None:
        self.work: queue.SimpleQueue[tuple[Work, Future[Any]] | None] = queue.SimpleQueue()
        self._writers, self._key = writers, key
        self._writer: Collection | None = None
        self._idle_at = time.monotonic() + writers._idle_s  # when the right to write goes back
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
            if self._writers.ended(self._key, self):
                return

    def _do(self, work: Work, future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work(self._opened())
        except BaseException as error:  # it is the caller's, who waits; this thread goes on for the others
            future.set_exception(error)
            return
        self._idle_at = time.monotonic() + self._writers._idle_s  # a write that failed is no reason to keep the right
        future.set_result(result)

    def _opened(self) -> Collection:
        from indexing import Collection
        from indexing.collections.catalog import collection_path

        if self._writer is not None and not self._writer.is_writable:
            self._close()  # it can never write again; a new one can
        if self._writer is None:
            collections = self._writers._collections
            directory = collection_path(collections.data_dir, self._key)
            with collections.held(self._key) as before:
                self._writer = Collection.open(directory, writable=True, previous=before)
            collections.written(self._key, self._writer)
            self._idle_at = time.monotonic() + self._writers._idle_s
            logger.info("collection=%s opened for writing", self._key)
        return self._writer

    def _close(self) -> None:
        """Give the right to write back; searches go on with what was written."""
        if self._writer is not None:
            self._writers._collections.read(self._key)  # before others may write: nothing of theirs is to be missed
            self._writer.stop_writing()
            self._writer = None
            logger.info("collection=%s closed for writing", self._key)
