"""The collections on disk as the service sees them: opened once, opened anew when they are built again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.errors import ApiError
from embedserve.errors import EmbedserveError, InputError, NotFoundError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Collection

logger = logging.getLogger(__name__)

Stamp = tuple[int, int]
RETRY_EVERY_S = 5.0


@dataclass(eq=False)
class CollectionState:
    """A collection on disk: open, or the reason why it is not."""

    name: str
    stamp: Stamp
    collection: Collection | None = None
    error: EmbedserveError | None = None
    info: dict[str, Any] = field(default_factory=dict)
    users: int = 0
    retired: bool = False
    opened: float = field(default_factory=time.monotonic)

    def should_retry(self) -> bool:
        """Say whether a failed collection may be tried again: someone may have repaired it."""
        return self.error is not None and time.monotonic() - self.opened > RETRY_EVERY_S

    def release(self) -> None:
        """Close the files once nobody searches them and they were replaced."""
        if self.retired and not self.users and self.collection is not None:
            self.collection.close()
            self.collection = None


class Collections:
    """Opens collections on first use; a collection that was built again is opened again at the next search.

    Searches that run at that moment finish on the old one. May be used from many threads.

    Args:
        data_dir: The folder above ``collections/``.
        encoder: The encoder whose vectors are compared with the collections'.
    """

    def __init__(self, data_dir: Path, encoder: Encoder) -> None:
        self._data_dir = data_dir
        self._encoder = encoder
        self._states: dict[str, CollectionState] = {}
        self._lock = threading.RLock()

    def names(self) -> list[str]:
        """Return the names of the collections on disk."""
        from indexing import list_collections

        return list_collections(self._data_dir)

    @contextmanager
    def use(self, name: str) -> Iterator[Collection]:
        """Hold a collection open.

        Raises:
            ApiError: 404, there is none of that name.
            EmbedserveError: The reason why it cannot be opened.
        """
        with self._lock:
            state = self.state(name)
            if state.error is not None:
                raise state.error.with_traceback(None)
            assert state.collection is not None
            collection = state.collection
            state.users += 1
        try:
            yield collection
        finally:
            with self._lock:
                state.users -= 1
                state.release()

    def state(self, name: str) -> CollectionState:
        """Return a collection as it is on disk now, opened where it can be."""
        with self._lock:
            state = self._states.get(name)
            if state is None or state.stamp != self._stamp(name) or state.should_retry():
                state = self._open(name)
            return state

    def all(self) -> list[CollectionState]:
        """Return every collection on disk."""
        with self._lock:
            for gone in set(self._states) - set(names := self.names()):
                self._retire(gone)
            return [self.state(name) for name in names]

    def close(self) -> None:
        """Close every collection."""
        with self._lock:
            for name in list(self._states):
                self._retire(name)

    def _retire(self, name: str) -> None:
        old = self._states.pop(name, None)
        if old is not None:
            old.retired = True
            old.release()

    def _open(self, name: str) -> CollectionState:
        from indexing import Collection, collection_path

        self._retire(name)
        stamp = self._stamp(name)
        try:
            state = CollectionState(name, stamp)
            state.collection = Collection.open(collection_path(self._data_dir, name), encoder=self._encoder)
            state.info = state.collection.info()
        except (NotFoundError, InputError) as error:
            raise ApiError(404, "collection_not_found", error.message, param="collection") from None
        except EmbedserveError as error:
            error.field = error.field or "collection"
            state.error = error
            logger.error("collection %s cannot be opened: %s", name, error.message)
        self._states[name] = state
        return state

    def _stamp(self, name: str) -> Stamp:
        """Return what changes when a collection is built again."""
        from indexing import collection_path

        try:
            status = (collection_path(self._data_dir, name) / "manifest.json").stat()
        except (OSError, InputError):
            return (0, 0)
        return (status.st_mtime_ns, status.st_ino)
