"""The work on one shard: split, encode, write. The same wherever it runs, so that the bytes are the same."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from embedserve.errors import EmbedserveError, IndexMismatchError, InputError, SpecError
from embedserve.types import Encoded
from indexing.base import TextEncoder
from indexing.jobs.shard_files import ShardRecord, ShardWriter
from indexing.jobs.shard_split import ShardSettings, canonical_line, document_of
from indexing.sources.corpus import Document
from indexing.sources.passages import split_documents
from indexing.storage.files import writing

BLOCK_ROWS = 1024  # rows given to the encoder at once, unless their vectors would take more than the memory allowed
SPLIT = 256  # documents split at once
TEXT_AT = re.compile(r"texts\[(\d+)\]")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class ShardTask:
    """What a worker is told of a shard.

    Attributes:
        folder: Where the shard is to stand.
        lines: Its documents, as `indexing.jobs.shard_split.canonical_line` writes them.
        settings: What shapes it.
        block_bytes: What the vectors of one block may take in memory.
    """

    folder: Path
    lines: list[bytes]
    settings: ShardSettings
    block_bytes: int


@dataclass
class Made:
    """A shard that was made, and the seconds that each step took."""

    record: ShardRecord
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("split", "encode", "write"), 0.0))


class StoppedError(Exception):
    """The job was told to stop while a shard was being made."""


def make_shard(encoder: TextEncoder, task: ShardTask, stopped: Callable[[], bool] = lambda: False) -> Made:
    """Make a shard and put it in its place.

    What the encoder refuses is left out and written down in the shard's record.

    Raises:
        IndexMismatchError: The encoder is not the one that the job was begun with.
        EmbedserveError: The disk cannot be written, or the encoder returned another number of vectors.
        StoppedError: ``stopped`` said so.
    """
    if encoder.fingerprint != task.settings.fingerprint:
        message = f"a worker has another encoder than the job: {encoder.fingerprint}, not {task.settings.fingerprint}"
        raise IndexMismatchError(f"{message}; install the same versions and weights everywhere", field="model")
    with writing(task.folder.parent):
        writer = ShardWriter(task.folder)
    try:
        return fill(writer, encoder, task, stopped)
    finally:
        writer.abort()


def fill(writer: ShardWriter, encoder: TextEncoder, task: ShardTask, stopped: Callable[[], bool]) -> Made:
    """Write all rows of a shard and finish it."""
    seconds = dict.fromkeys(("split", "encode", "write"), 0.0)
    refused: list[dict[str, Any]] = []
    rows: list[tuple[int, Document]] = []
    most = rows_of_block(encoder, task.block_bytes)

    def timed(step: str, call: Callable[[], R]) -> R:
        began = time.perf_counter()
        try:
            return call()
        finally:
            seconds[step] += time.perf_counter() - began

    def flush(count: int) -> None:
        if stopped():
            raise StoppedError
        block = rows[:count]
        del rows[:count]
        kept, found = timed("encode", lambda: allowed(block, lambda part: encode(encoder, part), refused))
        if found is not None:
            timed("write", lambda: write_block(writer, kept, found))

    for part in split_rows(encoder, task, refused, timed):
        rows += part
        while len(rows) >= most:
            flush(most)
    while rows:
        flush(most)
    refused.sort(key=lambda each: each["place"])
    with writing(task.folder.parent):
        record = timed("write", lambda: writer.finish(task.settings, len(task.lines), refused))
    return Made(record, seconds)


def split_rows(
    encoder: TextEncoder, task: ShardTask, refused: list[dict[str, Any]], timed: Callable[..., Any]
) -> Iterator[list[tuple[int, Document]]]:
    """Yield the rows of a shard with their places in it, a few documents' at a time."""
    size = task.settings.passages
    for start in range(0, len(task.lines), SPLIT):
        lines = task.lines[start : start + SPLIT]
        documents = [(start + place, document_of(line)) for place, line in enumerate(lines)]
        if size is None:
            yield documents
            continue
        token_spans = getattr(encoder, "token_spans", None)
        if token_spans is None:
            message = f"encoder {encoder.name!r} cannot say where its tokens stand; leave out passage_tokens"
            raise SpecError(message, field="passage_tokens")

        def split(part: Sequence[Document], spans: Any = token_spans, size: Any = size) -> list[list[Document]]:
            return split_documents(part, size, spans)

        kept, found = timed("split", lambda documents=documents, split=split: allowed(documents, split, refused))
        pairs = zip(kept, found or [], strict=True)
        yield [(place, passage) for (place, _), passages in pairs for passage in passages]


def allowed(
    rows: list[tuple[int, Document]], call: Callable[[list[Document]], R], refused: list[dict[str, Any]]
) -> tuple[list[tuple[int, Document]], R | None]:
    """Call with the documents of ``rows``, leaving out those that it refuses; return those left and what was returned.

    Raises:
        InputError: What is refused is no single document.
    """
    rows = list(rows)
    while rows:
        try:
            return rows, call([document for _, document in rows])
        except InputError as error:
            at = TEXT_AT.match(error.field or "")
            if at is None:
                raise
            place, document = rows.pop(int(at[1]))
            reason = error.message.replace(at[0], "the text", 1)
            refused.append({"place": place, "id": document.id, "reason": reason})
    return [], None


def encode(encoder: TextEncoder, documents: Sequence[Document]) -> Encoded:
    """Return everything that the encoder makes of documents."""
    texts = [document.content for document in documents]
    whole = getattr(encoder, "encode", None) if hasattr(encoder, "outputs") else None
    found: Encoded = whole(texts, task="document") if whole else Encoded(dense=encoder.embed(texts, task="document"))
    if len(found) != len(documents):
        raise EmbedserveError(f"encoder {encoder.name!r} returned {len(found)} vectors for {len(documents)} documents")
    return found


def write_block(writer: ShardWriter, rows: Sequence[tuple[int, Document]], found: Encoded) -> None:
    """Append a block to the shard."""
    with writing(writer.folder.parent):
        lines = [canonical_line(document) for _, document in rows]
        writer.add(lines, [place for place, _ in rows], found)


def rows_of_block(encoder: TextEncoder, block_bytes: int) -> int:
    """Return how many rows are encoded at once such that their vectors fit ``block_bytes``, at the longest."""
    outputs = getattr(encoder, "outputs", ("dense",))
    longest = int(getattr(encoder, "max_tokens", 512))
    row = 4 * encoder.dim * ("dense" in outputs)
    row += longest * (4 * encoder.dim + 8) * ("multi" in outputs) + longest * 16 * ("sparse" in outputs)
    return min(BLOCK_ROWS, max(1, block_bytes // row))
