"""Encodes one shard: split, encode, write. Identical in every engine, so that the bytes are identical too."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from embedserve.errors import EmbedserveError, IndexMismatchError, InputError
from embedserve.types import Encoded
from indexing.base import TextEncoder, TokenEncoder
from indexing.jobs.shard_files import ShardRecord, ShardWriter
from indexing.jobs.shard_split import ShardSettings, canonical_line, document_of
from indexing.sources.corpus import Document
from indexing.sources.passages import split_documents
from indexing.storage.files import writing

BLOCK_ROWS = 1024  # maximum rows per call of the encoder; fewer if their vectors would exceed the memory limit
SPLIT = 256  # documents split per call
TEXT_AT = re.compile(r"texts\[(\d+)\]")

Row = tuple[int, Document]  # position in the shard's input, document or passage
R = TypeVar("R")


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to encode a shard.

    Attributes:
        folder: Folder of the shard.
        lines: Its documents, as `indexing.jobs.shard_split.canonical_line` writes them.
        settings: Determine the contents of the shard.
        block_bytes: Memory limit of the vectors of one block.
    """

    folder: Path
    lines: list[bytes]
    settings: ShardSettings
    block_bytes: int


@dataclass
class ShardResult:
    """The record of a shard, and the seconds of each step that encoded it."""

    record: ShardRecord
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("split", "encode", "write"), 0.0))


class StoppedError(Exception):
    """The job was stopped while a shard was being encoded."""


def make_shard(encoder: TextEncoder, task: ShardTask, stopped: Callable[[], bool] = lambda: False) -> ShardResult:
    """Encode a shard and move it to its folder.

    Documents that the encoder refuses are skipped and listed in the shard's record.

    Raises:
        IndexMismatchError: The encoder is not the one of the job.
        EmbedserveError: The disk cannot be written, or the encoder returned a wrong number of vectors.
        StoppedError: ``stopped`` returned True.
    """
    if encoder.fingerprint != task.settings.fingerprint:
        message = f"a worker's encoder differs from the job's: {encoder.fingerprint}, not {task.settings.fingerprint}"
        raise IndexMismatchError(f"{message}; install the same versions and weights everywhere", field="model")
    with writing(task.folder.parent):
        writer = ShardWriter(task.folder)
    try:
        return ShardEncoding(encoder, task, writer).run(stopped)
    finally:
        writer.abort()


class ShardEncoding:
    """The steps of encoding one shard, with the time of each and the refused documents."""

    def __init__(self, encoder: TextEncoder, task: ShardTask, writer: ShardWriter) -> None:
        self.encoder, self.task, self.writer = encoder, task, writer
        self.seconds = dict.fromkeys(("split", "encode", "write"), 0.0)
        self.refused: list[dict[str, Any]] = []

    def run(self, stopped: Callable[[], bool]) -> ShardResult:
        """Split, encode and write all documents of the shard."""
        block_rows = rows_of_block(self.encoder, self.task.block_bytes)
        rows: list[Row] = []
        for part in self._split():
            rows += part
            while len(rows) >= block_rows:
                self._encode_block(rows[:block_rows], stopped)
                del rows[:block_rows]
        for start in range(0, len(rows), block_rows):
            self._encode_block(rows[start : start + block_rows], stopped)
        self.refused.sort(key=lambda entry: entry["place"])
        with writing(self.task.folder.parent), self._timed("write"):
            record = self.writer.finish(self.task.settings, len(self.task.lines), self.refused)
        return ShardResult(record, self.seconds)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - start

    def _split(self) -> Iterator[list[Row]]:
        """Yield the rows of the shard, those of ``SPLIT`` documents at a time."""
        size = self.task.settings.passages
        for start in range(0, len(self.task.lines), SPLIT):
            lines = self.task.lines[start : start + SPLIT]
            rows = [(start + position, document_of(line)) for position, line in enumerate(lines)]
            if size is None:
                yield rows
                continue
            assert isinstance(self.encoder, TokenEncoder)  # checked when the job starts
            split = partial(split_documents, size=size, token_spans=self.encoder.token_spans)
            with self._timed("split"):
                kept, passages = self._accepted(rows, split)
            yield [
                (position, passage)
                for (position, _), parts in zip(kept, passages or [], strict=True)
                for passage in parts
            ]

    def _encode_block(self, rows: list[Row], stopped: Callable[[], bool]) -> None:
        if stopped():
            raise StoppedError
        with self._timed("encode"):
            kept, encoded = self._accepted(rows, lambda part: encode(self.encoder, part))
        if encoded is None:
            return
        with self._timed("write"), writing(self.task.folder.parent):
            lines = [canonical_line(document) for _, document in kept]
            self.writer.add(lines, [position for position, _ in kept], encoded)

    def _accepted(self, rows: list[Row], call: Callable[[list[Document]], R]) -> tuple[list[Row], R | None]:
        """Call with the documents of ``rows``, again without each one that is refused.

        Returns:
            The accepted rows and the result for them; None if all were refused.

        Raises:
            InputError: The error does not name a single document.
        """
        rows = list(rows)
        while rows:
            try:
                return rows, call([document for _, document in rows])
            except InputError as error:
                match = TEXT_AT.match(error.field or "")
                if match is None:
                    raise
                position, document = rows.pop(int(match[1]))
                reason = error.message.replace(match[0], "the text", 1)
                self.refused.append({"place": position, "id": document.id, "reason": reason})
        return [], None


def encode(encoder: TextEncoder, documents: Sequence[Document]) -> Encoded:
    """Return all outputs of the encoder for documents."""
    texts = [document.content for document in documents]
    dense_only = tuple(encoder.outputs) == ("dense",)
    encoded = Encoded(dense=encoder.embed(texts, "document")) if dense_only else encoder.encode(texts, "document")
    if len(encoded) != len(documents):
        raise EmbedserveError(
            f"encoder {encoder.name!r} returned {len(encoded)} vectors for {len(documents)} documents"
        )
    return encoded


def rows_of_block(encoder: TextEncoder, block_bytes: int) -> int:
    """Return how many rows to encode per call, so that vectors of the longest rows fit in ``block_bytes``."""
    outputs, max_tokens = encoder.outputs, encoder.max_tokens
    row_bytes = 4 * encoder.dim * ("dense" in outputs)
    row_bytes += max_tokens * (4 * encoder.dim + 8) * ("multi" in outputs) + max_tokens * 16 * ("sparse" in outputs)
    return min(BLOCK_ROWS, max(1, block_bytes // row_bytes))
