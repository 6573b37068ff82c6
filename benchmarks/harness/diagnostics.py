"""Diagnostic tasks: mteb's task classes and metrics on sets that isolate one trait of an encoder each.

They do not measure quality: a report lists them separately and excludes them from every mean. docs/evaluation.md
describes each.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks.abstask import AbsTask

from benchmarks.common.eval_sets import RetrievalSet, read_retrieval
from benchmarks.encoding.needle import make_texts
from benchmarks.harness.diagnostic_sets import length_pairs, padded_sets, pseudo_query_set
from benchmarks.harness.local_sets import KINDS, ListedDataset, local_task, retrieval_splits
from benchmarks.harness.systems import digest
from benchmarks.harness.table import DIAGNOSTIC
from embedserve import InputError
from embedserve.errors import did_you_mean

RATIOS = (20, 50, 80, 90)  # per cent of noise
NEEDLE_SPLITS = {"train": 800, "test": 400}  # texts, half of each label
NEEDLE_SAMPLES = 300  # of each label, for one of the ten classifiers that mteb fits
SET = Path("retrieval", "squad-dev")  # below a folder of all sets
CLASSES = {type_: base for _, base, type_ in KINDS.values()}


def needle() -> list[AbsTask]:
    """Return the needle stress test (`benchmarks.encoding.needle`) at each noise ratio, as classification tasks."""
    return [_needle(ratio) for ratio in RATIOS]


def keywords(data: RetrievalSet) -> list[AbsTask]:
    """Return the retrieval of passages by their rarest words."""
    return [_retrieval("Keywords", pseudo_query_set(data, "keywords"))]


def parts(data: RetrievalSet) -> list[AbsTask]:
    """Return the retrieval of passages by a part of themselves."""
    return [_retrieval("Parts", pseudo_query_set(data, "part"))]


def length(data: RetrievalSet) -> list[AbsTask]:
    """Return retrieval with short and with padded relevant passages, and the correlation of cosine with length."""
    sets = padded_sets(data)
    lengths, first, second = length_pairs(data)
    columns = {"sentence1": first, "sentence2": second, "score": lengths}
    pairs = _task("LengthCosine", "STS", DatasetDict(test=Dataset.from_dict(columns)), columns)
    return [_retrieval("LengthShort", sets["short"]), _retrieval("LengthLong", sets["long"]), pairs]


def position(data: RetrievalSet) -> list[AbsTask]:
    """Return retrieval of long documents with the relevant passage at the start, in the middle or at the end."""
    sets = padded_sets(data)
    return [_retrieval(f"Position{name.capitalize()}", sets[name]) for name in ("start", "middle", "end")]


OF_A_SET: dict[str, Callable[[RetrievalSet], list[AbsTask]]] = {
    "keywords": keywords,
    "parts": parts,
    "length": length,
    "position": position,
}
NAMES = ("needle", *OF_A_SET)


def choose_diagnostics(names: Sequence[str], data: Path | None) -> tuple[list[AbsTask], dict[str, int]]:
    """Return diagnostic tasks, and the bytes of their texts by name.

    Args:
        names: Names in `NAMES`, or all.
        data: Folder of local sets that holds `SET`, or of one retrieval set; needle needs none.

    Raises:
        InputError: The diagnostic or the set does not exist, or the set is too small.
    """
    for name in names or [""]:
        if name not in (*NAMES, "all"):
            hint = did_you_mean(name, NAMES)
            message = f"unknown diagnostic {name!r}; {hint}known: {', '.join(NAMES)}, and all"
            raise InputError(message, field="diagnostics")
    chosen = NAMES if "all" in names else [name for name in NAMES if name in names]
    tasks: list[Any] = needle() if "needle" in chosen else []
    if of_a_set := [OF_A_SET[name] for name in chosen if name != "needle"]:
        read = _read(data)
        tasks += [task for make in of_a_set for task in make(read)]
    return tasks, {task.metadata.name: task.size for task in tasks}


def _read(data: Path | None) -> RetrievalSet:
    if data is None:
        message = "diagnostics other than needle need a retrieval set; give its folder with --data"
        raise InputError(message, field="data")
    folder = data if (data / "corpus.jsonl").exists() else data / SET
    try:
        return read_retrieval(folder)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        message = f"{folder} is not a retrieval set ({type(error).__name__}: {error}); set --data to one, or to"
        raise InputError(f"{message} a folder with {SET.as_posix()}", field="data") from error


def _needle(ratio: int) -> AbsTask:
    splits = {}
    for seed, (split, count) in enumerate(NEEDLE_SPLITS.items()):
        texts, labels = make_texts(count, ratio / 100, seed)
        splits[split] = {"text": texts, "label": labels}
    dataset = DatasetDict({split: ListedDataset.from_dict(columns) for split, columns in splits.items()})
    task: Any = _task(f"Needle{ratio}", "Classification", dataset, {**splits, "samples": NEEDLE_SAMPLES})
    task.samples_per_label = NEEDLE_SAMPLES
    typed: AbsTask = task
    return typed


def _retrieval(name: str, data: RetrievalSet) -> AbsTask:
    return _task(name, "Retrieval", {"default": retrieval_splits(data)}, dataclasses.asdict(data))


def _task(name: str, type_: str, dataset: Any, values: Any) -> AbsTask:
    """Return a task filled with ``dataset``; its digest is that of ``values``."""
    task: Any = local_task(f"{DIAGNOSTIC}{name}{type_}", CLASSES[type_], type_)
    task.dataset, task.data_loaded = dataset, True
    task.files_digest = digest(values)
    task.size = len(json.dumps(values))
    typed: AbsTask = task
    return typed
