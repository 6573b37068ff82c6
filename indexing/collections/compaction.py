"""Choose segments to merge, and write the merged segment."""

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

MAX_DEAD_SHARE = 0.2  # a segment with a larger share of deleted documents is rewritten
FANOUT = 8  # this many segments of similar size are merged
LEVEL_BITS = 3  # sizes are similar if their bit lengths, divided by this, are equal
BATCH_ROWS = 1000


def runs_to_merge(parts: Sequence[Part], *, full: bool) -> list[tuple[int, int]]:
    """Return a run of neighbouring segments to merge, as [start, stop); only neighbours, to keep the write order."""
    if full:
        whole = len(parts) == 1 and not parts[0].dead
        return [] if whole or not parts else [(0, len(parts))]
    for index, part in enumerate(parts):
        if part.dead > MAX_DEAD_SHARE * part.count:
            return [(index, index + 1)]
    levels = [len(part.rows).bit_length() // LEVEL_BITS for part in parts]
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
    """Write the live documents of ``parts`` as one segment; return None if there are none.

    Args:
        directory: Of the collection.
        fields: Of the collection.
        parts: In write order.
        sources: The files of ``parts``, verified after the copy. Default: none, for parts in memory.

    Raises:
        CorruptFileError: A source changed on disk; the unfinished segment is removed.
        EmbedserveError: The disk is full or failing; the unfinished segment is removed.
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
    except BaseException:  # free its space, then re-raise
        shutil.rmtree(folder, ignore_errors=True)
        raise
