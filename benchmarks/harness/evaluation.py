"""Systems x tasks -> records, through ``mteb.evaluate``: what is recorded is not measured again."""

from __future__ import annotations

import datetime
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from benchmarks.harness.score_records import Record, record_path
from benchmarks.harness.systems import System, digest, meta_of, revision_of
from benchmarks.harness.task_prompts import prompts_for
from benchmarks.harness.tasks import data_digest
from embedserve import Encoder, InputError
from indexing.sources.python_docs import python_documents

SEED = 42  # of torch and numpy; mteb's tasks have their own
SAMPLE, ROUNDS = 100, 3  # texts whose encoding is timed, and how often
VERSIONS = ("embedserve", "mteb", "torch", "transformers", "sentence-transformers", "faiss-cpu", "numpy")
# mteb's main scores of a query, as pytrec_eval calls them.
PER_QUERY = {"ndcg_at_": "ndcg_cut_", "map_at_": "map_cut_", "recall_at_": "recall_", "precision_at_": "P_"}
Say = Callable[[str], None]


def evaluate(
    systems: Sequence[System],
    tasks: Sequence[AbsTask],
    results: Path,
    say: Say,
    *,
    prompts: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
    arguments: Sequence[str] = (),
) -> list[Record]:
    """Evaluate each system on each task that it fits, and return all their records.

    Encoders over one decoder share its passes over a task's texts, see `Encoder.passes_digest`.

    Args:
        systems: What is evaluated.
        tasks: mteb's, with or without their data.
        results: Folder of mteb's cache and the records, see `records`.
        say: Told about each evaluation.
        prompts: By task, see `prompts.load_prompts`.
        sizes: Of the tasks' texts by name, in any unit, to tell how much is left.
        arguments: Of the command, for the records.

    Raises:
        InputError: No system fits any task.
    """
    if not any(system.fits(task) for system in systems for task in tasks):
        names = ", ".join(system.name for system in systems)
        kinds = ", ".join(sorted({str(task.metadata.type) for task in tasks}))
        message = f"nothing to measure: {names} cannot do {kinds}; token vectors, words and engines are for retrieval"
        raise InputError(message, field="encoder")
    for system in systems:
        if left_out := [task.metadata.name for task in tasks if not system.fits(task)]:
            say(f"{system.name} is left out of {', '.join(left_out)}: it makes no one vector of a text")
    sizes, speeds = sizes or {}, dict[str, float | None]()

    def missing_of(task: AbsTask, asked: Sequence[System]) -> list[System]:
        return [system for system in asked if _kept(system, task, results, prompts or {}) is None]

    plan = [(task, [_prompted(s, task, prompts or {}) for s in systems if s.fits(task)]) for task in tasks]
    left = {  # of each task: the size of its texts, as often as they are still to be read
        task.metadata.name: sizes.get(task.metadata.name, 1) * _passes(missing_of(task, asked)) for task, asked in plan
    }
    # A system has another revision for each task whose prompts differ; this one is the same for all.
    variants = {system.name: revision_of(system, _prompts_digest(prompts or {})) for system in systems}
    done, began, records = 0, time.monotonic(), []
    for place, (task, asked) in enumerate(plan):
        name, missing = task.metadata.name, missing_of(task, asked)  # another run may have measured some meanwhile
        shared = SharedVectors([s.encoder for s in missing if s.engine is None and s.encoder is not None and _dense(s)])
        if missing and not task.data_loaded:
            task.load_data()
        for system in asked:
            record = _kept(system, task, results, prompts or {})
            if record is None:
                if system.name not in speeds:
                    speeds[system.name] = tokens_per_second(system.encoder)
                record = measure(system, task, results, shared, prompts or {})
                run = _run(arguments)
                record = replace(record, tokens_per_s=speeds[system.name], run=run, variant=variants[system.name])
                record.write(results)
                say(f"{name}: {system.name} {100 * record.score:.2f} ({record.seconds['wall']:.0f} s)")
            records.append(record)
        done += left.pop(name)
        spent = time.monotonic() - began
        if missing:
            about = f", about {spent / done * sum(left.values()) / 60:.0f} min left" if any(left.values()) else ""
            say(f"{place + 1}/{len(tasks)} tasks after {spent / 60:.0f} min{about}")
    return records


