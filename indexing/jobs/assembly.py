"""Shards become one segment, and the segment a collection in one step."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from embedserve.types import Encoded
from indexing.base import Metric, TextEncoder
from indexing.collections.manifest import Manifest
from indexing.collections.publication import publish_locked, unchanged
from indexing.jobs.shard_files import REMEDY, read_record
from indexing.jobs.shard_rows import read_rows
from indexing.segments.fields import WORDS, Field, Vectors, field_of
from indexing.segments.segment import SegmentWriter
from indexing.storage.files import writing


def fields_for(encoder: TextEncoder, index: str = "auto", metric: Metric = "cosine") -> dict[str, Field]:
    """Return a field for each output of the encoder, by its name, and the words for BM25.

    ``index`` is that of the dense vectors, or of the token vectors where there are no dense ones.
    """
    outputs = getattr(encoder, "outputs", ("dense",))
    fields: dict[str, Field] = {}
    if "dense" in outputs:
        fields["dense"] = field_of(encoder, "dense", index=index, metric=metric)
    if "multi" in outputs:
        fields["multi"] = field_of(encoder, "multi", index="auto" if fields else index)
    if "sparse" in outputs:
        fields["sparse"] = field_of(encoder, "sparse")
    return fields | {"bm25": WORDS}


def assemble(
    shards: Sequence[tuple[Path, frozenset[int]]],
    fields: Mapping[str, Field],
    directory: Path,
    work: Path,
    *,
    truncated: int = 0,
    progress: Callable[[int], None] = lambda _: None,
    added: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Make one segment of shards, in their order, and publish it in place of the collection that may be there.

    For who holds the lock of ``directory``.

    Args:
        shards: Folder of each, and the places in its input that are left out.
        fields: Of the collection.
        directory: `catalog.collection_path(data_dir, name)`.
        work: A folder on the same disk, for the segment while it is written.
        truncated: Rows that the encoder cut, for the manifest.
        progress: Called with the rows indexed so far.
        added: Called with the rows written so far.

    Each shard is read a second time, to compare its digests.

    Raises:
        CorruptFileError: A file of a shard is not as it was written; the collection is as it was.
        InputError: There are no rows, an id is there twice, or the index needs more rows.
        EmbedserveError: The disk is full.
    """
    folder = work / f".segment-{secrets.token_hex(4)}"
    try:
        with writing(work), closing(SegmentWriter(folder, fields)) as writer:
            for shard, left_out in shards:
                files = [(shard / name, record) for name, record in read_record(shard).files.items()]
                with unchanged(files, REMEDY):
                    for rows in read_rows(shard):
                        kept = rows.without(left_out)
                        if kept.documents:
                            writer.add(kept.documents, vectors_of(kept.encoded))
                            added(writer.count)
            writer.finish(progress)
        return publish_locked(directory, fields, [folder], truncated=truncated)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def vectors_of(encoded: Encoded) -> dict[str, Vectors]:
    """Return what an encoder made by the names of the fields."""
    found: dict[str, Vectors] = {}
    if encoded.dense is not None:
        found["dense"] = encoded.dense.vectors
    if encoded.multi is not None:
        found["multi"] = encoded.multi
    if encoded.sparse is not None:
        found["sparse"] = encoded.sparse
    return found
