"""One run over the shards of a source: those that are there are taken, the others made, all settled in order."""

from __future__ import annotations

import time
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
from indexing.jobs.dead_letters import DeadLetters, place_of
from indexing.jobs.duplicate_ids import RepeatedIds, left_out_of
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.jobs.local_engine import Engine
from indexing.jobs.shard_files import ShardRecord, State, check_shard, shard_folder
from indexing.jobs.shard_rows import read_rows
from indexing.jobs.shard_split import Cut, ShardSettings, document_of
from indexing.jobs.shard_work import Made, ShardTask
from indexing.sources.corpus import Document
from indexing.sources.passages import PARENT
from indexing.storage.files import writing


@dataclass(frozen=True)
class Limits:
    """What may be in memory: half of ``bytes`` for texts in flight, a quarter for the vectors of ``slots`` workers."""

    bytes: int
    slots: int

    @property
    def text_bytes(self) -> int:
        """Of texts in flight."""
        return self.bytes // 2

    @property
    def block_bytes(self) -> int:
        """Of the vectors that one worker holds at a time."""
        return self.bytes // 4 // self.slots


@dataclass
class Pending:
    """A shard in flight: what was read for it, and what will become of it."""

    folder: Path
    cut: Cut
    made: Future[Made]


class ShardRun:
    """Settles shards in the order of reading, whatever order they are made in.

    Args:
        folder: Of all shards.
        settings: What shapes them.
        engine: Where they are made.
        limits: What may be in memory.
        letters: Take what is left out.
        report: Is kept up to date.
        strict: Whether a document that has to be left out is an error.
        total: Records to come, for ``tell``.
        tell: Called whenever a shard is settled.
    """

    def __init__(
        self,
        folder: Path,
        settings: ShardSettings,
        engine: Engine,
        limits: Limits,
        letters: DeadLetters,
        report: JobReport,
        *,
        strict: bool,
        total: int | None,
        tell: Callable[[JobProgress], None],
    ) -> None:
        self.folder, self.settings, self.engine, self.limits = folder, settings, engine, limits
        self.letters, self.report, self.strict, self.total, self.tell = letters, report, strict, total, tell
        self._pending: deque[Pending] = deque()
        self._made: SimpleQueue[bool] = SimpleQueue()  # True: a worker is done with a shard; False: Ctrl-C
        self._ids = RepeatedIds(folder.parent)
        self._folders: list[Path] = []
        self._starts: list[int] = []  # of each shard, the number of its first document over all
        self._left_out: dict[int, frozenset[int]] = {}
        self._refused: set[int] = set()  # the numbers of the documents over all that the encoder refused
        self._documents = self._records = self._resumed = 0
        self._where = ""  # of some document: they differ in the line alone

    @property
    def shards(self) -> list[tuple[Path, frozenset[int]]]:
        """The settled shards in order, and the places in each that are left out."""
        return [(folder, self._left_out.get(n, frozenset())) for n, folder in enumerate(self._folders)]

    def timed(self, cuts: Iterator[Cut]) -> Iterator[Cut]:
        """Yield ``cuts``, counting the seconds that reading takes."""
        while True:
            began = time.perf_counter()
            cut = next(cuts, None)
            self.report.seconds["read"] += time.perf_counter() - began
            if cut is None:
                return
            yield cut

    def begin(self, cut: Cut) -> None:
        """Take the shard if it is there, else have it made, once there is room for it.

        Raises:
            InputError: A document has to be left out, and that is an error.
        """
        if self.strict and cut.bad:
            raise cut.bad[0].error
        began = time.perf_counter()
        folder = shard_folder(self.folder, cut.name)
        while any(each.folder == folder for each in self._pending):  # the same documents again: once is enough
            self._settle()
        state, record, problem = check_shard(folder, self.settings) if cut.lines else self._nothing(cut)
        with writing(self.folder.parent):
            for identifier, where in zip(cut.ids, cut.where, strict=True):
                self._ids.add(identifier, place_of(where)[1] or -1)
        self._where = cut.where[0] if cut.where else self._where
        self.report.seconds["check"] += time.perf_counter() - began
        self._make_room(cut.bytes)
        if record is not None:
            self.report.resumed += bool(cut.lines)
            self._resumed += len(cut.where) + len(cut.bad)
            made: Future[Made] = Future()
            made.set_result(Made(record))
        else:
            if state == "damaged":
                self.report.damaged += 1
                self.report.problems.append(problem)
            made = self.engine.submit(ShardTask(folder, cut.lines, self.settings, self.limits.block_bytes))
            made.add_done_callback(lambda _: self._made.put(True))
            self.report.made_documents += len(cut.lines)
        self._pending.append(Pending(folder, cut, made))
        while self._pending and self._pending[0].made.done():
            self._settle()

    def _nothing(self, cut: Cut) -> tuple[State, ShardRecord, str]:
        """Return what a shard without documents is: nothing that has to stand on the disk."""
        return "done", ShardRecord(cut.name, self.settings.plain(), 0, 0, 0, 0, [], {}), ""

    def _make_room(self, needed: int) -> None:
        """Settle shards until few are being made and texts of ``needed`` bytes fit; those that are there wait too."""
        while self._pending and (
            sum(not each.made.done() for each in self._pending) > 2 * self.engine.slots
            or needed + sum(each.cut.bytes for each in self._pending) > self.limits.text_bytes
        ):
            self._settle()

    def _settle(self) -> None:
        """Wait for the first shard in flight, and take down what became of it."""
        began = time.perf_counter()
        while not self._pending[0].made.done():
            if not self._made.get():
                raise KeyboardInterrupt
        made = self._pending[0].made.result()
        self.report.seconds["wait"] += time.perf_counter() - began
        shard, report, record = self._pending.popleft(), self.report, made.record
        for stage, spent in made.seconds.items():
            report.seconds[stage] += spent
        self._write_letters(shard.cut, record)
        if shard.cut.lines:
            self._folders.append(shard.folder)
            self._starts.append(self._documents)
            report.shards += 1
        self._refused.update(self._documents + each["place"] for each in record.refused)
        self._documents += record.documents
        self._records += record.documents + len(shard.cut.bad)
        report.documents += record.documents - len({each["place"] for each in record.refused})
        report.rows += record.rows
        report.tokens += record.tokens
        report.truncated += record.truncated
        self.tell(JobProgress("encode", self._records, self.total, self._resumed))

    def _write_letters(self, cut: Cut, record: ShardRecord) -> None:
        if record.refused and self.strict:
            first = record.refused[0]
            where = cut.where[first["place"]]
            message = f"{f'{where}: ' if where else ''}document {first['id']!r}: {first['reason']}"
            raise InputError(message, field="source")
        for bad in cut.bad:
            self.letters.write(bad.where, bad.reason, bad.raw)
        for refused in record.refused:
            document = document_of(cut.lines[refused["place"]])
            self.letters.write(cut.where[refused["place"]], refused["reason"], values_of(document))
        self.letters.flush()

    def interrupt(self) -> None:
        """Let what waits for a shard raise `KeyboardInterrupt`; safe to call from a signal handler."""
        self._made.put(False)

    def settle_all(self) -> None:
        """Settle the shards that are left."""
        while self._pending:
            self._settle()

    def leave_out_repeated(self) -> None:
        """Leave out every document whose id an earlier one has.

        Raises:
            InputError: A document has to be left out, and that is an error.
        """
        with writing(self.folder.parent):
            repeated = left_out_of(sorted(self._ids.found()), self._refused)
        for shard, group in groupby(repeated, lambda each: bisect_right(self._starts, each[0][0]) - 1):
            places = {again[0] - self._starts[shard]: (again, first) for again, first in group}
            left_out = set()
            for rows in read_rows(self._folders[shard]):
                for place, document in zip(rows.places.tolist(), rows.documents, strict=True):
                    self.report.rows -= place in places
                    if place in places and place not in left_out:
                        left_out.add(place)
                        self._repeated(document, *places[place])
            self._left_out[shard] = frozenset(left_out)
            self.report.documents -= len(left_out)

    def _repeated(self, document: Document, again: tuple[int, int], first: tuple[int, int]) -> None:
        """Leave out a document, or the passages of one, whose id an earlier one has."""
        parent = document.metadata.get(PARENT)
        identifier = document.id if parent is None else parent
        if self.strict:
            raise InputError(
                f"{self._name(*first)} and {self._name(*again)} have the same id {identifier!r}; "
                "make ids unique, or take them from another field with --id-field NAME",
                field="id",
            )
        values = values_of(document) if parent is None else {"id": parent, "title": document.title}
        self.letters.write(self._name(*again), f"{self._name(*first)} has the same id", values)

    def _name(self, place: int, line: int) -> str:
        """Return where a document was read."""
        if line < 0:
            return f"document {place + 1}"
        return self._where[: self._where.rindex(" ") + 1] + str(line)

    def close(self) -> None:
        """Remove the files of the ids."""
        self._ids.close()


def values_of(document: Document) -> dict[str, Any]:
    """Return a document as JSON values."""
    return {"id": document.id, "title": document.title, "text": document.text, "metadata": dict(document.metadata)}
