"""Documents from a request into a collection: read, embedded batch by batch, written and synced."""

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

BATCH = 256  # documents that are embedded and written together
SHOWN = 100  # records left out that an answer names


@dataclass
class Written:
    """What came of documents.

    Attributes:
        upserted: Written and synced.
        truncated: Of them, cut to what an encoder reads.
        tokens: Read for them.
        failed: Records left out: where, line and reason.
    """

    upserted: int = 0
    truncated: int = 0
    tokens: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        counts = {"upserted": self.upserted, "truncated": self.truncated, "tokens": self.tokens}
        return {**counts, "failed": self.failed[:SHOWN]}


Given = tuple[Document, Mapping[str, Any]]


def as_document(sent: DocumentRequest, place: str, limits: Limits) -> Given:
    """Return a document and the vectors that it brings; an error names what is wrong behind ``place``."""
    if len(sent.text) > limits.max_text_chars:
        message = f"{place}text has {len(sent.text):,} characters, the limit is {limits.max_text_chars:,}; cut it"
        raise ApiError(422, "text_too_long", message, param=f"{place}text")
    try:
        document = Document(sent.id, sent.text, sent.title, sent.metadata)
    except InputError as error:
        raise InputError(f"{place}{error.message}", field=f"{place}{error.field}") from None
    return document, sent.vectors or {}


def checked(given: Given) -> Given:
    """Return a document whose metadata can be part of an answer; refuse another before anything is written."""
    from indexing.segments.document_table import metadata_problem

    if problem := metadata_problem(given[0].metadata):
        raise InputError(f"metadata is not JSON: {problem}", field="metadata")
    return given


def from_json(body: WriteRequest, limits: Limits) -> list[Given]:
    """Return the documents of a request."""
    return [as_document(sent, f"documents[{n}].", limits) for n, sent in enumerate(body.documents)]


def from_lines(body: bytes, limits: Limits, *, skip: bool, written: Written) -> list[Given]:
    """Return the documents of NDJSON, one on each line; what is wrong is an error, or left out."""
    found = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(checked(as_document(parse(line, DocumentRequest), "", limits)))
        except EmbedserveError as error:
            if not skip:
                message = f"line {number}: {error.message}; nothing was written"
                raise ApiError(422, "invalid_document", message, param=error.field) from None
            written.failed.append({"source": "body", "line": number, "reason": error.message})
    if not found and not written.failed:
        raise ApiError(400, "empty_body", "the body has no lines; send one JSON object on each")
    return found


def from_file(content: bytes, name: str, options: Mapping[str, Any], *, skip: bool, written: Written) -> list[Given]:
    """Return the documents of an uploaded file in any format that ``embedserve index build`` reads."""
    from embedserve.data.records import BadRecord
    from embedserve.data.text_files import COMPRESSED
    from indexing.jobs.dead_letters import split_where
    from indexing.sources.corpus import SUFFIXES, read_all

    known = [part.lower() for part in Path(name).suffixes if part.lower() in (*SUFFIXES, *COMPRESSED)]
    found: list[Given] = []
    with tempfile.TemporaryDirectory(prefix="embedserve-") as folder:
        path = Path(folder) / f"upload{''.join(known[-2:])}"
        path.write_bytes(content)
        try:
            for record in read_all(str(path), **options):
                _, line = split_where(record.where)
                try:
                    if isinstance(record, BadRecord):
                        raise InputError(record.reason)
                    found.append(checked((replace(record, where=record.where.replace(str(path), name)), {})))
                except InputError as error:
                    if not skip:
                        message = f"{name}, line {line}: {error.message}; nothing was written"
                        raise ApiError(422, "invalid_document", message, param="file") from None
                    written.failed.append({"source": name, "line": line, "reason": error.message})
        except InputError as error:
            raise InputError(error.message.replace(str(path), name), field=error.field or "file") from None
    return found


async def write(
    service: Service, name: str, given: Sequence[Given], written: Written, *, priority: str, at_once: bool
) -> Written:
    """Embed and write documents.

    Args:
        service: The service.
        name: Of the collection, or an alias.
        given: Documents, and the vectors they bring.
        written: What is added to.
        priority: In the queue.
        at_once: All together or, with an error, none; else batch by batch, of which each is on the disk and found by
            searches before the next begins, and the last document with an id stays.
    """
    await service.open(name)
    manifest = await asyncio.to_thread(manifest_of, service, name)
    step = len(given) if at_once else BATCH
    for start in range(0, len(given), max(step, 1)):
        part = list(given[start : start + step])
        if not at_once:
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
    service: Service, name: str, manifest: Manifest, part: Sequence[Given], written: Written, priority: str
) -> None:
    documents = [document for document, _ in part]
    vectors = await asyncio.to_thread(
        parse_vectors, manifest.fields, [given for _, given in part], "documents[{}].vectors"
    )
    names = [key for key, kept in manifest.fields.items() if kept.output != "words" and key not in vectors]
    truncated = 0
    if names:
        texts = [document.content for document in documents]
        made = await embed_fields(service, manifest, names, texts, "document", field="documents", priority=priority)
        vectors |= made.vectors
        written.tokens += made.tokens
        truncated = made.truncated
    written.upserted += await service.write(name, lambda collection: collection.upsert(documents, vectors))
    written.truncated += truncated


def manifest_of(service: Service, name: str) -> Manifest:
    """Return the manifest of a collection; may wait for its files to be read."""
    with service.collections.use(name) as collection:
        return collection.manifest
