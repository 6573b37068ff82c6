"""The offline job: any number of documents into a collection, in shards that survive a crash.

The source is read once, as a stream, and split into shards by the number of records alone. The name of a shard is the
digest of its documents and settings; a complete shard of that name is reused. A job that was killed therefore continues
with the missing shards, a source with more documents at its end needs only the new ones, and the resulting bytes equal
those of an uninterrupted run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from embedserve.data.records import BadRecord
from embedserve.errors import InputError
from indexing.base import TextEncoder, TokenEncoder
from indexing.collections.catalog import check_name
from indexing.collections.collection_build import check_options
from indexing.jobs.assembly import assemble, fields_for
from indexing.jobs.dead_letters import dead_letters
from indexing.jobs.interrupts import deferred_interrupt
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.jobs.local_engine import ThreadEngine, worker_lost
from indexing.jobs.shard_engine import ShardEngine
from indexing.jobs.shard_run import MemoryLimits, ShardRun
from indexing.jobs.shard_split import ShardSettings, canonical_line, split_shards
from indexing.segments.fields import Field
from indexing.sources.corpus import Document
from indexing.sources.passages import PassageSize
from indexing.storage.files import make_directory, replace_file, write_lock, writing

SHARDS, LETTERS, REPORT = "shards", "dead-letters.jsonl", "report.json"
SHARD_SIZE, MEMORY_MB, LEAST_MEMORY_MB = 2000, 512, 64
ALL_BAD = 100  # if this many first records are all invalid, the options are wrong rather than the records

OnError = Literal["dead-letter", "stop"]
SourceRecord = Document | BadRecord


@dataclass(frozen=True)
class JobOptions:
    """How a job runs.

    Attributes:
        shard_size: Records per shard.
        passages: How documents are split. Default: no splitting.
        on_error: ``dead-letter`` skips and records invalid records, ``stop`` fails at the first one.
        dead_letters: File of the skipped records. Default: ``dead-letters.jsonl`` in the job folder.
        memory_mb: Memory for texts and vectors in flight, besides the encoder and the index.
        index: Kind of vector index: see `indexing.build_collection`.
        drop_shards: Delete the shards after the collection is published; a later run cannot reuse them.

    Raises:
        InputError: A value is out of range.
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
    records: Iterable[SourceRecord],
    encoder: TextEncoder,
    directory: Path | str,
    work: Path | str,
    options: JobOptions | None = None,
    *,
    engine: ShardEngine | None = None,
    total: int | None = None,
    progress: Callable[[JobProgress], None] = lambda _: None,
) -> JobReport:
    """Build a collection, replacing the existing one; after an interruption, continue with the missing shards.

    The write lock of the collection is held for the whole job: writes acknowledged during it would be lost at the end.

    Args:
        records: Documents and invalid records, as `indexing.sources.corpus.read_all` yields them; read once.
        encoder: Determines what a shard depends on, and encodes the shards unless ``engine`` has its own encoders.
        directory: `catalog.collection_path(data_dir, name)`.
        work: `job_path` or another folder, for shards, dead letters and the report. Every worker must see it at that
            path.
        options: See `JobOptions`.
        engine: Where shards are encoded. Default: threads of this process. It is closed at the end.
        total: Number of records, for ``progress``.
        progress: Called after each shard.

    Raises:
        InputError: No valid records; with ``stop``, the first invalid record or duplicate id.
        EmbedserveError: The collection is locked by another writer, a worker is lost for good, or the disk is full.
            Complete shards stay, and the next run reuses them.
    """
    options, directory, work = options or JobOptions(), Path(directory), Path(work)
    with closing(engine or ThreadEngine(encoder)) as shard_engine:
        fields = checked_fields(encoder, directory, options, total)
        report = JobReport(directory.name, shard_engine.name, encoder.name, encoder.fingerprint)
        with (
            report.timed("all"),
            locked_folders(directory, work),
            dead_letters(options.dead_letters or work / LETTERS) as letters,
        ):
            remove_partial(work)
            settings = ShardSettings(encoder.fingerprint, options.passages)
            limits, strict = MemoryLimits(options.memory_mb * 2**20, shard_engine.slots), options.on_error == "stop"
            with closing(
                ShardRun(
                    work / SHARDS, settings, shard_engine, limits, letters, report,
                    strict=strict, total=total, progress=progress,
                )
            ) as run:  # fmt: skip
                run_shards(run, checked_records(records, strict=strict), options.shard_size)
            if not report.documents:
                raise InputError("no documents to index", field="documents")
            with report.timed("assemble"):
                manifest = assemble(
                    run.shards, fields, directory, work, truncated=report.truncated,
                    on_written=lambda rows: progress(JobProgress("write", rows, report.rows)),
                    on_indexed=lambda rows: progress(JobProgress("index", rows, report.rows)),
                )  # fmt: skip
                used = set() if options.drop_shards else {folder for folder, _ in run.shards}
                report.removed = remove_unused(work / SHARDS, used)
            report.rows = manifest.count
            report.dead_letters = letters.count
            report.dead_letter_file = str(letters.path) if letters.count else None
        with writing(work):
            replace_file(work / REPORT, (json.dumps(report.plain(), indent=2) + "\n").encode())
    return report


