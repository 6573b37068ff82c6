"""Finished segments become a collection in one step; what it replaces is removed afterwards."""

from __future__ import annotations

import errno
import heapq
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from embedserve.errors import CorruptFileError, InputError, NotFoundError
from indexing.collections.catalog import all_files, check_name
from indexing.collections.manifest import (
    HEX,
    MANIFEST,
    SEGMENT_NAME,
    SEGMENTS,
    DeadRows,
    Manifest,
    SegmentEntry,
    new_name,
    now,
    read_manifest,
    write_manifest,
)
from indexing.collections.wal import new_wal
from indexing.segments.document_table import DocumentStore
from indexing.segments.fields import Field, check_fields
from indexing.segments.segment import DOCUMENTS, SEGMENT, check_same_fields, read_segment
from indexing.storage.checksums import REMEDY, FileRecord, check_file, record_of
from indexing.storage.engine_files import array_writer
from indexing.storage.files import make_directory, sync, write_lock, writing

logger = logging.getLogger(__name__)

Duplicates = Literal["refuse", "last"]
OURS = re.compile(rf"v-{HEX}|wal-{HEX}\.log|dead-{HEX}\.npy|\.manifest\.json\..*")
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


@contextmanager
def unchanged(
    files: Iterable[tuple[Path, FileRecord]], remedy: str = REMEDY, field: str = "collection"
) -> Iterator[None]:
    """Refuse what the block copies or links unless every source file is as it was written.

    Files can change on the disk after they were opened. The copy gets digests of its own, so without this check the
    damage would count as valid from then on. The digests are compared after the block, so that a change during the
    copy is seen as well; the caller must publish the copy only after that. Where the block itself fails, damage of a
    source is reported in place of the error. Costs one read of the sources, which the block has just brought into the
    file cache.

    Args:
        files: Path and record of each source; an iterator is read only after the block.
        remedy: What the error tells the reader to do.
        field: Of the error.

    Raises:
        CorruptFileError: A source is missing, damaged or of another size; it is named.
    """
    try:
        yield
    except Exception:  # damaged values can raise anything
        check_sources(files, remedy, field)
        raise
    check_sources(files, remedy, field)


def check_sources(files: Iterable[tuple[Path, FileRecord]], remedy: str, field: str) -> None:
    """Raise `CorruptFileError` for the first of ``files`` that is not as its record says."""
    for path, record in files:
        check = check_file(path, record)
        if not check.ok:
            raise CorruptFileError(f"{path} {check.problem}; {remedy}", field=field)


def sources_of(directory: Path, manifest: Manifest) -> Iterator[tuple[Path, FileRecord]]:
    """Yield path and record of every file that ``manifest`` names, for `unchanged`; the log is not among them."""
    return ((directory / name, record) for name, record in all_files(directory, manifest))


def publish(
    directory: Path,
    fields: Mapping[str, Field],
    segments: Sequence[Path],
    *,
    truncated: int = 0,
    duplicates: Duplicates = "refuse",
) -> Manifest:
    """Make a collection of finished segments, in place of the one that may be there.

    Until the last step, and after a crash before it, the old collection is there. The segments are linked into the
    collection (copied where that is not possible), so their folders may be kept or removed. Every file of them is read
    once, to compare its digest.

    Args:
        directory: `catalog.collection_path(data_dir, name)`.
        fields: Of the collection; those of every segment.
        segments: Folders that `SegmentWriter.finish` completed, in the order of writing; none for an empty collection.
        truncated: How many documents were cut by an encoder.
        duplicates: What becomes of ids that several segments have: an error, or the last one counts.

    Raises:
        InputError: An id is there twice.
        NotFoundError, CorruptFileError, IndexMismatchError: A segment is not finished, damaged, or of other fields.
        EmbedserveError: The collection is being written to, or the disk is full.
    """
    with writing(directory):
        make_directory(directory)
    with write_lock(directory):
        return publish_locked(directory, fields, segments, truncated=truncated, duplicates=duplicates)


def create_collection(directory: Path, fields: Mapping[str, Field]) -> Manifest:
    """Make an empty collection with these fields.

    Raises:
        InputError: There is one already, or the fields make no sense.
        EmbedserveError: The disk cannot be written.
    """
    if (directory / MANIFEST).exists():
        raise InputError(f"there is a collection {directory.name!r} already; choose another name", field="collection")
    check_name(directory.name)
    return publish(directory, fields, [])


