"""Another encoder for a collection: a new version is built beside the old one from its own documents."""

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
    """Build a collection's documents with another encoder as a new collection, then let the alias ``name`` mean it.

    Until the last step, and after a crash before it, ``name`` is the old collection. Nobody can write to that
    meanwhile; it stays beside the new one, under its own name. Where ``name`` is the name of the collection itself, an
    alias of this name hides it from then on.

    Args:
        data_dir: Where the collections are.
        name: A collection or an alias.
        encoder: Makes every field of vectors anew.
        to: The name of the new collection, which must be free; ``name-2``, ``name-3``, … unless given.
        progress: Called after every batch.

    Raises:
        NotFoundError: There is no such collection.
        InputError: There is a collection ``to`` already, or the encoder refuses a text.
        SpecError: The encoder makes no vectors of a kind that a field holds.
        CorruptFileError: A file is damaged, or the documents changed on the disk while they were read; there is no
            new collection then.
        EmbedserveError: Another program writes to the collection, or the disk is full.
    """
    source = resolve(data_dir, name)
    target = collection_path(data_dir, to) if to is not None else free_name(source)
    if (target / MANIFEST).exists():
        raise InputError(f"there is a collection {target.name!r} already; choose another name", field="to")
    with Collection.open(source, writable=True) as old:
        fields = {key: made_anew(field, encoder) for key, field in old.fields.items()}
        documents = unchanged_documents(old)
        manifest = build_collection(documents, encoder, target, fields=fields, total=len(old), progress=progress)
        set_alias(data_dir, name, target.name)
    return manifest


def unchanged_documents(collection: Collection) -> Iterator[Document]:
    """Yield all documents; at the end raise `CorruptFileError` where their files changed since they were opened.

    The files of documents are read once more for that; no others are copied.
    """
    sources = sources_of(collection.directory, collection.manifest)
    with unchanged((path, record) for path, record in sources if path.name == DOCUMENTS):
        yield from collection.documents()


def made_anew(field: Field, encoder: TextEncoder) -> Field:
    """Return the same field of another encoder; words need none."""
    if field.output == "words":
        return field
    width = field.dim if field.output == "sparse" else 0
    return field_of(encoder, field.output, index=field.index, metric=field.metric, dim=width)


def free_name(directory: Path) -> Path:
    """Return the first of ``name-2``, ``name-3``, … that is no collection; what a killed build left there is none."""
    stem, number = re.sub(r"-[0-9]+$", "", directory.name)[:60], 2
    while True:
        candidate = directory.with_name(check_name(f"{stem}-{number}"))
        if not (candidate / MANIFEST).exists() and not orphaned_logs(candidate):
            return candidate
        number += 1
