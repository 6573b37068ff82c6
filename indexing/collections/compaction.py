"""Which segments are written anew, and the segment that takes their place."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from indexing.collections.file_links import unchanged
from indexing.collections.manifest import SEGMENTS, SegmentEntry, new_name
from indexing.collections.view import Part
from indexing.segments.fields import Field
from indexing.segments.segment import SEGMENT, SegmentWriter
from indexing.storage.checksums import FileRecord, record_of
from indexing.storage.files import writing

MOST_DEAD = 0.2  # a segment with a larger share of deleted documents is written anew
FANOUT = 8  # so many segments of like size become one
BITS = 3  # sizes are alike where their numbers of binary digits are, divided by this
BATCH_ROWS = 1000


def runs_to_merge(parts: Sequence[Part], *, full: bool) -> list[tuple[int, int]]:
    """Return neighbouring segments, as first and one behind the last, that should become one.

    Only neighbours are merged, so segments stay in the order of writing.
    """
    if full:
        whole = len(parts) == 1 and not parts[0].dead
        return [] if whole or not parts else [(0, len(parts))]
    for place, part in enumerate(parts):
        if part.dead > MOST_DEAD * part.count:
            return [(place, place + 1)]
    levels = [len(part.rows).bit_length() // BITS for part in parts]
    for level in sorted(set(levels)):
        start = 0
        for stop in range(len(levels) + 1):
            if stop == len(levels) or levels[stop] > level:
                if levels[start:stop].count(level) >= FANOUT:
                    return [(start, stop)]
                start = stop + 1
    return []


def write_segment(
    directory: Path,
    fields: Mapping[str, Field],
    parts: Sequence[Part],
    sources: Iterable[tuple[Path, FileRecord]] = (),
) -> SegmentEntry | None:
    """Write the documents of ``parts`` that were not deleted as one segment; None where there are none.

    Args:
        directory: Of the collection.
        fields: Of the collection.
        parts: In the order of writing.
        sources: The files that hold them, whose digests are compared once they were copied; default: none, for parts
            in memory.

    Raises:
        CorruptFileError: A source has changed on the disk; what was begun is removed.
        EmbedserveError: The disk is full or failing; what was begun is removed.
    """
    if not any(len(part.rows) for part in parts):
        return None
    folder = directory / SEGMENTS / new_name()
    try:
        with writing(directory):
            writer = SegmentWriter(folder, fields, strict=False)
            try:
                with unchanged(sources):
                    for part in parts:
                        for documents, vectors, sequences in part.segment.batches(part.rows, BATCH_ROWS):
                            writer.add(documents, vectors, sequences + part.base)
                record = writer.finish()
            finally:
                writer.close()
            return SegmentEntry(folder.name, 0, record.count, dict(record.kinds), record_of(folder / SEGMENT))
    except BaseException:  # only to free its space; the error goes on
        shutil.rmtree(folder, ignore_errors=True)
        raise
