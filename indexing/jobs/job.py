"""The offline job: any number of documents into a collection, in shards that outlive every crash.

The source is read once, as a stream, and cut into shards by the number of records alone. Each shard is named by what it
holds and what shapes it; one that stands complete under its name is not made again. So a job that was killed goes on
where it was, one with more documents behind those of before makes only the new shards, and both end with the bytes of
one unbroken run.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from embedserve.data.records import BadRecord
from embedserve.errors import InputError
from indexing.base import TextEncoder
from indexing.collections.catalog import check_name
from indexing.collections.collection_build import check_options
from indexing.jobs.assembly import assemble, fields_for
from indexing.jobs.dead_letters import dead_letters
from indexing.jobs.interrupts import deferred_interrupt
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.jobs.local_engine import Engine, ThreadEngine, lost_process
from indexing.jobs.shard_run import Limits, ShardRun
from indexing.jobs.shard_split import ShardSettings, canonical_line, cut_shards
from indexing.sources.corpus import Document
from indexing.sources.passages import PassageSize
from indexing.storage.files import make_directory, replace_file, write_lock, writing

SHARDS, LETTERS, REPORT = "shards", "dead-letters.jsonl", "report.json"
SHARD_SIZE, MEMORY_MB, LEAST_MEMORY_MB = 2000, 512, 64
ALL_BAD = 100  # records without one good among them, after which the options must be wrong, not the records

OnError = Literal["dead-letter", "stop"]
Found = Document | BadRecord


@dataclass(frozen=True)
class JobOptions:
    """How a job is run.

    Attributes:
        shard_size: Records in a shard.
        passages: How documents are split; not at all if None.
        on_error: ``dead-letter`` leaves bad records out and writes them down, ``stop`` ends at the first.
        dead_letters: Where they are written; ``dead-letters.jsonl`` in the job's folder if None.
        memory_mb: What the texts and vectors in flight may take, beside the encoder and the index that is built.
        index: The kind of index: see `indexing.build_collection`.
        drop_shards: Remove the shards once the collection is published; a later run cannot use them.

    Raises:
        InputError: A number is too small.
    """

    shard_size: int = SHARD_SIZE
    passages: PassageSize | None = None
    on_error: OnError = "dead-letter"
    dead_letters: Path | None = None
    memory_mb: int = MEMORY_MB
    index: str = "auto"
    drop_shards: bool = False

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError(f"shard_size must be at least 1, got {self.shard_size}", field="shard_size")
        if self.memory_mb < LEAST_MEMORY_MB:
            message = f"memory must be at least {LEAST_MEMORY_MB} MB, got {self.memory_mb}"
            raise InputError(message, field="memory")
        if self.on_error not in ("dead-letter", "stop"):
            raise InputError(f"on_error must be dead-letter or stop, got {self.on_error!r}", field="on_error")


def job_path(data_dir: Path | str, name: str) -> Path:
    """Return the folder of the job that fills the collection ``name``."""
    return Path(data_dir) / "jobs" / check_name(name)


def run_job(
    found: Iterable[Found],
    encoder: TextEncoder,
    directory: Path | str,
    work: Path | str,
    options: JobOptions | None = None,
    *,
    engine: Engine | None = None,
    total: int | None = None,
    progress: Callable[[JobProgress], None] = lambda _: None,
) -> JobReport:
    """Fill a collection, in place of the one that may be there; begun again after any end, go on.

    Nobody else can write to the collection meanwhile: what was acknowledged would be lost in the end.

    Args:
        found: What `indexing.sources.corpus.read_all` yields, read once.
        encoder: Says what a shard depends on, and makes the shards unless an engine has encoders of its own.
        directory: `catalog.collection_path(data_dir, name)`.
        work: `job_path`, or another folder: shards, dead letters and report. Every worker must see it at that path.
        options: See `JobOptions`.
        engine: Where shards are made; threads of this process by default. It is closed at the end.
        total: Records to come, for ``progress``.
        progress: Called whenever a shard is settled.

    Raises:
        InputError: Nothing usable, or with ``stop`` the first bad record; or an id twice.
        EmbedserveError: The collection is being written to, a worker is lost for good, or the disk is full. Shards
            that are made stay, and the next run goes on with the others.
    """
    options = options or JobOptions()
    directory, work = Path(directory), Path(work)
    began = time.perf_counter()
    with closing(engine or ThreadEngine(encoder)) as used:
        check_name(directory.name)
        fields = fields_for(encoder, options.index)
        check_options(fields, 1, total if options.passages is None else None)
        check_passages(encoder, options.passages)
        report = JobReport(directory.name, used.name, encoder.name, encoder.fingerprint)
        with writing(directory):
            make_directory(directory)
        with writing(work):
            make_directory(work / SHARDS)
        with (
            write_lock(directory),
            write_lock(work, f"job folder {work}"),
            dead_letters(options.dead_letters or work / LETTERS) as letters,
        ):
            remove_partial(work)
            settings = ShardSettings(encoder.fingerprint, options.passages)
            limits, strict = Limits(options.memory_mb * 2**20, used.slots), options.on_error == "stop"
            run = ShardRun(
                work / SHARDS, settings, used, limits, letters, report, strict=strict, total=total, tell=progress
            )
            try:
                make_all(run, raising(found) if strict else sensible(found), settings, options.shard_size)
            except KeyboardInterrupt:
                progress(JobProgress("stop", report.documents, total))
                raise
            finally:
                used.close()  # nothing is being written to the folder once its lock is given back
                run.close()
            if not report.documents:
                raise InputError("there are no documents to index", field="documents")
            assembling = time.perf_counter()
            told = {
                "added": lambda done: progress(JobProgress("write", done, report.rows)),
                "progress": lambda done: progress(JobProgress("index", done, report.rows)),
            }
            manifest = assemble(run.shards, fields, directory, work, truncated=report.truncated, **told)
            report.rows = manifest.count
            kept = set() if options.drop_shards else {folder for folder, _ in run.shards}
            report.removed = remove_unused(work / SHARDS, kept)
            report.dead_letters = letters.count
            report.dead_letter_file = str(letters.path) if letters.count else None
            report.seconds["assemble"] = time.perf_counter() - assembling
            report.seconds["all"] = time.perf_counter() - began
            with writing(work):
                replace_file(work / REPORT, (json.dumps(report.plain(), indent=2) + "\n").encode())
    return report


def make_all(run: ShardRun, found: Iterable[Found], settings: ShardSettings, size: int) -> None:
    """Settle every shard of a source; a worker process that is lost is an error that says what to do."""
    try:
        for cut in run.timed(cut_shards(found, settings, size)):
            with deferred_interrupt(run.interrupt):
                run.begin(cut)
        with deferred_interrupt(run.interrupt):
            run.settle_all()
        run.leave_out_repeated()
    except BrokenProcessPool:
        raise lost_process() from None


def check_passages(encoder: TextEncoder, size: PassageSize | None) -> None:
    """Raise `InputError` where the encoder reads less than a passage and what stands around it."""
    tokenize = getattr(encoder, "tokenize", None)
    if size is None or tokenize is None:
        return
    longest = int(getattr(encoder, "max_tokens", 0))
    around = int(tokenize(["a"]).tokens[0]) - 1
    if size.tokens + around > longest:
        message = f"passages of {size.tokens} tokens, with {around} of the prompt, are longer than the {longest} that"
        raise InputError(f"{message} {encoder.name!r} reads; use at most {longest - around}", field="passage_tokens")


def raising(found: Iterable[Found]) -> Iterator[Found]:
    """Yield the documents; raise the error of the first bad record."""
    for item in found:
        if isinstance(item, BadRecord):
            raise item.error
        yield item


def sensible(found: Iterable[Found]) -> Iterator[Found]:
    """Yield everything; raise the first error where the first hundred records are all bad: the options are wrong."""
    items = iter(found)
    first = list(islice(items, ALL_BAD))
    problems = [problem for item in first if (problem := problem_of(item)) is not None]
    if problems and len(problems) == len(first):
        raise problems[0]
    yield from chain(first, items)


def problem_of(item: Found) -> InputError | None:
    """Return why a record cannot be indexed, as far as that can be told without the encoder."""
    if isinstance(item, BadRecord):
        return item.error
    try:
        canonical_line(item)
    except InputError as error:
        return error
    return None


def remove_partial(work: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in [*work.glob(".segment-*"), *work.glob(".ids-*"), *(work / SHARDS).glob("??/.*.partial")]:
        shutil.rmtree(path, ignore_errors=True)


def remove_unused(shards: Path, used: set[Path]) -> int:
    """Remove the shards that a finished run has no use for; return how many there were."""
    count = 0
    for path in shards.glob("??/*"):
        if path not in used:
            shutil.rmtree(path, ignore_errors=True)
            count += 1
    return count
