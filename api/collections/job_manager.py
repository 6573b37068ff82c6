"""Index builds that the server runs for its callers, each in a process of its own, with a folder that outlives it."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from api.collections.job_process import command_of, ending, lines_of, read_line, start, stop
from api.collections.writers import Writers
from api.http.error_responses import ApiError
from api.settings import Settings
from api.telemetry import metrics
from embedserve.errors import EmbedserveError
from indexing.storage.files import make_directory, replace_file, writing

logger = logging.getLogger(__name__)

ID = re.compile(r"job_[0-9a-f]{16}")
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
WORK = "work"


@dataclass
class Job:
    """A job as its folder keeps it; see `api.schemas.jobs.JobAnswer`."""

    id: str
    collection: str
    source: str
    arguments: list[str]
    created: str
    model: str | None = None
    state: str = "queued"
    started: str | None = None
    finished: str | None = None
    attempts: int = 0
    progress: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    error: str | None = None
    cancelled: bool = field(default=False, compare=False)


class Jobs:
    """Runs jobs one after another, or as many at a time as the settings say.

    Args:
        settings: Of the service.
        writers: Who must not write to a collection that is being built.
    """

    def __init__(self, settings: Settings, writers: Writers) -> None:
        self._settings, self._writers = settings, writers
        self.root = settings.data_dir / "submitted"
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs: dict[str, Future[None]] = {}  # of jobs that wait or run
        self._runners = ThreadPoolExecutor(settings.max_jobs, thread_name_prefix="job")
        self._closing = False
        self._jobs = {job.id: job for job in self._read()}

    def _read(self) -> Iterator[Job]:
        """Yield the jobs of earlier servers; what ran or waited when they ended is interrupted."""
        for path in sorted(self.root.glob("job_*/job.json")):
            try:
                job = Job(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:
                logger.warning("%s cannot be read: %s", path, error)
                continue
            if job.state not in ENDED:
                job.state, job.finished = "interrupted", job.finished or _now()
            yield job

    def all(self) -> list[Job]:
        """Return every job, the newest first."""
        return sorted(self._jobs.values(), key=lambda job: (job.created, job.id), reverse=True)

    def get(self, name: str) -> Job:
        """Return a job; an error 404 where there is none."""
        job = self._jobs.get(name)
        if job is None:
            raise ApiError(404, "job_not_found", f"there is no job {name!r}; GET /v1/jobs lists them", param="job")
        return job

    def folder(self, job: Job) -> Path:
        """Return where a job keeps its file, its shards and its dead letters."""
        return self.root / job.id

    def new_folder(self) -> Path:
        """Make and return a folder for a job; its name is the job's id."""
        with writing(self.root):
            make_directory(self.root)
            folder = self.root / f"job_{secrets.token_hex(8)}"
            folder.mkdir()
        return folder

    def submit(self, folder: Path, collection: str, source: str, model: str, arguments: Sequence[str]) -> Job:
        """Queue a job.

        Args:
            folder: From `new_folder`.
            collection: What is built.
            source: What the caller calls its source.
            model: What the caller calls the model.
            arguments: Of ``embedserve index build``: the source, the options of reading it, and the model.
        """
        job = Job(folder.name, collection, source, list(arguments), _now(), model)
        with self._lock:
            if busy := self._busy(collection):
                shutil.rmtree(folder, ignore_errors=True)
                message = f"job {busy.id} builds collection {collection!r} already; wait for it, or cancel it"
                raise ApiError(409, "job_running", message, param="collection")
            self._jobs[job.id] = job
        self._queue(job)
        return job

    def _busy(self, collection: str) -> Job | None:
        running = (job for job in self._jobs.values() if job.state not in ENDED)
        return next((job for job in running if job.collection == collection), None)

    def _queue(self, job: Job) -> None:
        self._save(job)
        try:
            with self._lock:
                self._runs[job.id] = self._runners.submit(self._run, job)
        except RuntimeError:
            raise ApiError(503, "shutting_down", "the server is shutting down; send the request to another") from None

    def cancel(self, job: Job) -> None:
        """Stop a job that waits or runs; what it has made so far is kept for `resume`."""
        with self._lock:
            if job.state in ENDED:
                message = f"job {job.id} has {job.state} already"
                raise ApiError(409, "job_ended", message, param="job")
            job.cancelled = True
            process = self._processes.get(job.id)
            if job.id in self._runs and self._runs[job.id].cancel():  # it has not begun
                self._end(job, "cancelled")
        if process is not None:
            threading.Thread(target=stop, args=(process,), daemon=True).start()

    def resume(self, job: Job) -> None:
        """Queue a job again that did not succeed; it goes on from its shards."""
        with self._lock:
            if job.state not in ("failed", "cancelled", "interrupted"):
                message = f"job {job.id} is {job.state}; only one that failed or was stopped can go on"
                raise ApiError(409, "job_not_stopped", message, param="job")
            if busy := self._busy(job.collection):
                message = f"job {busy.id} builds collection {job.collection!r} already; wait for it, or cancel it"
                raise ApiError(409, "job_running", message, param="collection")
            job.state, job.finished, job.error, job.report, job.cancelled = "queued", None, None, None, False
        self._queue(job)

    def remove(self, job: Job) -> None:
        """Take an ended job away with its file and its shards; the collection stays."""
        with self._lock:
            if job.state not in ENDED:
                message = f"job {job.id} is {job.state}; cancel it first"
                raise ApiError(409, "job_running", message, param="job")
            del self._jobs[job.id]
        shutil.rmtree(self.folder(job), ignore_errors=True)

    def dead_letters(self, job: Job) -> Path:
        """Return the file of records left out, which need not exist."""
        return self.folder(job) / WORK / "dead-letters.jsonl"

    def close(self) -> None:
        """Stop what runs; it can be resumed by the next server."""
        with self._lock:
            self._closing = True
            processes = list(self._processes.values())
        threads = [threading.Thread(target=stop, args=(process,)) for process in processes]
        for thread in threads:
            thread.start()
        self._runners.shutdown(wait=True, cancel_futures=True)

    # -------------------------------------------------------------- in a thread of its own

    def _run(self, job: Job) -> None:
        try:
            with self._writers.reserved(job.collection, f"job {job.id} builds it"):
                state, error = self._run_child(job)
        except Exception as problem:  # the job must not stay running for ever; the log has it whole
            logger.exception("job=%s failed", job.id)
            state, error = "failed", str(problem)
            if process := self._processes.get(job.id):
                stop(process)
        with self._lock:  # who reads that it has ended can write to the collection
            self._processes.pop(job.id, None)
            self._end(job, state, error)

    def _run_child(self, job: Job) -> tuple[str, str | None]:
        """Run a job to its end, and return the state it ends in, with the error."""
        folder = self.folder(job)
        command = command_of(self._settings, job.collection, job.arguments, folder / WORK)
        with (folder / "result.json").open("wb") as result, self._lock:
            if job.cancelled or self._closing:
                return "cancelled" if job.cancelled else "interrupted", None
            process = start(command, result)
            self._processes[job.id] = process
            job.state, job.started, job.attempts = "running", _now(), job.attempts + 1
            job.progress = None
        self._save(job)
        said, counted = "", 0
        for line in lines_of(process):
            progress, problem = read_line(line)
            job.progress, said = progress or job.progress, problem or said
            if progress is not None and progress["stage"] == "encode":
                made = max(counted, progress["done"] - progress["resumed"])
                metrics.job_items("done", made - counted)
                counted = made
        code = process.wait()
        if code == 0:
            with suppress(OSError, ValueError):
                job.report = json.loads((folder / "result.json").read_bytes())
                metrics.job_items("dead_letter", job.report["report"]["dead_letters"])
            return "succeeded", None
        if job.cancelled:
            return "cancelled", None
        if self._closing or code == 130:
            return "interrupted", None
        return "failed", said or f"the process ended with {ending(code)}; resume goes on from there"

    def _end(self, job: Job, state: str, error: str | None = None) -> None:
        job.state, job.finished, job.error = state, _now(), error
        self._runs.pop(job.id, None)
        try:
            self._save(job)
        except EmbedserveError:  # a full disk: the next server takes it for interrupted
            logger.exception("job=%s cannot be written down", job.id)
        logger.info("job=%s collection=%s state=%s", job.id, job.collection, state)

    def _save(self, job: Job) -> None:
        with writing(self.root):
            replace_file(self.folder(job) / "job.json", json.dumps(dataclasses.asdict(job)).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
