"""Markdown checklist of a submission: what is complete, what is missing, what the author must confirm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from mteb.models.model_meta import ModelMeta

from benchmarks.harness.provenance import command_of
from benchmarks.harness.score_records import ScoreRecord
from embedserve.errors import did_you_mean


@dataclass(frozen=True)
class Submission:
    """The files of a submission.

    Attributes:
        meta: Description of the model for mteb.
        folder: Result files, in the layout of mteb's results repository.
        code: Python file with the description.
        tasks: Official tasks whose results are in the folder.
        local: Omitted tasks: local ones, and those that mteb does not know.
        records: Records of the system.
        checklist: Markdown.
    """

    meta: ModelMeta
    folder: Path
    code: Path
    tasks: list[str]
    local: list[str]
    records: list[ScoreRecord]
    checklist: str = ""


# Fields of mteb's ModelMeta that reviewers expect, with their meaning.
EXPECTED = {
    "license": "--license: of the weights; those of the backbone and the training data count too",
    "release_date": "--release-date: YYYY-MM-DD, when the revision was published",
    "reference": "--reference: the page of the model",
    "n_parameters": "the number of parameters",
    "n_embedding_parameters": "parameters of the embedding table",
    "memory_usage_mb": "size of the weights in MB",
    "max_tokens": "maximum number of tokens",
    "embed_dim": "dimension of a vector",
    "public_training_code": "--public-training-code: where it is, if it is public",
    "public_training_data": "--public-training-data: where they are, if they are public",
    "adapted_from": "--adapted-from: the backbone on the hub; what it was trained on counts as training data too",
    "contacts": "--contacts: names on GitHub",
}
OPTIONAL = ("public_training_code", "public_training_data", "adapted_from", "contacts")  # None may be correct


def checklist_of(submission: Submission, benchmark: str, tasks: Sequence[Any], *, is_revision_given: bool) -> str:
    """Return the checklist: description, results, training data, prompts and what the author must confirm.

    Args:
        submission: The written files, already checked with mteb.
        benchmark: Name of the benchmark.
        tasks: Tasks of the benchmark.
        is_revision_given: Whether the author named the commit on the hub.
    """
    parts = {
        "Description": _description(submission, is_revision_given=is_revision_given),
        f"Results for {benchmark}": _results(submission, benchmark, tasks),
        "Training data": _training(submission, benchmark, tasks),
        "Prompts": _prompts(submission),
        "Only you can confirm": CONFIRM,
    }
    open_points = sum(not is_done for lines in parts.values() for is_done, _ in lines)
    texts = [f"# Submission of {submission.meta.name}", "", f"{open_points} open points."]
    for title, lines in parts.items():
        texts += ["", f"## {title}", "", *(f"- [{'x' if is_done else ' '}] {text}" for is_done, text in lines)]
    return "\n".join([*texts, "", *STEPS, ""])


Line = tuple[bool, str]  # whether the point is done, and its text

CONFIRM: list[Line] = [
    (False, "The model is public: its weights on the hub, or an API."),
    (False, "The hub's revision holds exactly what was evaluated, and `mteb.get_model(NAME, REVISION)` loads it."),
    (False, "The results come from that reference implementation, checked on a representative set of tasks."),
    (False, "No evaluation set, training splits included, was used for training, or its use is disclosed."),
    (False, "The model has a card or a report."),
]
STEPS = (
    "## How to submit",
    "",
    "1. Put the Python file into `mteb/models/model_implementations` of github.com/embeddings-benchmark/mteb.",
    "2. Put `results/` into github.com/embeddings-benchmark/results, with this list in the pull request.",
    "3. The model appears on the leaderboard a day after both are merged.",
)


def _description(submission: Submission, *, is_revision_given: bool) -> list[Line]:
    meta = submission.meta
    lines = [(True, f"`{submission.code.name}` loads as the same description in mteb {mteb.__version__}.")]
    if not is_revision_given:
        text = f"`revision` is a digest of the settings, `{meta.revision}`: give the commit on the hub with --revision."
        lines.append((False, text))
    if meta.loader is None:
        why = "an engine searched" if submission.records[0].engine is not None else "no loader of mteb fits"
        lines.append((False, f"`loader` has no value: {why}; write one, or submit the system without its engine."))
    elif "trust_remote_code" in meta.loader_kwargs:
        text = "The model needs modules of embedserve: mteb's machines must install it and trust its code"
        if "late-interaction" in meta.model_type:
            text += "; a folder written by embedserve.loading.colbert_folders.save_pylate needs neither"
        lines.append((False, f"{text}."))
    for field, what in EXPECTED.items():
        if getattr(meta, field) is None:
            hint = "; None means that it has none" if field in OPTIONAL else ""
            lines.append((False, f"`{field}` has no value: {what}{hint}."))
    return lines


def _results(submission: Submission, benchmark: str, tasks: Sequence[Any]) -> list[Line]:
    expected = {task.metadata.name: task for task in tasks}
    present = [name for name in expected if name in submission.tasks]
    missing = [name for name in expected if name not in submission.tasks]
    lines = [(not missing, f"{len(present)} of its {len(expected)} tasks have results that mteb can read.")]
    if missing:
        lines.append((False, f"Not run: {', '.join(missing)}."))
    for name in present:
        result = mteb.results.TaskResult.from_disk(submission.folder / f"{name}.json")
        lines += [(False, f"{name}: {what}.") for what in _missing_parts(result, expected[name])]
    if others := [name for name in submission.tasks if name not in expected]:
        lines.append((True, f"Also included, from other benchmarks: {', '.join(others)}."))
    if submission.local:
        lines.append((True, f"Omitted, because they are not tasks of mteb: {', '.join(submission.local)}."))
    official = [record for record in submission.records if record.task in submission.tasks]
    if any("--data" in record.run.get("arguments", []) for record in official):
        text = "Tasks were read from local files (--data), which were not checked against mteb's revision of the set"
        lines.append((False, f"{text}: run them again from the hub."))
    if not all(command_of(record) for record in official):
        lines.append((False, "Some records have no command, so the source of their data is unknown."))
    return lines


def is_official(task: str) -> bool:
    """Say whether a task is mteb's own."""
    if task.startswith("Local"):
        return False
    try:
        mteb.get_task(task)
    except KeyError:
        return False
    return True


