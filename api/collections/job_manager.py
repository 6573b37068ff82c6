"""Index builds that the service runs, each in a child process, with a folder that survives restarts."""

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
from typing import TYPE_CHECKING, Any

from api.collections.job_process import exit_reason, lines_of, read_line, start, stop
from api.collections.writers import Writers
from api.http.error_responses import ApiError
from api.settings import Settings
from api.telemetry import metrics
from embedserve.errors import EmbedserveError
from indexing.storage.files import make_directory, replace_file, writing

if TYPE_CHECKING:
    from indexing.jobs.build_plan import BuildPlan

logger = logging.getLogger(__name__)

ID = re.compile(r"job_[0-9a-f]{16}")
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
WORK = "work"
WHOLE_NUMBERS = ("passage_tokens", "overlap", "shard_size")


@dataclass
class Job:
    """A job, as saved in ``job.json`` in its folder; see `api.schemas.jobs.JobAnswer`.

    ``plan`` is `indexing.jobs.build_plan.BuildPlan.to_dict`.
    """

    id: str
    collection: str
    source: str
    plan: dict[str, Any]
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
    """Runs jobs, at most ``max_jobs`` of the settings at a time.

    Args:
        settings: Settings of the service.
        writers: Release a collection while it is being built.
    """

    def __init__(self, settings: Settings, writers: Writers) -> None:
        self._settings, self._writers = settings, writers
        self.root = settings.data_dir / "submitted"
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._runs: dict[str, Future[None]] = {}  # of queued and running jobs
        self._runners = ThreadPoolExecutor(settings.max_jobs, thread_name_prefix="job")
        self._closing = False
        self._jobs = {job.id: job for job in self._read()}

    def _read(self) -> Iterator[Job]:
        """Yield the saved jobs; one that was queued or running when the server stopped is ``interrupted``."""
        for path in sorted(self.root.glob("job_*/job.json")):
            try:
                values = json.loads(path.read_text())
                if "arguments" in values:  # saved before jobs had plans
                    values["plan"] = self._plan_of_arguments(values["collection"], values.pop("arguments"))
                job = Job(**values)
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s cannot be read: %s", path, error)
                continue
            if job.state not in ENDED:
                job.state, job.finished = "interrupted", job.finished or _now()
            yield job

    def _plan_of_arguments(self, collection: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the plan of ``embedserve index build`` arguments, as earlier versions saved them."""
        source, *options = arguments
        plan: dict[str, Any] = {"source": source, "collection": collection}
        for option in options:
            name, _, value = option.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            plan[name] = int(value) if name in WHOLE_NUMBERS else value
        if "model" not in plan:
            plan |= {"model": self._settings.model, "strategy": self._settings.strategy}
        return plan

    def all(self) -> list[Job]:
        """Return all jobs, newest first."""
        return sorted(self._jobs.values(), key=lambda job: (job.created, job.id), reverse=True)

    def get(self, name: str) -> Job:
        """Return a job; raise `ApiError` 404 if it does not exist."""
        job = self._jobs.get(name)
        if job is None:
            raise ApiError(404, "job_not_found", f"there is no job {name!r}; GET /v1/jobs lists all", param="job")
        return job

    def folder(self, job: Job) -> Path:
        """Return the folder of a job's source file, shards and dead letters."""
        return self.root / job.id

    def new_folder(self) -> Path:
        """Create the folder of a new job; its name is the job id."""
        with writing(self.root):
            make_directory(self.root)
            folder = self.root / f"job_{secrets.token_hex(8)}"
            folder.mkdir()
        return folder

    def submit(self, folder: Path, source: str, model: str, plan: BuildPlan) -> Job:
        """Queue a job.

        Args:
            folder: From `new_folder`.
            source: Name of the source, for display.
            model: Name of the model, for display.
            plan: What to build.
        """
        job = Job(folder.name, plan.collection, source, plan.to_dict(), _now(), model)
        with self._lock:
            try:
                self._check_not_running(job.collection)
            except ApiError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._jobs[job.id] = job
        self._queue(job)
        return job

    def _check_not_running(self, collection: str) -> None:
        for job in self._jobs.values():
            if job.collection == collection and job.state not in ENDED:
                message = f"job {job.id} is already building collection {collection!r}; wait for it, or cancel it"
                raise ApiError(409, "job_running", message, param="collection")

    def _queue(self, job: Job) -> None:
        self._save(job)
        try:
            with self._lock:
                self._runs[job.id] = self._runners.submit(self._run, job)
        except RuntimeError:
            message = "the server is shutting down; send the request to another server"
            raise ApiError(503, "shutting_down", message) from None

    def cancel(self, job: Job) -> None:
        """Stop a queued or running job; its complete shards are kept for `resume`."""
        with self._lock:
            if job.state in ENDED:
                raise ApiError(409, "job_ended", f"job {job.id} has already {job.state}", param="job")
            job.cancelled = True
            process = self._processes.get(job.id)
            if job.id in self._runs and self._runs[job.id].cancel():  # not started
                self._end(job, "cancelled")
        if process is not None:
            threading.Thread(target=stop, args=(process,), daemon=True).start()

    def resume(self, job: Job) -> None:
        """Queue a failed or stopped job again; it reuses its shards."""
        with self._lock:
            if job.state not in ("failed", "cancelled", "interrupted"):
                message = f"job {job.id} is {job.state}; only a failed, cancelled or interrupted job can be resumed"
                raise ApiError(409, "job_not_stopped", message, param="job")
            self._check_not_running(job.collection)
            job.state, job.finished, job.error, job.report, job.cancelled = "queued", None, None, None, False
        self._queue(job)

    def remove(self, job: Job) -> None:
        """Delete an ended job with its source file and shards; the collection is not changed."""
        with self._lock:
            if job.state not in ENDED:
                raise ApiError(409, "job_running", f"job {job.id} is {job.state}; cancel it first", param="job")
            del self._jobs[job.id]
        shutil.rmtree(self.folder(job), ignore_errors=True)

    def dead_letters(self, job: Job) -> Path:
        """Return the dead-letter file, which may not exist."""
        return self.folder(job) / WORK / "dead-letters.jsonl"

    def close(self) -> None:
        """Stop running jobs; the next server can resume them."""
        with self._lock:
            self._closing = True
            processes = list(self._processes.values())
        threads = [threading.Thread(target=stop, args=(process,)) for process in processes]
        for thread in threads:
            thread.start()
        self._runners.shutdown(wait=True, cancel_futures=True)

    # -------------------------------------------------------------- in a runner thread

    def _run(self, job: Job) -> None:
        try:
            with self._writers.reserved(job.collection, f"job {job.id} is building it"):
                state, error = self._run_child(job)
        except Exception as problem:  # internal error: the job must not stay in state running
            logger.exception("job=%s failed", job.id)
            state, error = "failed", str(problem)
            if process := self._processes.get(job.id):
                stop(process)
        with self._lock:  # set after the collection is released: clients that read the state may write to it
            self._processes.pop(job.id, None)
            self._end(job, state, error)

    def _run_child(self, job: Job) -> tuple[str, str | None]:
        """Run a job to its end; return its final state and the error."""
        process = self._start_child(job)
        if process is None:
            return "cancelled" if job.cancelled else "interrupted", None
        error = self._follow(job, process)
        code = process.wait()
        if code == 0:
            with suppress(OSError, ValueError):
                job.report = json.loads((self.folder(job) / "result.json").read_bytes())
                metrics.job_items("dead_letter", job.report["report"]["dead_letters"])
            return "succeeded", None
        if job.cancelled:
            return "cancelled", None
        if self._closing or code == 130:
            return "interrupted", None
        return "failed", error or f"the process ended with {exit_reason(code)}; resume the job to continue"

    def _start_child(self, job: Job) -> subprocess.Popen[bytes] | None:
        """Start the process of a job with the current settings; None if it was cancelled or the server is closing."""
        folder = self.folder(job)
        current = {
            "data_dir": str(self._settings.data_dir.resolve()),
            "job_dir": str((folder / WORK).resolve()),
            "device": self._settings.device,
        }
        with writing(folder):
            replace_file(folder / "plan.json", json.dumps(job.plan | current).encode())
        with (folder / "result.json").open("wb") as result, self._lock:
            if job.cancelled or self._closing:
                return None
            process = start(folder / "plan.json", result)
            self._processes[job.id] = process
            job.state, job.started, job.attempts, job.progress = "running", _now(), job.attempts + 1, None
        self._save(job)
        return process

    def _follow(self, job: Job, process: subprocess.Popen[bytes]) -> str:
        """Update the progress of a job until its process closes stderr; return the last error message."""
        error, encoded = "", 0
        for line in lines_of(process):
            progress, message = read_line(line)
            job.progress, error = progress or job.progress, message or error
            if progress is not None and progress["stage"] == "encode":
                total = max(encoded, progress["done"] - progress["resumed"])
                metrics.job_items("done", total - encoded)
                encoded = total
        return error

    def _end(self, job: Job, state: str, error: str | None = None) -> None:
        job.state, job.finished, job.error = state, _now(), error
        self._runs.pop(job.id, None)
        try:
            self._save(job)
        except EmbedserveError:  # for example a full disk: the next server reads the job as interrupted
            logger.exception("job=%s cannot be saved", job.id)
        logger.info("job=%s collection=%s state=%s", job.id, job.collection, state)

    def _save(self, job: Job) -> None:
        with writing(self.root):
            replace_file(self.folder(job) / "job.json", json.dumps(dataclasses.asdict(job)).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
