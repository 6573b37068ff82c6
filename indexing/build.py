"""Build a collection: embed, store, index, and only then publish. Stopped at any moment, it changes nothing."""

from __future__ import annotations

import logging
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from embedserve.errors import CorruptFileError, EmbedserveError, InputError, NotFoundError, name_texts
from embedserve.types import Embeddings
from indexing.base import Metric, TextEncoder, as_metric, plain_spec
from indexing.catalog import check_name
from indexing.collection import DOCUMENTS, INDEX, VECTORS
from indexing.corpus import Document
from indexing.documents import DocumentWriter
from indexing.faiss_defaults import resolve_kind
from indexing.faiss_factory import check_rows, new_index
from indexing.faiss_index import build_index, import_faiss
from indexing.files import build_lock, digest, disk_advice, make_directory, sync
from indexing.manifest import MANIFEST, VERSION_NAME, FileRecord, Manifest, read_manifest, write_manifest
from indexing.vectors import VectorWriter

logger = logging.getLogger(__name__)

BATCH_SIZE = 256


@dataclass(frozen=True)
class BuildProgress:
    """How far a build is.

    Attributes:
        stage: ``embed``, then ``index``, then ``write``.
        done: Documents this stage is done with.
        total: Documents in all, or None while that is unknown.
    """

    stage: Literal["embed", "index", "write"]
    done: int
    total: int | None


Report = Callable[[BuildProgress], None]


def build_collection(
    documents: Iterable[Document],
    encoder: TextEncoder,
    directory: Path | str,
    *,
    index: str = "auto",
    metric: Metric = "cosine",
    batch_size: int = BATCH_SIZE,
    total: int | None = None,
    progress: Report | None = None,
) -> Manifest:
    """Build a collection in ``directory``, in place of the one that may be there.

    The old collection can be opened until the new one is complete on the disk; then the new one takes its place in
    one step. An error, Ctrl-C or kill before that leaves the old one as it was.

    Args:
        documents: Read once, ``batch_size`` at a time.
        encoder: Embeds each document's title and text.
        directory: `catalog.collection_path(data_dir, name)`.
        index: ``auto``, ``flat``, ``hnsw``, ``exact`` (needs no faiss) or a faiss factory string.
        metric: ``cosine`` or ``inner_product``.
        batch_size: Documents given to the encoder at once.
        total: Documents to come, or a number they will not exceed: for ``progress``, and to refuse an index that
            needs more of them before anything is embedded; not needed for a list.
        progress: Called after every batch.

    Raises:
        InputError: No documents, an id twice, or an unknown index; what ``documents`` raises passes through.
        EmbedserveError: Another build of the collection is running, or the disk is full.
    """
    directory = Path(directory)
    check_name(directory.name)
    if total is None and isinstance(documents, Sized):
        total = len(documents)
    check_options(index, metric, batch_size, encoder.dim, total)
    report = progress or (lambda _: None)
    with writing(directory):
        make_directory(directory)
    started = time.perf_counter()
    with build_lock(directory):
        remove_unpublished(directory)
        folder = directory / f"v-{secrets.token_hex(8)}"
        try:
            embedded = partial(BuildProgress, "embed", total=total)
            count, truncated = write_rows(documents, encoder, folder, batch_size, lambda done: report(embedded(done)))
            indexed = partial(BuildProgress, "index", total=count)
            kind = write_index(folder, index, metric, lambda done: report(indexed(done)))
            report(BuildProgress("write", count, count))
            manifest = describe(folder, encoder, kind, metric, count, truncated)
            with writing(directory):
                write_manifest(directory, manifest)
        finally:
            remove_unpublished(directory)
    seconds = time.perf_counter() - started
    logger.info("collection=%s documents=%d index=%s seconds=%.1f", directory.name, count, kind, seconds)
    return manifest


def check_options(index: str, metric: str, batch_size: int, dim: int, total: int | None) -> None:
    """Raise `InputError` for options that would fail only after hours of embedding."""
    as_metric(metric)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}", field="batch_size")
    if index != "exact":
        kind = resolve_kind(index, total or 0, dim)
        faiss = import_faiss()
        empty = new_index(faiss, dim, kind, as_metric(metric))
        if total:
            check_rows(faiss, empty, kind, total)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what can go wrong with a disk into an error that says what was saved and what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise EmbedserveError(
            f"cannot write to {directory}: {error}; {disk_advice(error)}; what was there before is unchanged"
        ) from error


