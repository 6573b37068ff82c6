"""Selection of the tasks of a run: mteb's own, by name or benchmark, or local sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from benchmarks.harness.local_sets import LARGE, load_task, local_sources, size_of
from embedserve import InputError
from embedserve.errors import did_you_mean


def data_digest(task: AbsTask) -> str:
    """Return the digest of a task's data: the files of a local set, or the dataset's revision, subsets and splits."""
    dataset = task.metadata.dataset
    parts = [
        dataset.get("path"),
        dataset.get("revision"),
        sorted(task.hf_subsets or []),
        sorted(task.eval_splits or []),
    ]
    described = json.dumps([getattr(task, "files_digest", ""), *parts], default=str)
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def choose_tasks(
    data: Path | None, names: Sequence[str] = (), benchmark: str | None = None, *, quick: bool = False
) -> tuple[list[AbsTask], dict[str, int]]:
    """Return the tasks of a run, and the size of each local set in bytes by task name.

    Args:
        data: Folder of local sets. Default: mteb's own tasks, with data from the hub or its cache.
        names: Task names. Default: every task of ``data`` or ``benchmark``.
        benchmark: Name of a benchmark of mteb, such as ``MTEB(eng, v2)``, NanoBEIR or BEIR.
        quick: Skip local sets larger than `LARGE`.

    Raises:
        InputError: A task or benchmark is unknown, or no task is selected.
    """
    if data is None:
        return _hub_tasks(names, benchmark), {}
    sources = local_sources(data)
    known = [source.task for source in sources]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"{data} has no task {name!r}; {hint}it has {', '.join(known)}", field="tasks")
    if benchmark is not None:
        of_benchmark = {task.metadata.name for task in benchmark_of(benchmark).tasks}
        sources = [source for source in sources if source.task in of_benchmark]
    selected = [
        source
        for source in sources
        if source.task in (names or known) and not (quick and size_of(data, source) > LARGE)
    ]
    if not selected:
        raise InputError(f"{data} has none of the requested tasks; it has {', '.join(known)}", field="tasks")
    return [load_task(source, data) for source in selected], {s.task: size_of(data, s) for s in selected}


def known_names(tasks: Sequence[AbsTask]) -> set[str]:
    """Return the names and types of ``tasks`` and of mteb's tasks."""
    metadata = [task.metadata for task in (*tasks, *mteb.get_tasks())]
    return {str(meta.name) for meta in metadata} | {str(meta.type) for meta in metadata}


def benchmark_of(name: str) -> Any:
    """Return a benchmark of mteb; raise `InputError` if it is unknown."""
    try:
        return mteb.get_benchmark(name)
    except (KeyError, ValueError):
        known = [benchmark.name for benchmark in mteb.get_benchmarks()]
        hint = did_you_mean(name, known)
        message = f"mteb has no benchmark {name!r}; {hint}it has {', '.join(known)}"
        raise InputError(message, field="benchmark") from None


def _hub_tasks(names: Sequence[str], benchmark: str | None) -> list[AbsTask]:
    if benchmark is not None:
        tasks = list(benchmark_of(benchmark).tasks)
        known = [task.metadata.name for task in tasks]
        if unknown := [name for name in names if name not in known]:
            hint = did_you_mean(unknown[0], known)
            raise InputError(f"{benchmark} has no task {unknown[0]!r}; {hint}it has {', '.join(known)}", field="tasks")
        return _parts([task for task in tasks if not names or task.metadata.name in names])
    if not names:
        raise InputError(
            "no task selected: give --tasks, --benchmark, or --data with a folder of local sets", field="tasks"
        )
    tasks = []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError:
            hint = did_you_mean(name, [task.metadata.name for task in mteb.get_tasks()])
            raise InputError(f"mteb has no task {name!r}; {hint}see mteb available-tasks", field="tasks") from None
    return _parts(tasks)


def _parts(tasks: Sequence[AbsTask]) -> list[AbsTask]:
    """Return ``tasks`` with each aggregate, such as CQADupstackRetrieval, replaced by its parts."""
    return [part for task in tasks for part in (task.tasks if isinstance(task, AbsTaskAggregate) else [task])]
