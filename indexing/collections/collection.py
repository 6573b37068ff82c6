"""Collections: documents with their vectors and indexes, searched and modified as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from embedserve.errors import EmbedserveError, IndexMismatchError, InputError
from indexing.base import TextEncoder
from indexing.collections.catalog import check_name, published
from indexing.collections.encoder_match import Encoders, as_encoders, check_encoder
from indexing.collections.reader import CollectionReader, check_ids
from indexing.collections.state import State, advance, open_state
from indexing.collections.writer import Writer
from indexing.query.filters import compile_filter
from indexing.segments.fields import Vectors
from indexing.sources.corpus import Document


class Collection(CollectionReader):
    """An opened collection. Thread-safe if its encoders are.

    Each call reads one consistent snapshot and never waits for a writer. A collection opened for reading shows the
    snapshot of its opening until `refresh`; one opened for writing shows its own writes.
    """

    def __init__(self, directory: Path, state: State, encoders: Sequence[TextEncoder], writer: Writer | None) -> None:
        super().__init__(encoders)
        self.directory, self.name = directory, directory.name
        self._state, self._writer = state, writer
        self._refreshing = Lock()
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: Path | str,
        encoder: Encoders = None,
        *,
        writable: bool = False,
        previous: Collection | None = None,
    ) -> Collection:
        """Open a collection: verify its files against the manifest, load them, and replay the log.

        Args:
            directory: `catalog.resolve(data_dir, name)`.
            encoder: The encoder, or the encoders of all fields. Methods that take vectors need none.
            writable: Take the write lock, which one process can hold at a time.
            previous: The same collection, opened earlier; segments that did not change are reused. Ignored if closed.

        Raises:
            NotFoundError: No such collection.
            CorruptFileError: A file is missing, damaged, or of another format.
            IndexMismatchError: The collection was built with another encoder.
            EmbedserveError: Another process has the collection open for writing.
        """
        directory = Path(directory)
        check_name(directory.name)
        encoders = as_encoders(encoder)
        previous = None if previous is None or previous._closed else previous
        manifest = published(directory)
        for candidate in encoders:
            check_encoder(directory.name, manifest, candidate)
        if not writable:
            state = open_state(directory) if previous is None else previous.latest_state()
            return cls(directory, state, encoders, None)
        writer = Writer(directory, None if previous is None else previous.state.segments)
        try:
            for candidate in encoders:  # again: the collection may have been rebuilt before the lock was taken
                check_encoder(directory.name, writer.state.manifest, candidate)
        except IndexMismatchError:
            writer.close()
            raise
        return cls(directory, writer.state, encoders, writer)

    @property
    def state(self) -> State:
        """The current snapshot; `EmbedserveError` if the collection is closed."""
        if self._closed:
            raise EmbedserveError(f"collection {self.name!r} is closed")
        writer = self._writer
        return self._state if writer is None else writer.state

    def latest_state(self) -> State:
        """Return the snapshot that is on disk now, reading only what changed; the collection keeps its own."""
        if self._writer is not None:
            return open_state(self.directory, self.state.segments)
        with self._refreshing:
            return advance(self.directory, self._state)

    def refresh(self) -> bool:
        """Move to the snapshot that is on disk now, reading only what changed; return whether there was a newer one.

        Raises:
            CorruptFileError, NotFoundError, IndexMismatchError: As `open`; the snapshot is unchanged.
        """
        if self._writer is not None:
            return False
        with self._refreshing:
            before = self.state
            for encoder in self._encoders.values():
                check_encoder(self.name, published(self.directory), encoder)
            self._state = advance(self.directory, before)
            return (self._state.manifest.version, self._state.sequence) != (before.manifest.version, before.sequence)

    @property
    def is_writable(self) -> bool:
        """Whether writes can succeed; after some errors the collection must be opened again."""
        return not self._closed and self._writer is not None and self._writer.is_usable

    @property
    def _writing(self) -> Writer:
        if self._closed or self._writer is None:
            message = f"collection {self.name!r} is open for reading only; open it with writable=True"
            raise EmbedserveError(message, field="collection")
        return self._writer

    def upsert(self, documents: Sequence[Document], vectors: Mapping[str, Vectors] | None = None) -> int:
        """Insert documents, or replace those with the same id; return their number once they are durable.

        Atomic: either all documents are written or none. Write order is the order of the list.

        Args:
            documents: Ids must be unique within the list.
            vectors: Vectors by field. Default: computed by the encoders.

        Raises:
            InputError: A duplicate id, metadata that is not JSON, or vectors that do not fit the fields.
            EmbedserveError: The disk is full or failing; nothing was written.
        """
        return self._writing.upsert(documents, vectors, self._encoders)

    def delete(self, ids: Sequence[str] | None = None, *, filter: Mapping[str, Any] | None = None) -> int:
        """Delete documents by id or by filter; return the number of deleted documents once that is durable.

        Raises:
            InputError: Not exactly one of ``ids`` and ``filter``.
            EmbedserveError: The disk is full or failing; nothing was deleted.
        """
        if (ids is None) == (filter is None):
            raise InputError("pass either ids or filter", field="ids")
        if filter is not None:
            return self._writing.delete_matching(compile_filter(filter))
        return self._writing.delete_ids(check_ids(ids or []))

    def flush(self) -> None:
        """Move the log into a segment. Durability is the same; opening becomes faster."""
        self._writing.flush()

    def compact(self, *, full: bool = False) -> None:
        """Merge segments with many deleted documents and runs of small segments; all segments if ``full``."""
        self._writing.compact(full=full)

    def snapshot(self, name: str | None = None) -> str:
        """Create a snapshot, whose files are hard links where possible, and return its name.

        It is stored in `indexing.collections.snapshots.snapshots_path(data_dir, collection) / name`; `restore` reads
        it.

        Raises:
            InputError: A snapshot with this name exists.
            EmbedserveError: The disk is full; no snapshot was created.
        """
        return self._writing.snapshot(name).name

    def stop_writing(self) -> None:
        """Release the write lock and keep the collection open for reading. Do not call it during a write."""
        if self._writer is not None:
            writer, self._state = self._writer, self._writer.state
            self._writer = None
            writer.close()

    def close(self) -> None:
        """Release the write lock; files are closed when the last reader is done. Later calls raise an error."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
