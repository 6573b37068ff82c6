"""Shards cut from the input itself: so many records in reading order, named by what they hold and what shapes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from embedserve.data.records import BadRecord
from embedserve.errors import InputError
from indexing.segments.document_table import metadata_problem
from indexing.sources.corpus import Document
from indexing.sources.passages import PassageSize

FORMAT = 1
SHARD_BYTES = 16 * 2**20  # of text: long documents close a shard before it has all its records
LINE_BYTES = 64  # what Python adds to each line


@dataclass(frozen=True)
class ShardSettings:
    """Everything that shapes a shard besides its records.

    Attributes:
        fingerprint: The encoder's.
        passages: How documents are split, or None where they are not.
    """

    fingerprint: str
    passages: PassageSize | None = None

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        size = self.passages and {"tokens": self.passages.tokens, "overlap": self.passages.overlap}
        return {"format": FORMAT, "fingerprint": self.fingerprint, "passages": size}


@dataclass(frozen=True)
class Cut:
    """The records of one shard.

    Attributes:
        name: BLAKE2b digest of the settings and the documents, 32 hex digits.
        lines: The documents, each as a line of canonical JSON.
        where: Where each of them was read.
        ids: The id of each.
        bad: The records among them that are no documents.
    """

    name: str
    lines: list[bytes]
    where: list[str]
    ids: list[str]
    bad: list[BadRecord] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What the lines take in memory."""
        return sum(map(len, self.lines)) + LINE_BYTES * len(self.lines)


def cut_shards(found: Iterable[Document | BadRecord], settings: ShardSettings, size: int) -> Iterator[Cut]:
    """Yield the records in reading order, ``size`` to a shard, bad ones counted, so that mending one moves no other.

    A shard of more than 16 MiB of text is closed earlier.
    """
    documents: list[Document] = []
    lines: list[bytes] = []
    bad: list[BadRecord] = []
    taken = 0

    def close() -> Cut:
        name = name_of(lines, settings)
        return Cut(name, lines, [each.where for each in documents], [each.id for each in documents], bad)

    for item in found:
        if isinstance(item, BadRecord):
            bad.append(item)
        else:
            try:
                lines.append(canonical_line(item))
            except InputError as error:
                record = {"id": item.id, "title": item.title, "text": item.text, "metadata": repr(item.metadata)}
                bad.append(BadRecord(item.where, error, record))
            else:
                documents.append(item)
                taken += len(lines[-1])
        if len(documents) + len(bad) == size or taken >= SHARD_BYTES:
            yield close()
            documents, lines, bad, taken = [], [], [], 0
    if documents or bad:
        yield close()


def name_of(lines: Iterable[bytes], settings: ShardSettings) -> str:
    """Return the name of the shard that ``lines`` make."""
    digest = hashlib.blake2b(orjson.dumps(settings.plain(), option=orjson.OPT_SORT_KEYS) + b"\n", digest_size=16)
    for line in lines:
        digest.update(line)
    return digest.hexdigest()


def canonical_line(document: Document) -> bytes:
    """Return a document as one line of JSON, the same for equal documents; `InputError` where metadata is not JSON."""
    values = {"id": document.id, "metadata": document.metadata, "text": document.text, "title": document.title}
    problem = ""
    try:
        line = orjson.dumps(values, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)
    except (TypeError, ValueError) as error:
        problem = str(error)
    else:
        if document.metadata and b"null" in line:  # what NaN is written as
            problem = metadata_problem(document.metadata)
    if problem:
        message = f"{document.prefix}metadata of document {document.id!r} is not JSON: {problem}"
        raise InputError(message, field="metadata")
    return line


def document_of(line: bytes) -> Document:
    """Return the document that `canonical_line` wrote."""
    return Document(**orjson.loads(line))
