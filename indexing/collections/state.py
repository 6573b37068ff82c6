"""The state of a collection: its manifest, the snapshot of documents, and the position in the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embedserve.errors import CorruptFileError
from indexing.collections.catalog import published, read_published
from indexing.collections.manifest import SEGMENTS, Manifest, SegmentEntry
from indexing.collections.operations import Delete, Operation, Upsert, decode_operations
from indexing.collections.view import Location, Part, View, find, locate
from indexing.collections.wal import Frame, read_wal
from indexing.segments.fields import Field
from indexing.segments.memtable import Memory
from indexing.segments.segment import SEGMENT, Segment
from indexing.storage.checksums import REMEDY, check_file
from indexing.storage.engine_files import read_array


@dataclass(frozen=True, eq=False)
class State:
    """An immutable state of a collection. The last part of the view is the memtable, which may be empty.

    Attributes:
        manifest: The manifest on disk.
        view: The snapshot that is read.
        sequence: The next sequence number.
        wal_end: End of the last frame of the log that is in the view, in bytes.
        truncated: Number of documents that an encoder truncated.
    """

    manifest: Manifest
    view: View
    sequence: int
    wal_end: int
    truncated: int

    @property
    def memory(self) -> Part:
        """The documents that are not in a segment yet."""
        return self.view[-1]

    @property
    def segments(self) -> dict[str, Segment]:
        """The open segments by name."""
        return {part.segment.name: part.segment for part in self.view if isinstance(part.segment, Segment)}


def open_state(directory: Path, known: Mapping[str, Segment] | None = None) -> State:
    """Return the state on disk after verifying every file; segments in ``known`` are open already.

    Raises:
        NotFoundError: No such collection.
        CorruptFileError: A file is missing, damaged or of another format.
        IndexMismatchError: A segment has other fields.
    """
    return read_published(directory, lambda manifest: _load(directory, manifest, known or {}))


def advance(directory: Path, state: State) -> State:
    """Return the state on disk now, reading only what is new since ``state``.

    Appends to the memtable of ``state``; existing snapshots do not see the new rows. Not thread-safe.
    """
    manifest = published(directory)
    memory = state.memory
    if manifest.version != state.manifest.version or memory.segment.count != memory.count:
        return open_state(directory, state.segments)
    try:
        frames, end = read_wal(directory / manifest.wal, state.sequence, state.wal_end)
    except CorruptFileError:  # the log just became a segment, or an unacknowledged frame was cut off
        return open_state(directory, state.segments)
    return follow(state, frames, end)


def _load(directory: Path, manifest: Manifest, known: Mapping[str, Segment]) -> State:
    parts = [_open_part(directory, entry, manifest.fields, known) for entry in manifest.segments]
    parts.append(Part(Memory(manifest.fields), 0, 0))
    state = State(manifest, tuple(parts), manifest.sequence, 0, manifest.truncated)
    frames, end = read_wal(directory / manifest.wal, manifest.sequence)
    return follow(state, frames, end)


def _open_part(directory: Path, entry: SegmentEntry, fields: Mapping[str, Field], known: Mapping[str, Segment]) -> Part:
    folder = directory / SEGMENTS / entry.name
    segment = known.get(entry.name)
    if segment is None:
        check = check_file(folder / SEGMENT, entry.record)
        if not check.ok:
            raise CorruptFileError(f"{folder / SEGMENT} {check.problem}; {REMEDY}", field="collection")
        segment = Segment(folder, fields)
        if segment.count != entry.count:
            message = f"{folder} has {segment.count} documents, the manifest {entry.count}; {REMEDY}"
            raise CorruptFileError(message, field="collection")
    part = Part(segment, entry.base, entry.count)
    if entry.dead is None:
        return part
    path = directory / entry.dead.name
    check = check_file(path, entry.dead.record)
    if not check.ok:
        raise CorruptFileError(f"{path} {check.problem}; {REMEDY}", field="collection")
    return part.without(read_array(path))


def follow(state: State, frames: Sequence[Frame], end: int) -> State:
    """Return the state after replaying frames of the log, which end at byte ``end``."""
    for frame in frames:
        state, _ = apply(state, decode_operations(frame.payload))
        state = replace(state, sequence=frame.sequence + frame.span)
    return replace(state, wal_end=end)


def apply(state: State, operations: Iterable[Operation]) -> tuple[State, list[int]]:
    """Return the state after ``operations``, and how many documents each wrote or deleted.

    Earlier snapshots do not change.
    """
    view, sequence, truncated = list(state.view), state.sequence, state.truncated
    counts = []
    for operation in operations:
        if isinstance(operation, Delete):
            locations = [location for location in locate(tuple(view), operation.sequences) if location[0] >= 0]
            _mark_dead(view, locations)
            counts.append(len(locations))
        else:
            _mark_dead(view, list(find(tuple(view), [document.id for document in operation.documents]).values()))
            view[-1] = _appended(view[-1], operation, sequence)
            truncated += operation.truncated
            counts.append(len(operation.documents))
        sequence += operation.span
    return replace(state, view=tuple(view), sequence=sequence, truncated=truncated), counts


def _mark_dead(view: list[Part], locations: Sequence[Location]) -> None:
    for number in {part for part, _ in locations}:
        view[number] = view[number].without(np.array([row for part, row in locations if part == number]))


def _appended(part: Part, operation: Upsert, sequence: int) -> Part:
    memory = part.segment
    if not isinstance(memory, Memory):
        raise TypeError("the last part of a view must be the memtable")
    memory.append(operation.documents, operation.metadata, operation.vectors, sequence)
    live = np.ones(len(operation.documents), dtype=bool)
    return Part(memory, 0, memory.count, None if part.live is None else np.concatenate([part.live, live]))