def write_rows(
    documents: Iterable[Document], encoder: TextEncoder, folder: Path, batch_size: int, report: Callable[[int], None]
) -> tuple[int, int]:
    """Embed and store all documents; return how many there were, and how many were cut."""
    batches = iter_batches(documents, batch_size)
    first = next(batches, None)
    if first is None:
        raise InputError("there are no documents to index", field="documents")
    truncated = 0
    disk = partial(writing, folder.parent)  # the source and the encoder keep their own errors
    with disk():
        folder.mkdir()
        store = DocumentWriter(folder / DOCUMENTS)
    with closing(store):
        with disk():
            rows = VectorWriter(folder / VECTORS, encoder.dim)
        with closing(rows):
            for batch in chain([first], batches):
                with disk():
                    store.add(batch)
                found = embed(encoder, batch)
                truncated += int(found.truncated.sum())
                with disk():
                    rows.append(found.vectors)
                report(rows.count)
            with disk():
                store.finish()
                rows.finish()
    return rows.count, truncated


def iter_batches(documents: Iterable[Document], batch_size: int) -> Iterator[list[Document]]:
    """Yield the documents in lists of ``batch_size``, the last one shorter."""
    remaining = iter(documents)
    while batch := list(islice(remaining, batch_size)):
        yield batch


def embed(encoder: TextEncoder, batch: Sequence[Document]) -> Embeddings:
    """Return the vectors of a batch; raise `EmbedserveError` where the encoder returns another number.

    A text that the encoder refuses is named by its file and line.
    """
    try:
        found = encoder.embed([document.content for document in batch], task="document")
    except InputError as error:
        raise name_texts(error, lambda place: f"{batch[place].prefix}document {batch[place].id!r}") from error
    if len(found.vectors) != len(batch):
        count = len(found.vectors)
        raise EmbedserveError(f"encoder {encoder.name!r} returned {count} vectors for {len(batch)} documents")
    return found


def write_index(folder: Path, kind: str, metric: Metric, report: Callable[[int], None]) -> str:
    """Index the vectors in ``folder``; return the kind that was built."""
    if kind == "exact":
        return kind
    vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    index = build_index(vectors, kind, metric, progress=lambda done, _: report(done))
    with writing(folder.parent):
        index.write(folder / INDEX)
    return index.kind


def describe(folder: Path, encoder: TextEncoder, kind: str, metric: Metric, count: int, truncated: int) -> Manifest:
    """Return the manifest of a finished version folder, every file of it safe on the disk."""
    files = {}
    with writing(folder.parent):
        for path in sorted(folder.iterdir()):
            sync(path)
            files[path.name] = FileRecord(path.stat().st_size, digest(path))
        sync(folder)
        sync(folder.parent)
    return Manifest(
        name=folder.parent.name,
        version=folder.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        encoder=encoder.name,
        fingerprint=encoder.fingerprint,
        spec=plain_spec(encoder),
        dim=encoder.dim,
        metric=metric,
        index=kind,
        count=count,
        truncated=truncated,
        files=files,
    )


def remove_unpublished(directory: Path) -> None:
    """Remove the version folders that no manifest names: the ones replaced, and what a killed build left.

    Where the manifest cannot be read nothing is removed: its files may still be wanted for a repair. What cannot be
    removed is left with a warning: it costs space, while the collection is whole.
    """
    try:
        keep = read_manifest(directory).version
    except NotFoundError:
        keep = ""
    except CorruptFileError:
        return
    try:
        leftovers = [path for path in directory.iterdir() if is_leftover(path.name, keep)]
        # The manifest may have been renamed into place a moment ago, by this build or by one that was killed. Until
        # the name is on the disk a power cut brings back the old manifest, which needs its old version.
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


def is_leftover(name: str, keep: str) -> bool:
    """Return whether a file of a collection is a version other than ``keep``, or a manifest never published."""
    return name.startswith(f".{MANIFEST}.") or (name != keep and VERSION_NAME.fullmatch(name) is not None)
