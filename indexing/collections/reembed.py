"""Re-embed a collection: build a new version from its documents with another encoder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from embedserve.errors import InputError
from indexing.base import TextEncoder
from indexing.collections.aliases import resolve, set_alias
from indexing.collections.catalog import check_name, collection_path
from indexing.collections.cleanup import orphaned_logs
from indexing.collections.collection import Collection
from indexing.collections.collection_build import Report, build_collection
from indexing.collections.file_links import sources_of, unchanged
from indexing.collections.manifest import MANIFEST, Manifest
from indexing.segments.fields import Field, field_of
from indexing.segments.segment import DOCUMENTS
from indexing.sources.corpus import Document


def reembed(
    data_dir: Path | str, name: str, encoder: TextEncoder, *, to: str | None = None, progress: Report | None = None
) -> Manifest:
    """Build a new collection from the documents with another encoder, then point the alias ``name`` to it.

    Until the last step, and after a crash before it, ``name`` refers to the old collection, which is locked for writing
    and is kept. If ``name`` is a collection, the new alias of that name hides it.

    Args:
        data_dir: Directory of the collections.
        name: A collection or an alias.
        encoder: Computes the vectors of every field.
        to: Name of the new collection, which must not exist. Default: the first free of ``name-2``, ``name-3``, …
        progress: Called after every batch.

    Raises:
        NotFoundError: No such collection.
        InputError: The collection ``to`` exists, or the encoder rejects a text.
        SpecError: The encoder does not support the output of a field.
        CorruptFileError: A file is damaged, or changed on disk while it was read; no collection was created.
        EmbedserveError: Another process has the collection open for writing, or the disk is full.
    """
    source = resolve(data_dir, name)
    target = collection_path(data_dir, to) if to is not None else free_name(source)
    if (target / MANIFEST).exists():
        raise InputError(f"collection {target.name!r} already exists; choose another name", field="to")
    with Collection.open(source, writable=True) as old:
        fields = {key: field_with_encoder(field, encoder) for key, field in old.fields.items()}
        documents = unchanged_documents(old)
        manifest = build_collection(documents, encoder, target, fields=fields, total=len(old), progress=progress)
        set_alias(data_dir, name, target.name)
    return manifest


def unchanged_documents(collection: Collection) -> Iterator[Document]:
    """Yield all documents, then raise `CorruptFileError` if their files changed on disk after they were opened."""
    sources = sources_of(collection.directory, collection.manifest)
    with unchanged((path, record) for path, record in sources if path.name == DOCUMENTS):
        yield from collection.documents()


def field_with_encoder(field: Field, encoder: TextEncoder) -> Field:
    """Return the same field with another encoder; words need none."""
    if field.output == "words":
        return field
    width = field.dim if field.output == "sparse" else 0
    return field_of(encoder, field.output, index=field.index, metric=field.metric, dim=width)


def free_name(directory: Path) -> Path:
    """Return the first of ``name-2``, ``name-3``, … that is neither a collection nor holds writes of a lost one."""
    stem, number = re.sub(r"-[0-9]+$", "", directory.name)[:60], 2
    while True:
        candidate = directory.with_name(check_name(f"{stem}-{number}"))
        if not (candidate / MANIFEST).exists() and not orphaned_logs(candidate):
            return candidate
        number += 1
