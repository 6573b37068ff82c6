"""The one writer of a collection: log first, then memory, and from time to time a new segment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np

from embedserve.errors import CorruptFileError, EmbedserveError, InputError
from indexing.base import TextEncoder
from indexing.collections.compaction import runs_to_merge, write_segment
from indexing.collections.group_commit import Group, Waiting
from indexing.collections.manifest import SEGMENTS, DeadRows, SegmentEntry, new_name, write_manifest
from indexing.collections.operations import Delete, Operation, Upsert, encode_operation
from indexing.collections.publication import remove_unpublished, sources_of, write_dead
from indexing.collections.snapshots import write_snapshot
from indexing.collections.state import State, apply, open_state
from indexing.collections.view import Part, find
from indexing.collections.wal import FILE_START, WalWriter, new_wal
from indexing.query.filters import Filter
from indexing.segments.document_table import encode_metadata
from indexing.segments.fields import Vectors, check_all_vectors, encode_documents
from indexing.segments.memtable import Memory
from indexing.segments.segment import Segment
from indexing.sources.corpus import Document
from indexing.storage.files import is_lock_of, take_lock, writing

logger = logging.getLogger(__name__)

FLUSH_ROWS = 10_000
FLUSH_BYTES = 64 * 2**20  # of the log
GROUP_BYTES = 64 * 2**20


Made = tuple[Operation, bytes]


class Request(Waiting):
    """A write that waits to be done together with others.

    Args:
        make: The operation and its bytes, from the state before the group; None where there is nothing to do.
        deletes: Whether it takes part before the others of its group.
    """

    def __init__(self, make: Callable[[State], Made | None], *, deletes: bool) -> None:
        super().__init__()
        self.make, self.deletes = make, deletes
        self.result = 0
        self.error: BaseException | None = None


class Writer:
    """Holds the right to write to a collection until it is closed. Safe to use from many threads.

    Writes that come while another is being synced are written and synced together.

    Args:
        directory: Of a collection.
        known: Segments that are open already, by name.

    Raises:
        EmbedserveError: Another program writes to it, or the disk cannot be written.
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
        except BaseException:  # only to give the lock back; the error goes on
            self._lock_file.close()
            raise
        self._group: Group[Request] = Group()
        self._lock = Lock()  # whoever holds it writes
        self._broken = ""
        self._patience = 1  # grows where a flush failed, so that not every write tries again
        self._merges = True  # until a merge meets a damaged file, so that not every flush copies it in vain

    # -------------------------------------------------------------- writes

    def upsert(
        self,
        documents: Sequence[Document],
        vectors: Mapping[str, Vectors] | None,
        encoders: Mapping[str, TextEncoder],
    ) -> int:
        """Write documents; see `Collection.upsert`."""
        documents = list(documents)
        if not documents:
            return 0
        encoded = check_documents(documents)
        fields, truncated = self.state.manifest.fields, 0
        if vectors is None:
            vectors, truncated = encode_documents(fields, encoders, documents)
        operation = Upsert(documents, check_all_vectors(fields, vectors, len(documents)), truncated)
        data = encode_operation(operation, encoded)  # before the lock, in the thread that brings it
        return self._submit(Request(lambda _: (operation, data), deletes=False))

    def delete_ids(self, ids: Sequence[str]) -> int:
        """Delete documents by id; see `Collection.delete`."""

        def make(state: State) -> Made | None:
            return _delete(state, list(find(state.view, list(dict.fromkeys(ids))).values()))

        return self._submit(Request(make, deletes=True))

    def delete_matching(self, wanted: Filter) -> int:
        """Delete documents by filter; see `Collection.delete`."""

        def make(state: State) -> Made | None:
            masks = [part.mask(wanted) for part in state.view]
            places = [
                (number, int(row))
                for number, mask in enumerate(masks)
                for row in (np.flatnonzero(mask) if mask is not None else ())
            ]
            return _delete(state, places)

        return self._submit(Request(make, deletes=True))

    def _submit(self, request: Request) -> int:
        self._group.submit(request, self._lead)
        if request.error is not None:
            raise request.error
        if request.leads:
            self._flush_if_large()
        return request.result

    def _lead(self, group: Sequence[Request]) -> None:
        """Write everything that waits, as one frame of the log."""
        try:
            with self._lock:
                self._check_whole()
                self._write(sorted(group, key=lambda request: not request.deletes))
        except BaseException as error:
            for request in group:
                if not request.done:
                    request.error, request.done = error, True
            if not isinstance(error, Exception):  # Ctrl-C belongs to this thread
                for request in group:
                    if request.error is error:
                        request.error = EmbedserveError("the write was interrupted", field="collection")
                raise

    def _write(self, group: Sequence[Request]) -> None:
        made = []
        for request in group:
            try:
                found = request.make(self.state)
                if found is None:
                    request.done = True
                else:
                    made.append((request, *found))
            except Exception as error:  # the others of the group are not to suffer
                request.error, request.done = error, True
        while made:
            part: list[tuple[Request, Operation, bytes]] = []
            size = 0
            while made and (not part or size + len(made[0][2]) <= GROUP_BYTES):
                part.append(made.pop(0))
                size += len(part[-1][2])
            self._append(part)

    def _append(self, part: Sequence[tuple[Request, Operation, bytes]]) -> None:
        operations = [operation for _, operation, _ in part]
        payload = b"".join(data for _, _, data in part)
        self._broken = "a write was interrupted half-way"  # until memory has what the log has
        try:
            self._wal.append(self.state.sequence, sum(operation.span for operation in operations), payload)
        except (EmbedserveError, InputError):
            self._broken = ""  # the log is as it was, or refuses more by itself
            raise
        state, results = apply(self.state, operations)
        self.state = replace(state, wal_end=self._wal.size)
        self._broken = ""
        for (request, _, _), result in zip(part, results, strict=True):
            request.result, request.done = result, True

    @property
    def is_usable(self) -> bool:
        """Whether a write can succeed: this is not closed, the log is not in doubt, the lock is that of the folder."""
        with self._lock, suppress(OSError):
            return not self._broken and not self._wal.failure and is_lock_of(self._lock_file, self.directory)
        return False

    def _check_whole(self) -> None:
        if self._broken:
            message = f"collection {self.directory.name!r}: {self._broken}; open it anew to go on"
            raise EmbedserveError(message, field="collection")

    # -------------------------------------------------------------- segments

    def _flush_if_large(self) -> None:
        with self._lock:
            rows, size = self.state.memory.count, self.state.wal_end - FILE_START
            if self._broken or (rows < self.flush_rows * self._patience and size < self.flush_bytes * self._patience):
                return
            try:
                self._flush()
                if self._merges:
                    self._merge(full=False)
                self._patience = 1
            except EmbedserveError as error:  # what was written is safe in the log or in a segment
                self._patience *= 2
                self._merges = self._merges and not isinstance(error, CorruptFileError)
                name = self.directory.name
                logger.warning(
                    "collection=%s: the log could not become a segment, or segments could not be merged: %s",
                    name,
                    error.message,
                )

    def flush(self) -> None:
        """Move what is in the log into a segment."""
        with self._lock:
            self._check_whole()
            self._flush()

    def compact(self, *, full: bool = False) -> None:
        """Merge segments; see `Collection.compact`."""
        with self._lock:
            self._check_whole()
            self._flush()
            self._merge(full=full)
            self._merges = True

    def snapshot(self, name: str | None) -> Path:
        """Keep the collection as it is now; see `Collection.snapshot`."""
        with self._lock:
            self._check_whole()
            self._flush()
            manifest = self.state.manifest
            return write_snapshot(self.directory, manifest, name or f"s{manifest.sequence}-{manifest.version[:8]}")

    def _flush(self) -> None:
        state = self.state
        if state.sequence == state.manifest.sequence:
            return
        kept = list(zip(state.view[:-1], state.manifest.segments, strict=True))
        fresh = write_segment(self.directory, state.manifest.fields, [state.memory])
        self._publish(kept, fresh, keep_log=False)

    def _merge(self, *, full: bool) -> None:
        """Merge runs of segments until none is left that should be; the log is empty."""
        while runs := runs_to_merge(self.state.view[:-1], full=full):
            state, (start, stop) = self.state, runs[0]
            run = replace(state.manifest, segments=state.manifest.segments[start:stop])
            sources = sources_of(self.directory, run)
            fresh = write_segment(self.directory, state.manifest.fields, state.view[start:stop], sources)
            kept = list(zip(state.view[:-1], state.manifest.segments, strict=True))
            self._publish([*kept[:start], *kept[stop:]], fresh, at=start, keep_log=True)

    def _publish(
        self,
        kept: Sequence[tuple[Part, SegmentEntry]],
        fresh: SegmentEntry | None,
        *,
        keep_log: bool,
        at: int | None = None,
    ) -> None:
        """Make a manifest of segments, put it on the disk, and then let readers see the same."""
        state, directory = self.state, self.directory
        place = len(kept) if at is None else at
        pairs = [(part, with_dead(directory, part, entry)) for part, entry in kept if len(part.rows)]
        place -= sum(1 for part, _ in kept[:place] if not len(part.rows))
        wal, size, memory = state.manifest.wal, state.wal_end, state.memory
        try:
            if fresh is not None:
                segment = Segment(directory / SEGMENTS / fresh.name, state.manifest.fields)
                pairs.insert(place, (Part(segment, 0, segment.count), fresh))
            with writing(directory):
                if not keep_log:
                    wal = f"wal-{new_name()}.log"
                    new_wal(directory, wal, state.sequence)
                    size, memory = FILE_START, Part(Memory(state.manifest.fields), 0, 0)
                manifest = replace(
                    state.manifest,
                    name=directory.name,
                    version=new_name(),
                    segments=tuple(entry for _, entry in pairs),
                    sequence=state.sequence if not keep_log else state.manifest.sequence,
                    wal=wal,
                    truncated=state.truncated,
                )
                self._broken = "a new manifest may or may not be on the disk"
                try:
                    write_manifest(directory, manifest)
                except OSError:
                    self._broken = ""  # it is not
                    raise
                if not keep_log:
                    old, self._wal = self._wal, WalWriter(directory / wal, size)
                    old.close()
                view = (*(part for part, _ in pairs), memory)
                self.state = replace(state, manifest=manifest, view=view, wal_end=size)
                self._broken = ""
        finally:
            remove_unpublished(directory)

    def close(self) -> None:
        """Give the lock back; what was acknowledged is in the log."""
        with self._lock:
            self._broken = "it is closed"
            self._wal.close()
            with suppress(OSError):
                self._lock_file.close()


def _delete(state: State, places: Sequence[tuple[int, int]]) -> Made | None:
    if not places:
        return None
    sequences = np.array([state.view[part].sequences[row] for part, row in places], dtype=np.int64)
    operation = Delete(np.sort(sequences))
    return operation, encode_operation(operation)


def with_dead(directory: Path, part: Part, entry: SegmentEntry) -> SegmentEntry:
    """Return ``entry`` with the rows that are deleted by now, in a new file where there are more than it names."""
    known: DeadRows | None = entry.dead
    if part.live is None or part.dead == (known.count if known is not None else 0):
        return entry
    with writing(directory):
        return replace(entry, dead=write_dead(directory, np.flatnonzero(~part.live)))


def check_documents(documents: Sequence[Document]) -> list[str]:
    """Return the metadata of each document as JSON; `InputError` where it is none, or two have the same id."""
    seen: dict[str, int] = {}
    encoded = []
    for place, document in enumerate(documents):
        if document.id in seen:
            message = f"documents {seen[document.id] + 1} and {place + 1} have the same id {document.id!r}"
            raise InputError(f"{message}; write an id once", field="id")
        seen[document.id] = place
        encoded.append(encode_metadata(document))
    return encoded