def run_shards(run: ShardRun, records: Iterable[SourceRecord], shard_size: int) -> None:
    """Encode the missing shards of a source, record all in reading order, and exclude duplicate ids."""
    try:
        for shard in run.timed_reading(split_shards(records, run.settings, shard_size)):
            with deferred_interrupt(run.interrupt):
                run.submit(shard)
        with deferred_interrupt(run.interrupt):
            run.finish_pending()
        run.exclude_duplicates()
    except BrokenProcessPool:
        raise worker_lost() from None
    except KeyboardInterrupt:
        run.progress(JobProgress("stop", run.report.documents, run.total))
        raise
    finally:
        run.engine.close()  # before the lock is released: workers write to the job folder


def checked_fields(encoder: TextEncoder, directory: Path, options: JobOptions, total: int | None) -> dict[str, Field]:
    """Return the fields of the collection; raise `InputError` if it cannot be built of this encoder and options."""
    check_name(directory.name)
    fields = fields_for(encoder, options.index)
    check_options(fields, 1, total if options.passages is None else None)
    if options.passages is None:
        return fields
    if not isinstance(encoder, TokenEncoder):
        message = f"{encoder.name!r} has no tokenizer, which passages need; build without a passage length"
        raise InputError(message, field="passage_tokens")
    max_tokens = encoder.max_tokens
    prompt_tokens = int(encoder.tokenize(["a"]).tokens[0]) - 1
    if options.passages.tokens + prompt_tokens > max_tokens:
        raise InputError(
            f"passages of {options.passages.tokens} tokens plus {prompt_tokens} prompt tokens exceed the "
            f"{max_tokens} tokens that {encoder.name!r} reads; use at most {max_tokens - prompt_tokens}",
            field="passage_tokens",
        )
    return fields


@contextmanager
def locked_folders(directory: Path, work: Path) -> Iterator[None]:
    """Create the folders of the collection and of the job, and hold the write locks of both."""
    with ExitStack() as locks:
        with writing(directory):
            make_directory(directory)
        with writing(work):
            make_directory(work / SHARDS)
        locks.enter_context(write_lock(directory))
        locks.enter_context(write_lock(work, f"job folder {work}"))
        yield


def checked_records(records: Iterable[SourceRecord], *, strict: bool) -> Iterator[SourceRecord]:
    """Yield all records; raise the error of the first one if the first ``ALL_BAD`` are all invalid.

    With ``strict``, raise the error of the first invalid record.
    """
    remaining = iter(records)
    if strict:
        for record in remaining:
            if isinstance(record, BadRecord):
                raise record.error
            yield record
        return
    first = list(islice(remaining, ALL_BAD))
    errors = [error for record in first if (error := record_error(record)) is not None]
    if errors and len(errors) == len(first):
        raise errors[0]
    yield from chain(first, remaining)


def record_error(record: SourceRecord) -> InputError | None:
    """Return why a record cannot be indexed, as far as that is known without the encoder."""
    if isinstance(record, BadRecord):
        return record.error
    try:
        canonical_line(record)
    except InputError as error:
        return error
    return None


def remove_partial(work: Path) -> None:
    """Delete the partial files of a killed run."""
    for path in [*work.glob(".segment-*"), *work.glob(".ids-*"), *(work / SHARDS).glob("??/.*.partial")]:
        shutil.rmtree(path, ignore_errors=True)


def remove_unused(shards: Path, used: set[Path]) -> int:
    """Delete the shards that are not in ``used``; return their number."""
    unused = [path for path in shards.glob("??/*") if path not in used]
    for path in unused:
        shutil.rmtree(path, ignore_errors=True)
    return len(unused)
