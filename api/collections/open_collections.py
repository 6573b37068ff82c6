"""The collections of the service: opened on first use, and re-opened after they change on disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from api.collections.open_collection import CollectionEntry, CollectionState, OpenCollection, Stamp
from api.http.error_responses import ApiError
from embedserve.errors import EmbedserveError, IndexMismatchError, InputError, LoadError, NotFoundError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Collection
    from indexing.collections.manifest import Manifest

logger = logging.getLogger(__name__)

OPENING_THREADS = 4


class Collections:
    """Opens collections on first use and re-opens them when a later search finds that they changed. Thread-safe.

    Opening reads every byte, so it has its own threads: other collections stay searchable, and so does the previous
    state of this one, which is also kept if the new state cannot be read. A collection that this server writes to is
    searched through its writer, so that acknowledged writes are visible immediately.

    Args:
        data_dir: The folder that contains ``collections/``.
        encoders: Returns the loaded encoders; a collection is opened only if one of them made vectors of it.
        unloaded: Returns the names of the models that are not loaded, for messages.
    """

    def __init__(
        self, data_dir: Path, encoders: Callable[[], Sequence[Encoder]], unloaded: Callable[[], Sequence[str]]
    ) -> None:
        self.data_dir = data_dir
        self._encoders, self._unloaded = encoders, unloaded
        self._entries: dict[str, CollectionEntry] = {}
        self._lock = threading.Lock()  # held briefly, never while files are read
        self._openers = ThreadPoolExecutor(OPENING_THREADS, thread_name_prefix="open-collection")

    def names(self) -> list[str]:
        """Return the names of the collections on disk."""
        from indexing import list_collections

        return list_collections(self.data_dir)

    def refresh(self, name: str) -> Future[None] | None:
        """Start opening the state on disk, if it is not open.

        Returns:
            The attempt to wait for, shared by all callers; None if some state can be searched immediately.

        Raises:
            ApiError: 404, the collection does not exist.
        """
        key = self.key(name)
        stamp = self._stamp(key)
        if stamp is None:
            self.forget(key)
            raise self.unknown(name)
        with self._lock:
            entry = self._entries.setdefault(key, CollectionEntry())
            if entry.written:
                return None
            if entry.opening is not None:
                return None if entry.opened is not None else entry.opening
            if entry.is_current(stamp):
                return None
            entry.opening = self._openers.submit(self._open, key, entry, stamp)
            return entry.opening

    def key(self, name: str) -> str:
        """Return the collection of a name or alias; it may not exist."""
        from indexing.collections.aliases import resolve

        try:
            return resolve(self.data_dir, name).name
        except InputError:
            return name

    @contextmanager
    def use(self, name: str) -> Iterator[Collection]:
        """Hold a collection open: the state opened last, or the one on disk if none is open.

        Raises:
            ApiError: 404, the collection does not exist.
            EmbedserveError: The collection cannot be opened.
        """
        key = self.key(name)
        while (opened := self._acquire(key)) is None:  # repeated if the alias is switched during the attempt
            if (opening := self.refresh(name)) is not None:
                opening.result()
            if (error := self.error(name)) is not None and not self.is_open(name):
                raise error
            key = self.key(name)
        try:
            yield opened.collection
        finally:
            self._release(opened)

    @contextmanager
    def held(self, key: str) -> Iterator[Collection | None]:
        """Hold a collection open if it is open already; None if it is not."""
        opened = self._acquire(key)
        try:
            yield opened.collection if opened is not None else None
        finally:
            if opened is not None:
                self._release(opened)

    def error(self, name: str) -> EmbedserveError | None:
        """Return why the newest state of a collection cannot be opened, if the last attempt failed."""
        key = self.key(name)
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None or entry.error is None else entry.error.with_traceback(None)

    def is_open(self, name: str) -> bool:
        """Return whether a collection can be searched without opening it."""
        key = self.key(name)
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and entry.opened is not None

    def is_written(self, key: str) -> bool:
        """Return whether this server holds the write lock of a collection."""
        with self._lock:
            return key in self._entries and self._entries[key].written

    def attach_writer(self, key: str, writer: Collection) -> None:
        """Serve searches of a collection through its writer, until `detach_writer` or `forget`."""
        with self._lock:
            entry = self._entries.setdefault(key, CollectionEntry())
            entry.replace(OpenCollection(writer))
            entry.written, entry.error, entry.failures = True, None, 0

    def detach_writer(self, key: str) -> None:
        """Serve the collection from disk again; its writer is about to release the lock."""
        stamp = self._stamp(key)
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                entry.written, entry.stamp = False, stamp

    def states(self) -> list[CollectionState]:
        """Return the state of every collection on disk; reads manifests only."""
        names = self.names()
        for removed in set(self._entries) - set(names):
            self.forget(removed)
        states = [self._state(name) for name in names]
        return [state for state in states if state is not None]

    def close(self) -> None:
        """Close every collection, each after its last search."""
        self._openers.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for name in list(self._entries):
                if (opened := self._entries.pop(name).opened) is not None:
                    opened.retire()

    def _state(self, name: str) -> CollectionState | None:
        """Return the state of one collection; None if it has just been removed."""
        from indexing.collections.catalog import collection_path
        from indexing.collections.manifest import read_manifest

        with self._lock:
            error = (self._entries.get(name) or CollectionEntry()).error
        manifest: Manifest | None = None
        try:
            manifest = read_manifest(collection_path(self.data_dir, name))
            self.check_encoders(name, manifest)
        except NotFoundError:
            return None
        except EmbedserveError as problem:
            error = problem
        with self.held(name) as collection:
            if collection is not None:
                return CollectionState(name, "open", len(collection), error)
        documents = manifest.count if manifest is not None else None
        return CollectionState(name, "failed" if error is not None else "closed", documents, error)

    def _open(self, name: str, entry: CollectionEntry, stamp: Stamp) -> None:
        """Open the state on disk; the previous state is served until that has succeeded."""
        from indexing import Collection
        from indexing.collections.catalog import collection_path
        from indexing.collections.manifest import read_manifest

        opened: OpenCollection | None = None
        error: EmbedserveError | None = None
        previous = entry.opened.collection if entry.opened is not None else None
        try:
            directory = collection_path(self.data_dir, name)
            self.check_encoders(name, read_manifest(directory))
            opened = OpenCollection(Collection.open(directory, previous=previous))
        except EmbedserveError as problem:
            problem.field = problem.field or "collection"
            error = problem
        except Exception as problem:  # internal error: searches must not wait forever
            logger.exception("opening collection %s failed", name)
            error = LoadError(f"collection {name!r} cannot be opened: {problem}", field="collection")
        with self._lock:
            entry.opening, entry.stamp, entry.error, entry.tried = None, stamp, error, time.monotonic()
            entry.failures = 0 if error is None else entry.failures + 1
            if opened is not None:
                if not entry.written:  # else a writer was attached first
                    entry.replace(opened)
                if entry.written or self._entries.get(name) is not entry:  # or the collection was removed
                    opened.retire()
        if error is not None:
            logger.error("collection %s cannot be opened: %s", name, error.message)

    def check_encoders(self, name: str, manifest: Manifest) -> None:
        """Raise `IndexMismatchError` if encoders made vectors of a collection and none of them is loaded."""
        from indexing.collections.encoder_match import check_encoder

        fingerprints = {field.fingerprint for field in manifest.fields.values() if field.fingerprint}
        encoders = self._encoders()
        if fingerprints and not fingerprints & {encoder.fingerprint for encoder in encoders}:
            try:
                check_encoder(name, manifest, encoders[0])
            except IndexMismatchError as error:
                if not (names := self._unloaded()):
                    raise
                message = f"{error.message}; models not loaded: {', '.join(names)} (POST /v1/models/NAME/load)"
                raise IndexMismatchError(message, field=error.field) from None

    def _acquire(self, name: str) -> OpenCollection | None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.opened is None:
                return None
            entry.opened.users += 1
            return entry.opened

    def _release(self, opened: OpenCollection) -> None:
        with self._lock:
            opened.users -= 1
            opened.close_unused()

    def forget(self, name: str) -> None:
        """Close a collection after its last search; if this server writes to it, its writer must stay open."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and not entry.written:
                if entry.opened is not None:
                    entry.opened.retire()
                del self._entries[name]

    def unknown(self, name: str) -> ApiError:
        """Return the error 404 that lists the existing collections."""
        from indexing.collections.catalog import collection_path, unknown_collection

        try:
            message = unknown_collection(collection_path(self.data_dir, name)).message
        except InputError as error:
            message = error.message
        return ApiError(404, "collection_not_found", message, param="collection")

    def _stamp(self, name: str) -> Stamp | None:
        """Return a value that changes with every write to a collection and every model load; None without manifest."""
        from indexing.collections.catalog import collection_path
        from indexing.storage.files import file_bytes

        try:
            directory = collection_path(self.data_dir, name)
            status = (directory / "manifest.json").stat()
            # a flush may remove the old log at any moment: only a missing manifest means that there is no collection
            logs = [(path.name, file_bytes(path)) for path in sorted(directory.glob("wal-*.log"))]
        except (FileNotFoundError, NotADirectoryError, InputError):
            return None
        except OSError as error:  # opening the collection reports it
            return ("unreadable", error.errno or 0)
        return (
            *sorted(encoder.fingerprint for encoder in self._encoders()),
            status.st_mtime_ns,
            status.st_ino,
            status.st_size,
            *(part for log in logs for part in log),
        )
