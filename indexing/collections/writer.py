"""The writer of a collection: append to the log, apply in memory, flush to segments."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

from embedserve.errors import CorruptFileError, EmbedserveError, InputError
from indexing.base import TextEncoder
from indexing.collections.cleanup import remove_unpublished
from indexing.collections.compaction import runs_to_merge, write_segment
from indexing.collections.file_links import sources_of
from indexing.collections.group_commit import CommitGroup
from indexing.collections.manifest import SEGMENTS, SegmentEntry, new_name, write_manifest
from indexing.collections.operations import Operation
from indexing.collections.publication import with_dead_rows
from indexing.collections.snapshots import write_snapshot
from indexing.collections.state import apply, open_state
from indexing.collections.view import Part
from indexing.collections.wal import FILE_START, WalWriter, new_wal
from indexing.collections.write_requests import (
    PendingWrite,
    delete_ids_request,
    delete_matching_request,
    upsert_request,
)
from indexing.query.filters import Filter
from indexing.segments.fields import Vectors
from indexing.segments.memtable import Memory
from indexing.segments.segment import Segment
from indexing.sources.corpus import Document
from indexing.storage.files import is_lock_of, take_lock, writing

logger = logging.getLogger(__name__)

FLUSH_ROWS = 10_000
FLUSH_BYTES = 64 * 2**20  # of the log
GROUP_BYTES = 64 * 2**20

PreparedWrite = tuple[PendingWrite, Operation, bytes]


class Writer:
    """Holds the write lock of a collection until it is closed. Thread-safe.

    Writes that arrive during a sync are written and synced together (group commit).

    Args:
        directory: Of the collection.
        known: Segments that are open already, by name.

    Raises:
        EmbedserveError: Another process holds the lock, or the disk cannot be written.
        NotFoundError, CorruptFileError, IndexMismatchError: As `indexing.collections.state.open_state`.
    """

    def __init__(self, directory: Path, known: Mapping[str, Segment] | None = None) -> None:
        self.directory = directory
        self.flush_rows, self.flush_bytes = FLUSH_ROWS, FLUSH_BYTES
        self._lock_file = take_lock(directory)
        try:
            remove_unpublished(directory)
            self.state = open_state(directory, known)
            with writing(directory):
                self._wal = WalWriter(directory / self.state.manifest.wal, self.state.wal_end)
        except BaseException:  # release the lock, then re-raise
            self._lock_file.close()
            raise
        self._group: CommitGroup[PendingWrite] = CommitGroup()
        self._lock = Lock()  # held by the thread that writes
        self._broken = ""
        self._backoff = 1  # doubled by a failed flush, so that not every write retries it
        self._merges = True  # False after a merge met a damaged file, so that not every flush retries it

    # -------------------------------------------------------------- writes

    def upsert(
        self,
        documents: Sequence[Document],
        vectors: Mapping[str, Vectors] | None,
        encoders: Mapping[str, TextEncoder],
    ) -> int:
        """Write documents; see `Collection.upsert`."""
        if not documents:
            return 0
        return self._submit(upsert_request(self.state.manifest.fields, list(documents), vectors, encoders))

    def delete_ids(self, ids: Sequence[str]) -> int:
        """Delete documents by id; see `Collection.delete`."""
        return self._submit(delete_ids_request(ids))

    def delete_matching(self, condition: Filter) -> int:
        """Delete documents by filter; see `Collection.delete`."""
        return self._submit(delete_matching_request(condition))

    def _submit(self, request: PendingWrite) -> int:
        self._group.submit(request, self._commit)
        if request.error is not None:
            raise request.error
        if request.leads:
            self._flush_if_large()
        return request.result

    def _commit(self, group: Sequence[PendingWrite]) -> None:
        """Write all requests of a group, usually as one frame of the log."""
        try:
            with self._lock:
                self._check_usable()
                self._write(sorted(group, key=lambda request: not request.deletes))
        except BaseException as error:
            interrupted = not isinstance(error, Exception)  # Ctrl-C is raised in this thread only
            for request in group:
                if not request.done:
                    message = "the write was interrupted"
                    request.fail(EmbedserveError(message, field="collection") if interrupted else error)
            if interrupted:
                raise

    def _write(self, group: Sequence[PendingWrite]) -> None:
        writes: list[PreparedWrite] = []
        for request in group:
            try:
                prepared = request.prepare(self.state)
                if prepared is None:
                    request.done = True
                else:
                    writes.append((request, *prepared))
            except Exception as error:  # isolate the failure: the rest of the group still commits
                request.fail(error)
        while writes:
            frame: list[PreparedWrite] = []
            size = 0
            while writes and (not frame or size + len(writes[0][2]) <= GROUP_BYTES):
                frame.append(writes.pop(0))
                size += len(frame[-1][2])
            self._append(frame)

    def _append(self, frame: Sequence[PreparedWrite]) -> None:
        operations = [operation for _, operation, _ in frame]
        payload = b"".join(data for _, _, data in frame)
        self._broken = "a write was interrupted half-way"  # until memory matches the log
        try:
            self._wal.append(self.state.sequence, sum(operation.span for operation in operations), payload)
        except (EmbedserveError, InputError):
            self._broken = ""  # the log is unchanged, or rejects further writes itself
            raise
        state, results = apply(self.state, operations)
        self.state = replace(state, wal_end=self._wal.size)
        self._broken = ""
        for (request, _, _), result in zip(frame, results, strict=True):
            request.result, request.done = result, True

    @property
    def is_usable(self) -> bool:
        """Whether writes can succeed: the writer is open, the log is consistent, and the lock file is in place."""
        with self._lock, suppress(OSError):
            return not self._broken and not self._wal.failure and is_lock_of(self._lock_file, self.directory)
        return False

    def _check_usable(self) -> None:
        if self._broken:
            message = f"collection {self.directory.name!r}: {self._broken}; open it again"
            raise EmbedserveError(message, field="collection")

    # -------------------------------------------------------------- segments

    def _flush_if_large(self) -> None:
        with self._lock:
            rows, size = self.state.memory.count, self.state.wal_end - FILE_START
            if self._broken or (rows < self.flush_rows * self._backoff and size < self.flush_bytes * self._backoff):
                return
            try:
                self._flush()
                if self._merges:
                    self._merge(full=False)
                self._backoff = 1
            except EmbedserveError as error:  # the writes are durable in the log or in a segment
                self._backoff *= 2
                self._merges = self._merges and not isinstance(error, CorruptFileError)
                logger.warning(
                    "collection=%s: the log could not become a segment, or segments could not be merged: %s",
                    self.directory.name,
                    error.message,
                )

    def flush(self) -> None:
        """Move the log into a segment."""
        with self._lock:
            self._check_usable()
            self._flush()

    def compact(self, *, full: bool = False) -> None:
        """Merge segments; see `Collection.compact`."""
        with self._lock:
            self._check_usable()
            self._flush()
            self._merge(full=full)
            self._merges = True

    def snapshot(self, name: str | None) -> Path:
        """Create a snapshot; see `Collection.snapshot`."""
        with self._lock:
            self._check_usable()
            self._flush()
            manifest = self.state.manifest
            return write_snapshot(self.directory, manifest, name or f"s{manifest.sequence}-{manifest.version[:8]}")

    def _entries(self) -> list[tuple[Part, SegmentEntry]]:
        return list(zip(self.state.view[:-1], self.state.manifest.segments, strict=True))

    def _flush(self) -> None:
        state = self.state
        if state.sequence == state.manifest.sequence:
            return
        segment = write_segment(self.directory, state.manifest.fields, [state.memory])
        entries = self._entries()
        self._publish(entries, segment, len(entries), new_log=True)

    def _merge(self, *, full: bool) -> None:
        """Merge runs of segments until no run qualifies; the log must be empty."""
        while runs := runs_to_merge(self.state.view[:-1], full=full):
            state, (start, stop) = self.state, runs[0]
            run = replace(state.manifest, segments=state.manifest.segments[start:stop])
            sources = sources_of(self.directory, run)
            segment = write_segment(self.directory, state.manifest.fields, state.view[start:stop], sources)
            entries = self._entries()
            self._publish([*entries[:start], *entries[stop:]], segment, start, new_log=False)

    def _publish(
        self,
        entries: Sequence[tuple[Part, SegmentEntry]],
        segment: SegmentEntry | None,
        position: int,
        *,
        new_log: bool,
    ) -> None:
        """Write a manifest of ``entries`` with ``segment`` inserted at ``position``, then show it to readers."""
        state, directory = self.state, self.directory
        pairs = [(part, with_dead_rows(directory, part, entry)) for part, entry in entries if len(part.rows)]
        position -= sum(1 for part, _ in entries[:position] if not len(part.rows))
        wal, size, memory = state.manifest.wal, state.wal_end, state.memory
        try:
            if segment is not None:
                opened = Segment(directory / SEGMENTS / segment.name, state.manifest.fields)
                pairs.insert(position, (Part(opened, 0, opened.count), segment))
            with writing(directory):
                if new_log:
                    wal = f"wal-{new_name()}.log"
                    new_wal(directory, wal, state.sequence)
                    size, memory = FILE_START, Part(Memory(state.manifest.fields), 0, 0)
                manifest = replace(
                    state.manifest,
                    name=directory.name,
                    version=new_name(),
                    segments=tuple(entry for _, entry in pairs),
                    sequence=state.sequence if new_log else state.manifest.sequence,
                    wal=wal,
                    truncated=state.truncated,
                )
                self._broken = "a new manifest may or may not be on the disk"
                try:
                    write_manifest(directory, manifest)
                except OSError:
                    self._broken = ""  # it is not
                    raise
                if new_log:
                    old, self._wal = self._wal, WalWriter(directory / wal, size)
                    old.close()
                view = (*(part for part, _ in pairs), memory)
                self.state = replace(state, manifest=manifest, view=view, wal_end=size)
                self._broken = ""
        finally:
            remove_unpublished(directory)

    def close(self) -> None:
        """Release the lock; acknowledged writes are in the log."""
        with self._lock:
            self._broken = "it is closed"
            self._wal.close()
            with suppress(OSError):
                self._lock_file.close()
