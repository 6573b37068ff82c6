"""Build a collection: embed, store and index documents, then publish it atomically."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from embedserve.errors import InputError
from indexing.base import Metric, TextEncoder
from indexing.collections.catalog import check_name
from indexing.collections.cleanup import remove_unpublished
from indexing.collections.manifest import SEGMENTS, Manifest, new_name
from indexing.collections.publication import publish
from indexing.engines.faiss_defaults import resolve_kind
from indexing.engines.faiss_factory import check_rows, new_index
from indexing.engines.faiss_index import import_faiss
from indexing.segments.fields import Field, check_fields, default_fields, encode_documents
from indexing.segments.segment import SegmentWriter
from indexing.sources.corpus import Document
from indexing.storage.files import make_directory, write_lock, writing

logger = logging.getLogger(__name__)

BATCH_SIZE = 256


@dataclass(frozen=True)
class BuildProgress:
    """Progress of a build.

    Attributes:
        stage: ``embed``, then ``index``, then ``write``.
        done: Documents that the stage has processed.
        total: Total number of documents; None if unknown.
    """

    stage: Literal["embed", "index", "write"]
    done: int
    total: int | None


Report = Callable[[BuildProgress], None]


def build_collection(
    documents: Iterable[Document],
    encoder: TextEncoder | Sequence[TextEncoder],
    directory: Path | str,
    *,
    fields: Mapping[str, Field] | None = None,
    index: str = "auto",
    metric: Metric = "cosine",
    batch_size: int = BATCH_SIZE,
    total: int | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Build a collection in ``directory``, replacing an existing one.

    The new collection replaces the old one atomically, once it is complete on disk. An error, Ctrl-C or kill before
    that leaves the old one unchanged.

    Args:
        documents: Read once, ``batch_size`` at a time.
        encoder: Embeds the title and text of each document; several if ``fields`` need several.
        directory: `catalog.collection_path(data_dir, name)`.
        fields: Fields by name. Default: `default_fields` of the encoder.
        index: ``auto``, ``flat``, ``hnsw``, ``exact`` (needs no faiss) or a faiss factory string.
        metric: ``cosine`` or ``inner_product``; like ``index``, for the default fields only.
        batch_size: Documents per call of the encoder.
        total: Number of documents, or an upper bound: for ``progress``, and to reject an index that needs more
            documents before any is embedded. Default: the length of ``documents``, if it has one.
        progress: Called after every batch.

    Raises:
        InputError: No documents, a duplicate id, or an unknown index. Errors of ``documents`` propagate.
        EmbedserveError: The collection is being built or open for writing, the disk is full, or the directory contains
            writes of a collection whose manifest is lost.
    """
    directory = Path(directory)
    check_name(directory.name)
    if total is None and isinstance(documents, Sized):
        total = len(documents)
    encoders = list(encoder) if isinstance(encoder, Sequence) else [encoder]
    fields = default_fields(encoders[0], index=index, metric=metric) if fields is None else check_fields(fields)
    check_options(fields, batch_size, total)
    report = progress or (lambda _: None)
    with writing(directory):
        make_directory(directory)
    started = time.perf_counter()
    with write_lock(directory):
        remove_unpublished(directory)
        folder = directory / SEGMENTS / new_name()
        try:
            embedded = partial(BuildProgress, "embed", total=total)
            with writing(directory):
                writer = SegmentWriter(folder, fields)
            with closing(writer):
                truncated = add_all(writer, documents, encoders, batch_size, lambda done: report(embedded(done)))
                indexed = partial(BuildProgress, "index", total=writer.count)
                with writing(directory):
                    writer.flush()
                writer.index(lambda done: report(indexed(done)))
                with writing(directory):
                    writer.seal()
            report(BuildProgress("write", writer.count, writer.count))
            manifest = publish(directory, fields, [folder], truncated=truncated, locked=True)
        finally:
            remove_unpublished(directory)
    seconds = time.perf_counter() - started
    numbers = (directory.name, writer.count, manifest.index, seconds)
    logger.info("collection=%s documents=%d index=%s seconds=%.1f", *numbers)
    return manifest


def check_options(fields: Mapping[str, Field], batch_size: int, total: int | None) -> None:
    """Raise `InputError` for options that would otherwise fail only after all documents are embedded."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}", field="batch_size")
    for field in fields.values():
        if field.output in ("sparse", "words") and field.index != "auto":
            message = f"{field.output} fields have no index option, got {field.index!r}; omit it"
            raise InputError(message, field="index")
        if field.output == "dense" and field.index != "exact":
            kind = resolve_kind(field.index, total or 0, field.dim)
            faiss = import_faiss()
            empty = new_index(faiss, field.dim, kind, field.metric)
            if total:
                check_rows(faiss, empty, kind, total)


def add_all(
    writer: SegmentWriter,
    documents: Iterable[Document],
    encoders: Sequence[TextEncoder],
    batch_size: int,
    report: Callable[[int], None],
) -> int:
    """Embed and store all documents; return the number of truncated ones."""
    batches = iter_batches(documents, batch_size)
    first = next(batches, None)
    if first is None:
        raise InputError("no documents to index", field="documents")
    truncated = 0
    by_fingerprint = {encoder.fingerprint: encoder for encoder in encoders}
    for batch in chain([first], batches):
        vectors, cut = encode_documents(writer.fields, by_fingerprint, batch)
        truncated += cut
        with writing(writer.folder.parents[1]):  # errors of the source and the encoder propagate unchanged
            writer.add(batch, vectors)
        report(writer.count)
    return truncated


def iter_batches(documents: Iterable[Document], batch_size: int) -> Iterator[list[Document]]:
    """Yield the documents in lists of ``batch_size``, the last one shorter."""
    remaining = iter(documents)
    while batch := list(islice(remaining, batch_size)):
        yield batch
