"""Splits a source into shards by record count; a shard's name is the digest of its documents and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from embedserve.data.records import BadRecord
from embedserve.errors import InputError
from indexing.segments.metadata_json import metadata_problem
from indexing.sources.corpus import Document
from indexing.sources.passages import PassageSize

FORMAT = 1
SHARD_BYTES = 16 * 2**20  # of text; long documents close a shard before it has all its records
LINE_BYTES = 64  # Python's overhead per line


@dataclass(frozen=True)
class ShardSettings:
    """Everything that determines the contents of a shard besides its records.

    Attributes:
        fingerprint: Fingerprint of the encoder.
        passages: How documents are split, or None.
    """

    fingerprint: str
    passages: PassageSize | None = None

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        size = self.passages and {"tokens": self.passages.tokens, "overlap": self.passages.overlap}
        return {"format": FORMAT, "fingerprint": self.fingerprint, "passages": size}


@dataclass(frozen=True)
class ShardInput:
    """The records of one shard.

    Attributes:
        name: BLAKE2b digest of the settings and the documents, 32 hex digits.
        lines: The documents, each as a line of canonical JSON.
        where: Source and line of each document.
        ids: Id of each document.
        bad: The invalid records among them.
    """

    name: str
    lines: list[bytes]
    where: list[str]
    ids: list[str]
    bad: list[BadRecord] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Memory of the lines."""
        return sum(map(len, self.lines)) + LINE_BYTES * len(self.lines)


def split_shards(records: Iterable[Document | BadRecord], settings: ShardSettings, size: int) -> Iterator[ShardInput]:
    """Yield the records in reading order, ``size`` per shard.

    Invalid records are counted, so that repairing one does not move the others. A shard is closed earlier once it has
    16 MiB of text.
    """
    documents: list[Document] = []
    lines: list[bytes] = []
    bad: list[BadRecord] = []
    text_bytes = 0

    def close() -> ShardInput:
        name = shard_name(lines, settings)
        return ShardInput(name, lines, [each.where for each in documents], [each.id for each in documents], bad)

    for record in records:
        if isinstance(record, BadRecord):
            bad.append(record)
        else:
            try:
                lines.append(canonical_line(record))
            except InputError as error:
                values = {
                    "id": record.id, "title": record.title, "text": record.text, "metadata": repr(record.metadata)
                }  # fmt: skip
                bad.append(BadRecord(record.where, error, values))
            else:
                documents.append(record)
                text_bytes += len(lines[-1])
        if len(documents) + len(bad) == size or text_bytes >= SHARD_BYTES:
            yield close()
            documents, lines, bad, text_bytes = [], [], [], 0
    if documents or bad:
        yield close()


def shard_name(lines: Iterable[bytes], settings: ShardSettings) -> str:
    """Return the name of the shard of these documents."""
    digest = hashlib.blake2b(orjson.dumps(settings.plain(), option=orjson.OPT_SORT_KEYS) + b"\n", digest_size=16)
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def canonical_line(document: Document) -> bytes:
    """Return a document as one line of JSON; equal documents give equal lines.

    Raises:
        InputError: The metadata is not JSON.
    """
    values = {"id": document.id, "metadata": document.metadata, "text": document.text, "title": document.title}
    problem = ""
    try:
        line = orjson.dumps(values, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    except (TypeError, ValueError) as error:
        problem = str(error)
    else:
        if document.metadata and b"null" in line:  # orjson writes NaN as null
            problem = metadata_problem(document.metadata)
    if problem:
        message = f"{document.prefix}metadata of document {document.id!r} is not JSON: {problem}"
        raise InputError(message, field="metadata")
    return line


def document_of(line: bytes) -> Document:
    """Return the document of a line that `canonical_line` wrote."""
    return Document(**orjson.loads(line))