def measure(system: System, task: AbsTask, results: Path, shared: SharedVectors, prompts: Mapping[str, str]) -> Record:
    """Evaluate one system on one task whose data is loaded."""
    revision = revision_of(system, _prompts_digest(prompts))
    meta = meta_of(system, revision)
    cache = mteb.ResultCache(results)
    cache.get_task_result_path(task.metadata.name, meta).unlink(missing_ok=True)  # what a killed run left
    torch.manual_seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002 - what mteb's own code draws from
    model = as_mteb_model(system, meta, shared)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, _per_query(task) as queries:
        # The classifiers that mteb fits are so small that a second thread only holds the first one up.
        limit = None if isinstance(task, AbsTaskRetrieval) else 1
        with warnings.catch_warnings(), threadpool_limits(limit, user_api="blas"):
            warnings.simplefilter("ignore")  # of official sets that have a newer version
            found = mteb.evaluate(
                model,
                task,
                cache=cache,
                prediction_folder=Path(folder) if task.metadata.type in ("STS", "PairClassification") else None,
                show_progress_bar=False,
                co2_tracker=False,
                public_only=False,
            )
        result = found.task_results[0]
        items = queries or _items(task, result, Path(folder))
    wall = time.perf_counter() - began
    encoder, engine = system.encoder, system.engine
    spent = model.spent if isinstance(model, SearchModel) else shared.spent[model.encoder.passes_digest]
    counts = model.counts if isinstance(task, AbsTaskRetrieval) else {}
    memory = {"process": round(peak_memory_kib() / 1024, 1)}
    if torch.cuda.is_available():
        memory["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return Record(
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
    """Return how many tokens of a fixed sample an encoder reads in a second, the median of some rounds."""
    if encoder is None:
        return None
    texts = [f"{document.title} {document.text}" for document in islice(python_documents(), SAMPLE)]
    encoder.encode(texts[:10])
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        tokens = int(encoder.encode(texts).tokens.sum())
        rates.append(tokens / (time.perf_counter() - began))
    return round(statistics.median(rates), 1)


def _dense(system: System) -> bool:
    return system.encoder is not None and "dense" in system.encoder.outputs


def _passes(systems: Sequence[System]) -> int:
    """Return how often a text is read for all of ``systems``."""
    return len({s.encoder.passes_digest if s.encoder and s.engine is None and _dense(s) else s.name for s in systems})


def _prompted(system: System, task: AbsTask, prompts: Mapping[str, str]) -> System:
    if system.encoder is None or not prompts:
        return system
    return system.with_prompts(prompts_for(prompts, task.metadata, system.encoder.spec.prompts))


def _prompts_digest(prompts: Mapping[str, str]) -> str:
    return f"prompts-{digest(dict(prompts))}" if prompts else ""


def _kept(system: System, task: AbsTask, results: Path, prompts: Mapping[str, str]) -> Record | None:
    """Return the record of an evaluation of the same data that was finished, under the name the system has now."""
    revision = revision_of(system, _prompts_digest(prompts))
    path = record_path(results, str(meta_of(system, revision).name), revision, task.metadata.name)
    found = Record.read(path) if path.exists() else None
    return replace(found, system=system.name) if found is not None and found.data == data_digest(task) else None


@contextmanager
def _per_query(task: AbsTask) -> Iterator[dict[str, Any]]:
    """Give a value that holds each query's main score once the task is done; it stays empty for other tasks."""
    items: dict[str, Any] = {}
    prefix = next((prefix for prefix in PER_QUERY if task.metadata.main_score.startswith(prefix)), None)
    if not isinstance(task, AbsTaskRetrieval) or prefix is None:
        yield items
        return
    key = PER_QUERY[prefix] + task.metadata.main_score.removeprefix(prefix)
    own: Any = task.task_specific_scores

    def keep(scores: dict[str, dict[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
        values = [round(scores[query][key], 5) for query in sorted(scores)]
        items.setdefault("groups", []).append({"values": values})
        items["kind"] = "query"
        extra: dict[str, float] = own(scores, *args, **kwargs)
        return extra

    watched: Any = task
    watched.task_specific_scores = keep
    try:
        yield items
    finally:
        del watched.task_specific_scores


def _items(task: AbsTask, result: Any, folder: Path) -> dict[str, Any]:
    """Return what a score that is not of queries is made of: pairs, or experiments."""
    groups: list[dict[str, Any]] = []
    if task.metadata.type in ("STS", "PairClassification"):
        predictions = json.loads((folder / task.prediction_file_name).read_text(encoding="utf-8"))
        column = "score" if task.metadata.type == "STS" else "labels"
        column = getattr(task, "label_column_name", column) if column == "labels" else column
        for subset, splits in predictions.items():
            for split, found in splits.items() if subset != "mteb_model_meta" else ():
                data: Any = task.dataset
                rows = data.get(subset, data)[split]
                gold = rows[column]
                gold = gold[0] if len(gold) == 1 and isinstance(gold[0], list) else list(gold)
                predicted = next(found[name] for name in ("cosine_scores", "similarity_scores") if found.get(name))
                groups.append({"predicted": [round(float(v), 5) for v in predicted], "gold": [float(v) for v in gold]})
        return {"kind": "pair", "groups": groups}
    for entries in result.scores.values():
        for entry in entries:
            if "scores_per_experiment" in entry:
                values = [row[task.metadata.main_score] for row in entry["scores_per_experiment"]]
            else:
                levels = entry.get("v_measures", {})  # a list of one level, or lists by the name of the level
                parts = levels.values() if isinstance(levels, dict) else [levels]
                values = [value for part in parts for value in part]
            groups.append({"values": [float(value) for value in values]})
    return {"kind": "experiment", "groups": groups}


def _run(arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to make the numbers again."""
    installed = {}
    for name in VERSIONS:
        try:
            installed[name] = version(name)
        except ImportError:
            continue
    date = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
    return {"date": date, "machine": describe(), "seed": SEED, "versions": installed, "arguments": list(arguments)}
