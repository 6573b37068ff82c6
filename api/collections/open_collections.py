"""The collections on disk as the service sees them: opened once, opened anew when they are built again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from api.http.error_responses import ApiError
from embedserve.errors import EmbedserveError, IndexMismatchError, InputError, LoadError, NotFoundError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing import Collection
    from indexing.collections.manifest import Manifest

logger = logging.getLogger(__name__)

Stamp = tuple[int | str, ...]
RETRY_EVERY_S = 5.0
RETRY_AT_MOST_EVERY_S = 600.0
OPENING_THREADS = 4


@dataclass(eq=False)
class Opened:
    """A collection whose files are open; they are closed once it is retired and nobody searches it."""

    collection: Collection
    users: int = 0
    retired: bool = False


@dataclass(eq=False)
class Entry:
    """What is known of one name.

    Attributes:
        opened: What is searched: the newest state that could be read.
        stamp: The state on disk that was tried last.
        error: Why that one cannot be read; ``opened`` is then as it was before, or None.
        failures: Tries in a row that failed.
        tried: When the last try ended.
        opening: The try that runs now.
        written: Whether ``opened`` is what this server writes to, and so always the newest.
    """

    opened: Opened | None = None
    stamp: Stamp | None = None
    error: EmbedserveError | None = None
    failures: int = 0
    tried: float = 0.0
    opening: Future[None] | None = None
    written: bool = False

    def is_current(self, stamp: Stamp) -> bool:
        """Say whether nothing is to be done for that state: it is open, or failed and is not yet tried again."""
        if self.stamp != stamp:
            return False
        wait = min(RETRY_EVERY_S * 2 ** min(self.failures - 1, 20), RETRY_AT_MOST_EVERY_S)
        return self.error is None or time.monotonic() - self.tried < wait


@dataclass(frozen=True)
class CollectionState:
    """A collection on disk as ``/info`` tells of it; ``error`` beside ``open`` means that an older build is served."""

    name: str
    status: Literal["open", "closed", "failed"]
    documents: int | None = None
    error: EmbedserveError | None = None


class Collections:
    """Opens collections on first use, and goes on at the next search to what was written since.

    Opening reads every byte, so it has threads of its own: meanwhile all other collections are searched, and so is
    what was there before, which stays in use where the new cannot be read. May be used from many threads. A collection
    that the server writes to is searched as its writer has it, so what was acknowledged is found at once.

    Args:
        data_dir: The folder above ``collections/``.
        encoders: The loaded encoders; a collection of which none made any vectors is not opened.
        unloaded: The names of the models that are not loaded, for messages.
    """

    def __init__(
        self, data_dir: Path, encoders: Callable[[], Sequence[Encoder]], unloaded: Callable[[], Sequence[str]]
    ) -> None:
        self.data_dir = data_dir
        self._encoders, self._unloaded = encoders, unloaded
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()  # held for moments only, never while files are read
        self._openers = ThreadPoolExecutor(OPENING_THREADS, thread_name_prefix="open-collection")

    def names(self) -> list[str]:
        """Return the names of the collections on disk."""
        from indexing import list_collections

        return list_collections(self.data_dir)

    def refresh(self, name: str) -> Future[None] | None:
        """Begin to open what is on disk under ``name``, unless that is done already.

        Returns:
            What to wait for: the one try that all callers share. None where something can be searched at once.

        Raises:
            ApiError: 404, there is none of that name.
        """
        key = self.key(name)
        stamp = self._stamp(key)
        if stamp is None:
            self.forget(key)
            raise self.unknown(name)
        with self._lock:
            entry = self._entries.setdefault(key, Entry())
            if entry.written:
                return None
            if entry.opening is not None:
                return None if entry.opened is not None else entry.opening
            if entry.is_current(stamp):
                return None
            entry.opening = self._openers.submit(self._open, key, entry, stamp)
            return entry.opening

    def key(self, name: str) -> str:
        """Return the name of the collection that is called ``name`` or has that alias; it need not exist."""
        from indexing.collections.aliases import resolve

        try:
            return resolve(self.data_dir, name).name
        except InputError:
            return name

    @contextmanager
    def use(self, name: str) -> Iterator[Collection]:
        """Hold a collection open: the one opened last, or, where none is open yet, the one on disk.

        Raises:
            ApiError: 404, there is none of that name.
            EmbedserveError: The reason why it cannot be opened.
        """
        key = self.key(name)
        while (opened := self._held(key)) is None:  # again where it was replaced while it was being opened
            if (opening := self.refresh(name)) is not None:
                opening.result()
            if (error := self.error(name)) is not None and not self.is_open(name):
                raise error
            key = self.key(name)
        try:
            yield opened.collection
        finally:
            self._give_back(opened)

    @contextmanager
    def held(self, key: str) -> Iterator[Collection | None]:
        """Hold a collection open that is open already; None where it is not."""
        opened = self._held(key)
        try:
            yield opened.collection if opened is not None else None
        finally:
            if opened is not None:
                self._give_back(opened)

    def error(self, name: str) -> EmbedserveError | None:
        """Return why the newest build of a collection cannot be opened, as far as it was tried."""
        key = self.key(name)
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None or entry.error is None else entry.error.with_traceback(None)

    def is_open(self, name: str) -> bool:
        """Say whether a collection can be searched without opening it."""
        key = self.key(name)
        with self._lock:
            entry = self._entries.get(key)
            return entry is not None and entry.opened is not None

    def is_written(self, key: str) -> bool:
        """Say whether this server holds the right to write to a collection."""
        with self._lock:
            return key in self._entries and self._entries[key].written

    def written(self, key: str, writer: Collection) -> None:
        """Search a collection as ``writer``, which writes to it, has it; until `read` or `forget`."""
        with self._lock:
            entry = self._entries.setdefault(key, Entry())
            old, entry.opened = entry.opened, Opened(writer)
            entry.written, entry.error, entry.failures = True, None, 0
            self._retire(old)

    def read(self, key: str) -> None:
        """Search a collection as it is on the disk from now on: who wrote to it has given that right back."""
        stamp = self._stamp(key)
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                entry.written, entry.stamp = False, stamp

    def all(self) -> list[CollectionState]:
        """Return every collection on disk; none is opened for it, only manifests are read."""
        names = self.names()
        for gone in set(self._entries) - set(names):
            self.forget(gone)
        states = [self._state(name) for name in names]
        return [state for state in states if state is not None]

    def close(self) -> None:
        """Close every collection; one that is being searched closes behind its last search."""
        self._openers.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            for name in list(self._entries):
                self._retire(self._entries.pop(name).opened)

    def _state(self, name: str) -> CollectionState | None:
        """Return one collection; None where it has just vanished."""
        from indexing.collections.catalog import collection_path
        from indexing.collections.manifest import read_manifest

        with self._lock:
            error = (self._entries.get(name) or Entry()).error
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

    def _open(self, name: str, entry: Entry, stamp: Stamp) -> None:
        """Open what is on disk, and only then let it take the place of what is searched now."""
        from indexing import Collection
        from indexing.collections.catalog import collection_path
        from indexing.collections.manifest import read_manifest

        fresh: Opened | None = None
        error: EmbedserveError | None = None
        before = entry.opened.collection if entry.opened is not None else None
        try:
            directory = collection_path(self.data_dir, name)
            self.check_encoders(name, read_manifest(directory))
            fresh = Opened(Collection.open(directory, previous=before))
        except EmbedserveError as problem:
            problem.field = problem.field or "collection"
            error = problem
        except Exception as problem:  # whatever it is, searches must not wait for ever; the log has it whole
            logger.exception("opening collection %s failed", name)
            error = LoadError(f"collection {name!r} cannot be opened: {problem}", field="collection")
        with self._lock:
            entry.opening, entry.stamp, entry.error, entry.tried = None, stamp, error, time.monotonic()
            entry.failures = 0 if error is None else entry.failures + 1
            if fresh is not None and entry.written:  # a writer came first
                self._retire(fresh)
            elif fresh is not None:
                old, entry.opened = entry.opened, fresh
                self._retire(old)
                if self._entries.get(name) is not entry:  # it vanished from the disk meanwhile
                    self._retire(fresh)
        if error is not None:
            logger.error("collection %s cannot be opened: %s", name, error.message)

    def check_encoders(self, name: str, manifest: Manifest) -> None:
        """Raise `IndexMismatchError` unless a loaded encoder made vectors of a collection, or no encoder did."""
        from indexing.collections.encoder_match import check_encoder

        fingerprints = {field.fingerprint for field in manifest.fields.values() if field.fingerprint}
        encoders = self._encoders()
        if fingerprints and not fingerprints & {encoder.fingerprint for encoder in encoders}:
            try:
                check_encoder(name, manifest, encoders[0])
            except IndexMismatchError as error:
                if not (names := self._unloaded()):
                    raise
                message = f"{error.message}; not loaded are {', '.join(names)}: POST /v1/models/NAME/load"
                raise IndexMismatchError(message, field=error.field) from None

    def _held(self, name: str) -> Opened | None:
        with self._lock:
            entry = self._entries.get(name)
            if entry is None or entry.opened is None:
                return None
            entry.opened.users += 1
            return entry.opened

    def _give_back(self, opened: Opened) -> None:
        with self._lock:
            opened.users -= 1
            self._close_unused(opened)

    def forget(self, name: str) -> None:
        """Close a collection after its last search, unless this server writes to it: its writer must stay open."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is not None and not entry.written:
                self._retire(self._entries.pop(name).opened)

    def _retire(self, opened: Opened | None) -> None:
        if opened is not None:
            opened.retired = True
            self._close_unused(opened)

    @staticmethod
    def _close_unused(opened: Opened) -> None:
        if opened.retired and not opened.users:
            opened.collection.close()

    def unknown(self, name: str) -> ApiError:
        """Return the error 404 that says which collections there are."""
        from indexing.collections.catalog import collection_path, unknown_collection

        try:
            message = unknown_collection(collection_path(self.data_dir, name)).message
        except InputError as error:
            message = error.message
        return ApiError(404, "collection_not_found", message, param="collection")

    def _stamp(self, name: str) -> Stamp | None:
        """Return what changes when a collection is written to; None where there is no manifest."""
        from indexing.collections.catalog import collection_path
        from indexing.storage.files import file_bytes

        try:
            directory = collection_path(self.data_dir, name)
            status = (directory / "manifest.json").stat()
            # a flush removes the old log at any moment: only a missing manifest means that there is no collection
            logs = [(path.name, file_bytes(path)) for path in sorted(directory.glob("wal-*.log"))]
        except (FileNotFoundError, NotADirectoryError, InputError):
            return None
        except OSError as error:  # opening it says what is wrong
            return ("unreadable", error.errno or 0)
        return (
            *sorted(encoder.fingerprint for encoder in self._encoders()),
            status.st_mtime_ns,
            status.st_ino,
            status.st_size,
            *(part for log in logs for part in log),
        )
