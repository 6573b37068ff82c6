"""Encodes or reuses the shards of a source and records them in reading order."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from embedserve.errors import InputError
from indexing.jobs.dead_letters import DeadLetters, split_where
from indexing.jobs.duplicate_ids import DuplicateIds, ReadPosition, excluded_duplicates
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.jobs.shard_engine import ShardEngine
from indexing.jobs.shard_files import ShardRecord, State, check_shard, shard_folder
from indexing.jobs.shard_rows import read_rows
from indexing.jobs.shard_split import ShardInput, ShardSettings, document_of
from indexing.jobs.shard_work import ShardResult, ShardTask
from indexing.sources.corpus import Document
from indexing.sources.passages import PARENT
from indexing.storage.files import writing


@dataclass(frozen=True)
class MemoryLimits:
    """Memory of a job: half of ``bytes`` for texts in flight, a quarter for the vectors of ``slots`` workers."""

    bytes: int
    slots: int

    @property
    def text_bytes(self) -> int:
        """Limit of the texts in flight."""
        return self.bytes // 2

    @property
    def block_bytes(self) -> int:
        """Limit of the vectors that one worker holds at a time."""
        return self.bytes // 4 // self.slots


@dataclass
class PendingShard:
    """A shard in flight."""

    folder: Path
    input: ShardInput
    result: Future[ShardResult]


class ShardRun:
    """Records shards in reading order, whatever the order in which workers finish them.

    Args:
        folder: Folder of all shards.
        settings: Determine the contents of a shard.
        engine: Encodes missing shards.
        limits: Memory limits.
        letters: Receives the skipped records.
        report: Updated as shards are recorded.
        strict: Raise an error instead of skipping a document.
        total: Number of records, for ``progress``.
        progress: Called after each shard.
    """

    def __init__(
        self,
        folder: Path,
        settings: ShardSettings,
        engine: ShardEngine,
        limits: MemoryLimits,
        letters: DeadLetters,
        report: JobReport,
        *,
        strict: bool,
        total: int | None,
        progress: Callable[[JobProgress], None],
    ) -> None:
        self.folder, self.settings, self.engine, self.limits = folder, settings, engine, limits
        self.letters, self.report, self.strict, self.total, self.progress = letters, report, strict, total, progress
        self._pending: deque[PendingShard] = deque()
        self._events: SimpleQueue[bool] = SimpleQueue()  # True: a worker finished a shard; False: Ctrl-C
        self._ids = DuplicateIds(folder.parent)
        self._folders: list[Path] = []
        self._starts: list[int] = []  # number of the first document of each shard
        self._excluded: dict[int, frozenset[int]] = {}
        self._refused: set[int] = set()  # numbers of the documents that the encoder refused
        self._documents = self._records = self._resumed = 0
        self._where = ""  # position of some document; positions differ in the line only

    @property
    def shards(self) -> list[tuple[Path, frozenset[int]]]:
        """The recorded shards in order, each with the input positions to exclude."""
        return [(folder, self._excluded.get(number, frozenset())) for number, folder in enumerate(self._folders)]

    def timed_reading(self, inputs: Iterator[ShardInput]) -> Iterator[ShardInput]:
        """Yield ``inputs`` and add the time of reading them to the report."""
        while True:
            with self.report.timed("read"):
                shard = next(inputs, None)
            if shard is None:
                return
            yield shard

    def submit(self, shard: ShardInput) -> None:
        """Reuse the shard if it exists, else queue it for encoding once memory allows.

        Raises:
            InputError: With ``strict``, a document cannot be indexed.
        """
        if self.strict and shard.bad:
            raise shard.bad[0].error
        folder = shard_folder(self.folder, shard.name)
        with self.report.timed("check"):
            while any(pending.folder == folder for pending in self._pending):  # the same documents again
                self._record_next()
            state, record, problem = check_shard(folder, self.settings) if shard.lines else self._empty(shard)
            with writing(self.folder.parent):
                for identifier, where in zip(shard.ids, shard.where, strict=True):
                    self._ids.add(identifier, split_where(where)[1] or -1)
        self._where = shard.where[0] if shard.where else self._where
        self._wait_for_memory(shard.bytes)
        result: Future[ShardResult]
        if record is not None:
            self.report.resumed += bool(shard.lines)
            self._resumed += len(shard.where) + len(shard.bad)
            result = Future()
            result.set_result(ShardResult(record))
        else:
            if state == "damaged":
                self.report.damaged += 1
                self.report.problems.append(problem)
            result = self.engine.submit(ShardTask(folder, shard.lines, self.settings, self.limits.block_bytes))
            result.add_done_callback(lambda _: self._events.put(True))
            self.report.made_documents += len(shard.lines)
        self._pending.append(PendingShard(folder, shard, result))
        while self._pending and self._pending[0].result.done():
            self._record_next()

    def _empty(self, shard: ShardInput) -> tuple[State, ShardRecord, str]:
        """Return the record of a shard without valid documents, which needs no files."""
        return "done", ShardRecord(shard.name, self.settings.plain(), 0, 0, 0, 0, [], {}), ""

    def _wait_for_memory(self, text_bytes: int) -> None:
        """Record shards until few are in flight and ``text_bytes`` more bytes of text fit; reused ones count too."""
        while self._pending and (
            sum(not pending.result.done() for pending in self._pending) > 2 * self.engine.slots
            or text_bytes + sum(pending.input.bytes for pending in self._pending) > self.limits.text_bytes
        ):
            self._record_next()

    def _record_next(self) -> None:
        """Wait for the first shard in flight and record its result."""
        with self.report.timed("wait"):
            while not self._pending[0].result.done():
                if not self._events.get():
                    raise KeyboardInterrupt
            result = self._pending[0].result.result()
        shard, report, record = self._pending.popleft(), self.report, result.record
        for stage, seconds in result.seconds.items():
            report.seconds[stage] += seconds
        self._write_letters(shard.input, record)
        if shard.input.lines:
            self._folders.append(shard.folder)
            self._starts.append(self._documents)
            report.shards += 1
        refused = {entry["place"] for entry in record.refused}
        self._refused.update(self._documents + position for position in refused)
        self._documents += record.documents
        self._records += record.documents + len(shard.input.bad)
        report.documents += record.documents - len(refused)
        report.rows += record.rows
        report.tokens += record.tokens
        report.truncated += record.truncated
        self.progress(JobProgress("encode", self._records, self.total, self._resumed))

    def _write_letters(self, shard: ShardInput, record: ShardRecord) -> None:
        if record.refused and self.strict:
            first = record.refused[0]
            where = shard.where[first["place"]]
            message = f"{f'{where}: ' if where else ''}document {first['id']!r}: {first['reason']}"
            raise InputError(message, field="source")
        for bad in shard.bad:
            self.letters.write(bad.where, bad.reason, bad.raw)
        for refused in record.refused:
            document = document_of(shard.lines[refused["place"]])
            self.letters.write(shard.where[refused["place"]], refused["reason"], values_of(document))
        self.letters.flush()

    def interrupt(self) -> None:
        """Wake a wait for a shard, which raises `KeyboardInterrupt`; safe to call from a signal handler."""
        self._events.put(False)

    def finish_pending(self) -> None:
        """Wait for the shards in flight and record them."""
        while self._pending:
            self._record_next()

    def exclude_duplicates(self) -> None:
        """Exclude every document with the id of an earlier one.

        Raises:
            InputError: With ``strict``, there is a duplicate.
        """
        with writing(self.folder.parent):
            duplicates = excluded_duplicates(sorted(self._ids.duplicates()), self._refused)
        for shard, group in groupby(duplicates, lambda pair: bisect_right(self._starts, pair[0][0]) - 1):
            pairs = {pair[0][0] - self._starts[shard]: pair for pair in group}
            excluded = set()
            for rows in read_rows(self._folders[shard]):
                for position, document in zip(rows.positions.tolist(), rows.documents, strict=True):
                    self.report.rows -= position in pairs
                    if position in pairs and position not in excluded:
                        excluded.add(position)
                        self._write_duplicate(document, *pairs[position])
            self._excluded[shard] = frozenset(excluded)
            self.report.documents -= len(excluded)

    def _write_duplicate(self, document: Document, duplicate: ReadPosition, first: ReadPosition) -> None:
        """Write a document, or the document of a passage, with a duplicate id to the dead letters."""
        parent = document.metadata.get(PARENT)
        if self.strict:
            raise InputError(
                f"{self._position(*first)} and {self._position(*duplicate)} have the same id "
                f"{(document.id if parent is None else parent)!r}; "
                "make ids unique, or take them from another field with --id-field NAME",
                field="id",
            )
        values = values_of(document) if parent is None else {"id": parent, "title": document.title}
        self.letters.write(self._position(*duplicate), f"{self._position(*first)} has the same id", values)

    def _position(self, number: int, line: int) -> str:
        """Return where a document was read, for messages."""
        if line < 0:
            return f"document {number + 1}"
        return self._where[: self._where.rindex(" ") + 1] + str(line)

    def close(self) -> None:
        """Delete the temporary files of the ids."""
        self._ids.close()


def values_of(document: Document) -> dict[str, Any]:
    """Return a document as JSON values."""
    return {"id": document.id, "title": document.title, "text": document.text, "metadata": dict(document.metadata)}
