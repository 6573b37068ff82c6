"""Evaluate systems on tasks with ``mteb.evaluate``, and record the results; recorded runs are not repeated."""

from __future__ import annotations

import datetime
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import torch
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval
from threadpoolctl import threadpool_limits

from benchmarks.common.machine import describe, peak_memory_kib
from benchmarks.harness.mteb_models import SearchModel, SharedVectors, as_mteb_model
from benchmarks.harness.score_items import items_of, per_query
from benchmarks.harness.score_records import ScoreRecord, record_path
from benchmarks.harness.systems import System, digest, meta_of, revision_of
from benchmarks.harness.task_prompts import prompts_for
from benchmarks.harness.tasks import data_digest
from embedserve import Encoder, InputError
from indexing.sources.python_docs import python_documents

SEED = 42  # for torch and numpy; mteb seeds its tasks itself
SAMPLE, ROUNDS = 100, 3  # texts and repetitions of the encoding speed
VERSIONS = ("embedserve", "mteb", "torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One system on one task.

    Attributes:
        system: The system, with the prompts of the task.
        task: The task.
        revision: Revision of ``system``.
        variant: Revision without prompts by task: the same for all tasks of a system.
    """

    system: System
    task: AbsTask
    revision: str
    variant: str

    def record(self, results: Path) -> ScoreRecord | None:
        """Return the record of a finished run on the same data, under the present name of the system."""
        name = str(meta_of(self.system, self.revision).name)
        path = record_path(results, name, self.revision, self.task.metadata.name)
        record = ScoreRecord.read(path) if path.exists() else None
        if record is None or record.data != data_digest(self.task):
            return None
        return replace(record, system=self.system.name)


def plan_runs(systems: Sequence[System], task: AbsTask, prompts: Mapping[str, str]) -> list[Run]:
    """Return the runs of all ``systems`` that fit ``task``."""
    digest_of_prompts = f"prompts-{digest(dict(prompts))}" if prompts else ""
    runs = []
    for system in (system for system in systems if system.fits(task)):
        prompted = system
        if system.encoder is not None and prompts:
            prompted = system.with_prompts(prompts_for(prompts, task.metadata, system.encoder.spec.prompts))
        revision = revision_of(prompted, digest_of_prompts)
        runs.append(Run(prompted, task, revision, revision_of(system, digest_of_prompts) if prompts else revision))
    return runs


def evaluate(
    systems: Sequence[System],
    tasks: Sequence[AbsTask],
    results: Path,
    say: Say,
    *,
    prompts: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    arguments: Sequence[str] = (),
) -> list[ScoreRecord]:
    """Evaluate each system on each task that it fits, and return all records.

    Encoders with equal `Encoder.passes_digest` share the passes over the texts of a task.

    Args:
        systems: Systems.
        tasks: Tasks of mteb, with or without their data.
        results: Folder of mteb's cache and of the records, see `score_records`.
        say: Called with a line of progress after each run.
        prompts: Prompts by task, see `task_prompts.load_prompts`.
        sizes: Size of the texts of each task by name, in any unit, for the estimate of the remaining time.
        arguments: Arguments of the command, for the records.

    Raises:
        InputError: No system fits any task.
    """
    if not any(system.fits(task) for system in systems for task in tasks):
        names = ", ".join(system.name for system in systems)
        kinds = ", ".join(sorted({str(task.metadata.type) for task in tasks}))
        message = f"nothing to measure: {names} cannot do {kinds}; token vectors, words and engines are for retrieval"
        raise InputError(message, field="encoder")
    for system in systems:
        if skipped := [task.metadata.name for task in tasks if not system.fits(task)]:
            say(f"{system.name} skips {', '.join(skipped)}: these tasks need one vector per text")
    sizes, speeds = sizes or {}, dict[str, float | None]()
    plan = [plan_runs(systems, task, prompts or {}) for task in tasks]

    def missing_of(runs: Sequence[Run]) -> list[System]:
        return [run.system for run in runs if run.record(results) is None]

    remaining = [
        sizes.get(task.metadata.name, 1) * _passes(missing_of(runs)) for task, runs in zip(tasks, plan, strict=True)
    ]
    start, total, records = time.monotonic(), sum(remaining), []
    for number, (task, runs) in enumerate(zip(tasks, plan, strict=True), start=1):
        name, missing = task.metadata.name, missing_of(runs)  # again: a parallel process may have finished some
        shared = SharedVectors([s.encoder for s in missing if s.engine is None and s.encoder is not None and _dense(s)])
        if missing and not task.data_loaded:
            task.load_data()
        for run in runs:
            record = run.record(results)
            if record is None:
                system = run.system
                if system.name not in speeds:
                    speeds[system.name] = tokens_per_second(system.encoder)
                record = replace(
                    measure(run, results, shared),
                    tokens_per_s=speeds[system.name],
                    run=_run_details(arguments),
                    variant=run.variant,
                )
                record.write(results)
                say(f"{name}: {system.name} {100 * record.score:.2f} ({record.seconds['wall']:.0f} s)")
            records.append(record)
        to_do, elapsed_s = sum(remaining[number:]), time.monotonic() - start
        if missing:
            about = f", about {elapsed_s / (total - to_do) * to_do / 60:.0f} min left" if to_do else ""
            say(f"{number}/{len(tasks)} tasks after {elapsed_s / 60:.0f} min{about}")
    return records


def measure(run: Run, results: Path, shared: SharedVectors) -> ScoreRecord:
    """Evaluate a run whose task has its data loaded."""
    system, task, revision = run.system, run.task, run.revision
    meta = meta_of(system, revision)
    cache = mteb.ResultCache(results)
    cache.get_task_result_path(task.metadata.name, meta).unlink(missing_ok=True)  # of an interrupted run
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - mteb draws from it
    model = as_mteb_model(system, meta, shared)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, per_query(task) as queries:
        # mteb's classifiers are too small to profit from a second thread.
        limit = None if isinstance(task, AbsTaskRetrieval) else 1
        with warnings.catch_warnings(), threadpool_limits(limit, user_api="blas"):
            warnings.simplefilter("ignore")  # about official sets with a newer version
            results_of_mteb = mteb.evaluate(
                model,
                task,
                cache=cache,
                prediction_folder=Path(folder) if task.metadata.type in ("STS", "PairClassification") else None,
                show_progress_bar=False,
                co2_tracker=False,
                public_only=False,
            )
        result = results_of_mteb.task_results[0]
        items = queries or items_of(task, result, Path(folder))
    wall = time.perf_counter() - start
    encoder, engine = system.encoder, system.engine
    spent = model.usage if isinstance(model, SearchModel) else shared.usage[model.encoder.passes_digest]
    counts = model.counts if isinstance(task, AbsTaskRetrieval) else {}
    memory = {"process": round(peak_memory_kib() / 1024, 1)}
    if torch.cuda.is_available():
        memory["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return ScoreRecord(
        system=system.name,
        model=str(meta.name),
        revision=revision,
        task=task.metadata.name,
        type=str(task.metadata.type),
        metric=task.metadata.main_score,
        score=float(result.get_score()),
        items=items,
        dim=None if encoder is None else encoder.dim,
        spec=None if encoder is None else encoder.spec.to_dict(),
        fingerprint=None if encoder is None else encoder.fingerprint,
        engine=None if engine is None else {"name": engine.name, **engine.settings(encoder.dim if encoder else 0)},
        prompts={} if encoder is None else dict(encoder.spec.prompts),
        seconds={
            "wall": round(wall, 3),
            "encode": round(spent.encode_s, 3),
            "index": round(spent.index_s, 3),
            "search": round(spent.search_s, 3),
        },
        tokens=spent.tokens,
        shared_by=spent.shared_by,
        index_bytes=spent.index_bytes,
        documents=counts.get("document", 0),
        queries=counts.get("query", 0),
        token_vectors=spent.token_vectors,
        peak_memory_mb=memory,
        data=data_digest(task),
    )


def tokens_per_second(encoder: Encoder | None) -> float | None:
    """Return the encoding speed on a fixed sample in tokens per second, the median of `ROUNDS`."""
    if encoder is None:
        return None
    texts = [f"{document.title} {document.text}" for document in islice(python_documents(), SAMPLE)]
    encoder.encode(texts[:10])
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        tokens = int(encoder.encode(texts).tokens.sum())
        rates.append(tokens / (time.perf_counter() - start))
    return round(statistics.median(rates), 1)


def _dense(system: System) -> bool:
    return system.encoder is not None and "dense" in system.encoder.outputs


def _passes(systems: Sequence[System]) -> int:
    """Return the number of passes over a text for all ``systems``."""
    return len({s.encoder.passes_digest if s.encoder and s.engine is None and _dense(s) else s.name for s in systems})


def _run_details(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what is needed to reproduce the numbers."""
    installed = {}
    for name in VERSIONS:
        try:
            installed[name] = version(name)
        except ImportError:
            continue
    date = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": describe(), "seed": SEED, "versions": installed, "arguments": list(arguments)}