def _missing_parts(result: Any, task: Any) -> list[str]:
    """Return the splits and subsets that a result lacks, and whether it is of another revision."""
    problems = []
    splits = [split for split in task.eval_splits if split not in result.scores]
    if splits:
        problems.append(f"no result for the split {', '.join(splits)}")
    subsets = {entry["hf_subset"] for entries in result.scores.values() for entry in entries}
    if missing := sorted(set(task.hf_subsets) - subsets):
        problems.append(f"no result for the subset {', '.join(missing)}")
    if result.dataset_revision != task.metadata.revision:
        problems.append(f"dataset revision {result.dataset_revision}, mteb has {task.metadata.revision}")
    return problems


def _training(submission: Submission, benchmark: str, tasks: Sequence[Any]) -> list[Line]:
    """Return what is known of the training data, from which the leaderboard decides what is zero-shot."""
    named = submission.meta.training_datasets
    if named is None:
        text = "`training_datasets` is not stated, so no task counts as zero-shot: list with --training-datasets "
        text += "all sets of mteb that the model, its backbone and its teachers were trained on, or give none"
        return [(False, f"{text} if there are none.")]
    stated = ", ".join(sorted(named)) or "none"
    lines = [(True, f"`training_datasets`: {stated}.")]
    if unknown := sorted(name for name in named if not is_official(name)):
        known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]  # takes seconds
        for name in unknown:
            text = f"mteb has no set {name}; {did_you_mean(name, known)}it is ignored for zero-shot."
            lines.append((False, text))
    share = submission.meta.zero_shot_percentage(tasks)
    seen = sorted({task.metadata.name for task in tasks} & (submission.meta.get_training_datasets() or set()))
    text = f"{share} % of {benchmark} is zero-shot"
    lines.append((True, f"{text}; trained on {', '.join(seen)} or similar sets." if seen else f"{text}."))
    return lines


def _prompts(submission: Submission) -> list[Line]:
    prompts = submission.meta.loader_kwargs.get("model_prompts", {})
    if not prompts:
        return [(True, "No prompts.")]
    lines = [(True, f"`{key}`: {json.dumps(prompt, ensure_ascii=False)}") for key, prompt in prompts.items()]
    return [*lines, (True, "They are in `loader_kwargs`; mteb's wrapper prepends them as this evaluation did.")]
