"""Assembles shards into one segment and publishes it as a collection."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from embedserve.types import Encoded
from indexing.base import Metric, TextEncoder
from indexing.collections.file_links import unchanged
from indexing.collections.manifest import Manifest
from indexing.collections.publication import publish
from indexing.jobs.shard_files import REMEDY, read_record
from indexing.jobs.shard_rows import read_rows
from indexing.segments.fields import WORDS, Field, Vectors, field_of
from indexing.segments.segment import SegmentWriter
from indexing.storage.files import writing


def fields_for(encoder: TextEncoder, index: str = "auto", metric: Metric = "cosine") -> dict[str, Field]:
    """Return one field per output of the encoder, by name, and the words for BM25.

    ``index`` is the kind of index of the dense vectors, or of the token vectors if there are no dense ones.
    """
    outputs = encoder.outputs
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
    on_written: Callable[[int], None] = lambda _: None,
    on_indexed: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Write one segment of all shards, in order, and publish it, replacing the existing collection.

    The caller must hold the write lock of ``directory``. Each shard is read twice, to verify its digests.

    Args:
        shards: Folder of each shard, and the input positions to exclude from it.
        fields: Fields of the collection.
        directory: `catalog.collection_path(data_dir, name)`.
        work: A folder on the same disk, for the unfinished segment.
        truncated: Number of truncated rows, for the manifest.
        on_written: Called with the number of rows written.
        on_indexed: Called with the number of rows indexed.

    Raises:
        InputError: There are no rows, an id is duplicate, or the index needs more rows.
        CorruptFileError: A file of a shard changed since it was written; the existing collection is not changed.
        EmbedserveError: The disk is full.
    """
    folder = work / f".segment-{secrets.token_hex(4)}"
    try:
        with writing(work), closing(SegmentWriter(folder, fields)) as writer:
            for shard, excluded in shards:
                files = [(shard / name, record) for name, record in read_record(shard).files.items()]
                with unchanged(files, REMEDY):
                    for rows in read_rows(shard):
                        remaining = rows.without(excluded)
                        if remaining.documents:
                            writer.add(remaining.documents, vectors_of(remaining.encoded))
                            on_written(writer.count)
            writer.finish(on_indexed)
        return publish(directory, fields, [folder], truncated=truncated, locked=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def vectors_of(encoded: Encoded) -> dict[str, Vectors]:
    """Return the outputs of an encoder by field name."""
    vectors: dict[str, Vectors] = {}
    if encoded.dense is not None:
        vectors["dense"] = encoded.dense.vectors
    if encoded.multi is not None:
        vectors["multi"] = encoded.multi
    if encoded.sparse is not None:
        vectors["sparse"] = encoded.sparse
    return vectors
