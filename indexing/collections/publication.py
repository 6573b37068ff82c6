"""Publish finished segments as a collection in one atomic step."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from embedserve.errors import InputError
from indexing.collections.catalog import check_name
from indexing.collections.cleanup import check_no_orphaned_log, remove_unpublished
from indexing.collections.file_links import link_folder, unchanged
from indexing.collections.manifest import (
    MANIFEST,
    SEGMENT_NAME,
    SEGMENTS,
    DeadRows,
    Manifest,
    SegmentEntry,
    new_name,
    now,
    write_manifest,
)
from indexing.collections.view import Part
from indexing.collections.wal import new_wal
from indexing.segments.document_table import DocumentStore
from indexing.segments.fields import Field, check_fields
from indexing.segments.segment import DOCUMENTS, SEGMENT, check_same_fields, read_segment
from indexing.storage.checksums import record_of
from indexing.storage.engine_files import array_writer
from indexing.storage.files import make_directory, sync, write_lock, writing

Duplicates = Literal["refuse", "last"]


def create_collection(directory: Path, fields: Mapping[str, Field]) -> Manifest:
    """Create an empty collection.

    Raises:
        InputError: The collection exists, or the fields are invalid.
        EmbedserveError: The disk cannot be written, or the directory contains writes of a collection whose manifest is
            lost.
    """
    if (directory / MANIFEST).exists():
        raise InputError(f"collection {directory.name!r} already exists; choose another name", field="collection")
    check_name(directory.name)
    return publish(directory, fields, [])


def publish(
    directory: Path,
    fields: Mapping[str, Field],
    segments: Sequence[Path],
    *,
    truncated: int = 0,
    duplicates: Duplicates = "refuse",
    locked: bool = False,
) -> Manifest:
    """Publish finished segments as a collection, replacing the collection in ``directory`` if there is one.

    Until the last step, and after a crash before it, the old collection is in place. The segments are hard-linked into
    the collection (or copied), so the caller may keep or remove their folders. Their files are read once, to verify
    their digests.

    Args:
        directory: `catalog.collection_path(data_dir, name)`.
        fields: Fields of the collection and of every segment.
        segments: Folders completed by `SegmentWriter.finish`, in write order; none for an empty collection.
        truncated: Number of documents that an encoder truncated.
        duplicates: For ids in several segments: ``refuse`` raises an error, ``last`` keeps the last document.
        locked: Whether the caller holds the write lock of ``directory``.

    Raises:
        InputError: A duplicate id.
        NotFoundError, CorruptFileError, IndexMismatchError: A segment is unfinished, damaged, or has other fields.
        EmbedserveError: The collection is open for writing, the disk is full, or the directory contains writes of a
            collection whose manifest is lost.
    """
    with writing(directory):
        make_directory(directory)
    with nullcontext() if locked else write_lock(directory):
        check_no_orphaned_log(directory)
        fields = check_fields(fields)
        records = [read_segment(folder) for folder in segments]
        files = []
        for folder, record in zip(segments, records, strict=True):
            check_same_fields(folder, record, fields)
            files.append((folder / SEGMENT, record_of(folder / SEGMENT)))
            files += [(folder / name, file) for name, file in record.files.items()]
        record_by_path = dict(files)
        try:
            with unchanged(files), writing(directory):
                dead = dead_duplicates(segments, duplicates)
                entries, sequence = [], 0
                for folder, record, rows in zip(segments, records, dead, strict=True):
                    name = link_segment(directory, folder)
                    deleted = write_dead_rows(directory, rows) if len(rows) else None
                    json_record = record_by_path[folder / SEGMENT]
                    entries.append(SegmentEntry(name, sequence, record.count, dict(record.kinds), json_record, deleted))
                    sequence += record.count
            with writing(directory):
                wal = new_wal(directory, f"wal-{new_name()}.log", sequence).name
                manifest = Manifest(directory.name, new_name(), now(), fields, tuple(entries), sequence, wal, truncated)
                write_manifest(directory, manifest)
        finally:
            remove_unpublished(directory)
        return manifest


def link_segment(directory: Path, folder: Path) -> str:
    """Link a segment into the collection, unless it is there already; return its name."""
    parent = directory / SEGMENTS
    if folder.parent == parent and SEGMENT_NAME.fullmatch(folder.name):
        return folder.name
    make_directory(parent)
    name = folder.name if SEGMENT_NAME.fullmatch(folder.name) and not (parent / folder.name).exists() else new_name()
    link_folder(folder, parent / name)
    sync(parent)
    return name


def write_dead_rows(directory: Path, rows: np.ndarray) -> DeadRows:
    """Write the deleted rows (n,) int64 of a segment, and return the manifest's entry for the file."""
    path = directory / f"dead-{new_name()}.npy"
    array_writer(np.asarray(rows, dtype=np.int64))(path)
    sync(path)
    return DeadRows(path.name, len(rows), record_of(path))


def with_dead_rows(directory: Path, part: Part, entry: SegmentEntry) -> SegmentEntry:
    """Return ``entry`` with the deleted rows of ``part``, in a new file if there are more than it names."""
    if part.live is None or part.dead == (entry.dead.count if entry.dead is not None else 0):
        return entry
    with writing(directory):
        return replace(entry, dead=write_dead_rows(directory, np.flatnonzero(~part.live)))


def dead_duplicates(segments: Sequence[Path], duplicates: Duplicates) -> list[np.ndarray]:
    """Return for each segment the rows whose ids a later segment has too; `InputError` if duplicates are refused."""
    earlier: list[list[str]] = [[] for _ in segments]
    if len(segments) < 2:
        return [np.empty(0, dtype=np.int64) for _ in segments]
    with ExitStack() as opened:
        stores = [opened.enter_context(closing(DocumentStore(folder / DOCUMENTS))) for folder in segments]

        def ids(number: int) -> Iterator[tuple[str, int]]:
            return ((name, number) for name in stores[number].ids())

        for name, group in groupby(heapq.merge(*map(ids, range(len(stores)))), key=lambda pair: pair[0]):
            numbers = [number for _, number in group]
            if len(numbers) > 1 and duplicates == "refuse":
                both = " and ".join(segments[number].name for number in numbers[:2])
                message = f"segments {both} have the same id {name!r}; make ids unique, or let the last one count"
                raise InputError(message, field="id")
            for number in numbers[:-1]:
                earlier[number].append(name)
        return [
            np.sort(np.array(list(store.find(names).values()), dtype=np.int64))
            for store, names in zip(stores, earlier, strict=True)
        ]