def publish_locked(
    directory: Path,
    fields: Mapping[str, Field],
    segments: Sequence[Path],
    *,
    truncated: int = 0,
    duplicates: Duplicates = "refuse",
) -> Manifest:
    """Do the same for who holds the lock of ``directory``."""
    fields = check_fields(fields)
    records = [read_segment(folder) for folder in segments]
    for folder, record in zip(segments, records, strict=True):
        check_same_fields(folder, record, fields)
    files = []
    for folder, record in zip(segments, records, strict=True):
        files.append((folder / SEGMENT, record_of(folder / SEGMENT)))
        files += [(folder / name, file) for name, file in record.files.items()]
    record_by_path = dict(files)
    try:
        with unchanged(files), writing(directory):
            dead = dead_duplicates(segments, duplicates)
            entries, sequence = [], 0
            for folder, record, rows in zip(segments, records, dead, strict=True):
                placed = place_segment(directory, folder)
                kinds, json_record = dict(record.kinds), record_by_path[folder / SEGMENT]
                deleted = write_dead(directory, rows) if len(rows) else None
                entries.append(SegmentEntry(placed.name, sequence, record.count, kinds, json_record, deleted))
                sequence += record.count
        with writing(directory):
            wal = new_wal(directory, f"wal-{new_name()}.log", sequence).name
            manifest = Manifest(directory.name, new_name(), now(), fields, tuple(entries), sequence, wal, truncated)
            write_manifest(directory, manifest)
    finally:
        remove_unpublished(directory)
    return manifest


def place_segment(directory: Path, folder: Path) -> Path:
    """Return the place of a segment in the collection, where its files are linked unless they are there already."""
    parent = directory / SEGMENTS
    if folder.parent == parent and SEGMENT_NAME.fullmatch(folder.name):
        return folder
    make_directory(parent)
    name = folder.name if SEGMENT_NAME.fullmatch(folder.name) and not (parent / folder.name).exists() else new_name()
    link_folder(folder, parent / name)
    sync(parent)
    return parent / name


def link_folder(folder: Path, target: Path) -> None:
    """Make ``target`` a folder with the same files as ``folder``, linked or copied, safe on the disk."""
    target.mkdir()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            link_folder(path, target / path.name)
        else:
            link_file(path, target / path.name)
    sync(target)


def link_file(path: Path, target: Path) -> None:
    """Make ``target`` a second name of a file that never changes, or a synced copy where links are not possible."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
        shutil.copyfile(path, target)
        sync(target)


def write_dead(directory: Path, rows: np.ndarray) -> DeadRows:
    """Write the rows (n,) int64 of a segment that were deleted, and return what the manifest says of the file."""
    path = directory / f"dead-{new_name()}.npy"
    array_writer(np.asarray(rows, dtype=np.int64))(path)
    sync(path)
    return DeadRows(path.name, len(rows), record_of(path))


def dead_duplicates(segments: Sequence[Path], duplicates: Duplicates) -> list[np.ndarray]:
    """Return for each segment the rows whose ids a later segment has too; `InputError` unless that may be."""
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


def remove_unpublished(directory: Path) -> None:
    """Remove what no manifest names: what was replaced, and what a killed writer left.

    Where the manifest cannot be read nothing is removed: its files may still be wanted for a repair. What cannot be
    removed is left with a warning: it costs space, while the collection is whole.
    """
    try:
        manifest = read_manifest(directory)
    except NotFoundError:
        keep: set[str] = set()
    except CorruptFileError:
        return
    else:
        keep = {manifest.wal, *(name for name, _ in manifest.files()), *(entry.name for entry in manifest.segments)}
    try:
        inside = directory / SEGMENTS
        leftovers = [path for path in directory.iterdir() if OURS.fullmatch(path.name) and path.name not in keep]
        if inside.is_dir():
            leftovers += [path for path in inside.iterdir() if path.name not in keep]
            leftovers += [] if any(map(SEGMENT_NAME.fullmatch, keep)) else [inside]
        # The manifest may have been renamed into place a moment ago, by this writer or by one that was killed. Until
        # the name is on the disk a power cut brings back the old manifest, which needs its own files.
        sync(directory)
    except OSError as error:
        logger.warning("old files in %s are left where they are: %s", directory, error)
        return
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        if path.exists():
            logger.warning("%s is no longer needed but could not be removed; remove it to free its space", path)
