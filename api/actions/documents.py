"""Write the documents of a request to a collection: parse, embed in batches, write."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from api.actions.vectors import embed_fields, parse_vectors
from api.http.body import parse
from api.http.error_responses import ApiError
from api.schemas.common import Limits
from api.schemas.documents import DocumentRequest, WriteRequest
from api.service import Service
from embedserve.errors import EmbedserveError, InputError
from indexing import Document

if TYPE_CHECKING:
    from indexing.collections.manifest import Manifest

BATCH = 256  # documents embedded and written together
MAX_FAILED = 100  # skipped records listed in a response


@dataclass
class Written:
    """The result of a write request.

    Attributes:
        upserted: Number of durable documents.
        truncated: Number of them that an encoder truncated.
        tokens: Total number of tokens.
        failed: Skipped records: source, line and reason.
    """

    upserted: int = 0
    truncated: int = 0
    tokens: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the JSON values of the response."""
        counts = {"upserted": self.upserted, "truncated": self.truncated, "tokens": self.tokens}
        return {**counts, "failed": self.failed[:MAX_FAILED]}


DocumentItem = tuple[Document, Mapping[str, Any]]


def as_document(sent: DocumentRequest, path: str, limits: Limits) -> DocumentItem:
    """Return a document and its vectors; ``path`` is the prefix of fields in errors."""
    if len(sent.text) > limits.max_text_chars:
        message = f"{path}text has {len(sent.text):,} characters, the limit is {limits.max_text_chars:,}; shorten it"
        raise ApiError(422, "text_too_long", message, param=f"{path}text")
    try:
        document = Document(sent.id, sent.text, sent.title, sent.metadata)
    except InputError as error:
        raise InputError(f"{path}{error.message}", field=f"{path}{error.field}") from None
    return document, sent.vectors or {}


def checked(item: DocumentItem) -> DocumentItem:
    """Return the document if its metadata can be part of a response, else raise `InputError`."""
    from indexing.segments.metadata_json import metadata_problem

    if problem := metadata_problem(item[0].metadata):
        raise InputError(f"metadata is not JSON: {problem}", field="metadata")
    return item


def from_json(body: WriteRequest, limits: Limits) -> list[DocumentItem]:
    """Return the documents of a request."""
    return [as_document(sent, f"documents[{n}].", limits) for n, sent in enumerate(body.documents)]


def from_lines(body: bytes, limits: Limits, *, skip: bool, written: Written) -> list[DocumentItem]:
    """Return the documents of NDJSON lines; invalid lines raise an error, or are skipped."""
    items = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(checked(as_document(parse(line, DocumentRequest), "", limits)))
        except EmbedserveError as error:
            if not skip:
                message = f"line {number}: {error.message}; nothing was written"
                raise ApiError(422, "invalid_document", message, param=error.field) from None
            written.failed.append({"source": "body", "line": number, "reason": error.message})
    if not items and not written.failed:
        raise ApiError(400, "empty_body", "the body has no lines; send one JSON object per line")
    return items


def from_file(
    content: bytes, name: str, options: Mapping[str, Any], *, skip: bool, written: Written
) -> list[DocumentItem]:
    """Return the documents of an uploaded file in any format that ``embedserve index build`` reads."""
    from embedserve.data.records import BadRecord
    from embedserve.data.text_files import COMPRESSED
    from indexing.jobs.dead_letters import split_where
    from indexing.sources.corpus import SUFFIXES, read_all

    known = [part.lower() for part in Path(name).suffixes if part.lower() in (*SUFFIXES, *COMPRESSED)]
    items: list[DocumentItem] = []
    with tempfile.TemporaryDirectory(prefix="embedserve-") as folder:
        path = Path(folder) / f"upload{''.join(known[-2:])}"
        path.write_bytes(content)
        try:
            for record in read_all(str(path), **options):
                _, line = split_where(record.where)
                try:
                    if isinstance(record, BadRecord):
                        raise InputError(record.reason)
                    items.append(checked((replace(record, where=record.where.replace(str(path), name)), {})))
                except InputError as error:
                    if not skip:
                        message = f"{name}, line {line}: {error.message}; nothing was written"
                        raise ApiError(422, "invalid_document", message, param="file") from None
                    written.failed.append({"source": name, "line": line, "reason": error.message})
        except InputError as error:
            raise InputError(error.message.replace(str(path), name), field=error.field or "file") from None
    return items


async def write(
    service: Service, name: str, items: Sequence[DocumentItem], written: Written, *, priority: str, atomic: bool
) -> Written:
    """Embed and write documents.

    Args:
        service: The service.
        name: Name or alias of the collection.
        items: Documents and their vectors.
        written: The result to update.
        priority: In the queue.
        atomic: Write all documents or none. Otherwise each batch is durable and searchable before the next one starts,
            and the last document with an id wins.
    """
    await service.open(name)
    manifest = await asyncio.to_thread(manifest_of, service, name)
    step = len(items) if atomic else BATCH
    for start in range(0, len(items), max(step, 1)):
        part = list(items[start : start + step])
        if not atomic:
            last = {document.id: number for number, (document, _) in enumerate(part)}
            part = [part[number] for number in sorted(last.values())]
        try:
            await _write_part(service, name, manifest, part, written, priority)
        except EmbedserveError as error:
            if written.upserted:
                error.message += f" (the {written.upserted:,} documents before are written)"
            raise
    return written


async def _write_part(
    service: Service,
    name: str,
    manifest: Manifest,
    part: Sequence[DocumentItem],
    written: Written,
    priority: str,
) -> None:
    documents = [document for document, _ in part]
    vectors = await asyncio.to_thread(
        parse_vectors, manifest.fields, [sent for _, sent in part], "documents[{}].vectors"
    )
    names = [key for key, spec in manifest.fields.items() if spec.output != "words" and key not in vectors]
    truncated = 0
    if names:
        texts = [document.content for document in documents]
        encoded = await embed_fields(service, manifest, names, texts, "document", field="documents", priority=priority)
        vectors |= encoded.vectors
        written.tokens += encoded.tokens
        truncated = encoded.truncated
    written.upserted += await service.write(name, lambda collection: collection.upsert(documents, vectors))
    written.truncated += truncated


def manifest_of(service: Service, name: str) -> Manifest:
    """Return the manifest of a collection; blocks while the collection is opened."""
    with service.collections.use(name) as collection:
        return collection.manifest
