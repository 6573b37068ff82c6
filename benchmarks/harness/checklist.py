"""What is done of a submission, what is missing, and what only its author can say; as Markdown."""

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
    """What was written.

    Attributes:
        meta: mteb's description.
        folder: Of the results, in the layout of the repository of results.
        code: The file for mteb.
        tasks: Official tasks whose results are in the folder.
        local: Tasks that are left out: Local… ones, and those that mteb does not know.
        records: Of the system.
        checklist: Markdown.
    """

    meta: ModelMeta
    folder: Path
    code: Path
    tasks: list[str]
    local: list[str]
    records: list[ScoreRecord]
    checklist: str = ""


# Fields of mteb's ModelMeta that a reviewer asks for, and what stands in them.
WANTED = {
    "license": "--license: that of the weights; the backbone's and the training data's count too",
    "release_date": "--release-date: YYYY-MM-DD, when the revision was published",
    "reference": "--reference: the page of the model",
    "n_parameters": "the number of parameters",
    "n_embedding_parameters": "those of the table of embeddings",
    "memory_usage_mb": "MB of the weights",
    "max_tokens": "tokens that are read",
    "embed_dim": "dimensions of a vector",
    "public_training_code": "--public-training-code: where it is, if it is public",
    "public_training_data": "--public-training-data: where they are, if they are public",
    "adapted_from": "--adapted-from: the backbone on the hub; what it was trained on counts as training data too",
    "contacts": "--contacts: names on GitHub",
}
SUPPOSED = ("public_training_code", "public_training_data", "adapted_from", "contacts")  # None can be the truth


def checklist_of(made: Submission, benchmark: str, tasks: Sequence[Any], *, is_revision_given: bool) -> str:
    """Return the list: of the description, the results, the training data and what its author must confirm.

    Args:
        made: What was written; mteb has read it.
        benchmark: The name of the benchmark.
        tasks: Its tasks.
        is_revision_given: Whether the author named the commit.
    """
    parts = {
        "Description": _description(made, is_revision_given=is_revision_given),
        f"Results for {benchmark}": _results(made, benchmark, tasks),
        "Training data": _training(made, benchmark, tasks),
        "Prompts": _prompts(made),
        "Only you can confirm": CONFIRM,
    }
    open_ones = sum(not is_done for lines in parts.values() for is_done, _ in lines)
    texts = [f"# Submission of {made.meta.name}", "", f"{open_ones} points are open."]
    for title, lines in parts.items():
        texts += ["", f"## {title}", "", *(f"- [{'x' if is_done else ' '}] {text}" for is_done, text in lines)]
    return "\n".join([*texts, "", *STEPS, ""])


Line = tuple[bool, str]  # whether it is done, and what

CONFIRM: list[Line] = [
    (False, "The model is public: its weights on the hub, or an API."),
    (False, "The hub's revision holds exactly what was evaluated, and `mteb.get_model(NAME, REVISION)` loads it."),
    (False, "The results come from that reference implementation, tried on a representative set of tasks."),
    (False, "Nothing was trained on evaluation sets, their training splits included, or it is disclosed."),
    (False, "The model has a card or a report."),
]
STEPS = (
    "## How to submit",
    "",
    "1. Put the Python file into `mteb/models/model_implementations` of github.com/embeddings-benchmark/mteb.",
    "2. Put `results/` into github.com/embeddings-benchmark/results, with this list in the pull request.",
    "3. A day after both are merged the model is on the leaderboard.",
)


def _description(made: Submission, *, is_revision_given: bool) -> list[Line]:
    meta = made.meta
    lines = [(True, f"`{made.code.name}` gives back the description in mteb {mteb.__version__}.")]
    if not is_revision_given:
        text = f"`revision` is the harness's own, `{meta.revision}`: name the commit on the hub with --revision."
        lines.append((False, text))
    if meta.loader is None:
        what = "an engine searched" if made.records[0].engine is not None else "no loader of mteb fits"
        lines.append((False, f"`loader` has no value, for {what}: write one, or submit the system without its engine."))
    elif "trust_remote_code" in meta.loader_kwargs:
        text = "The model needs modules of embedserve: mteb's machines must have it installed, and trust its code"
        if "late-interaction" in meta.model_type:
            text += "; a folder written by embedserve.loading.colbert_folders.save_pylate needs neither"
        lines.append((False, f"{text}."))
    for field, what in WANTED.items():
        if getattr(meta, field) is None:
            hint = "; None stands for: there is none" if field in SUPPOSED else ""
            lines.append((False, f"`{field}` has no value: {what}{hint}."))
    return lines


def _results(made: Submission, benchmark: str, tasks: Sequence[Any]) -> list[Line]:
    wanted = {task.metadata.name: task for task in tasks}
    have = [name for name in wanted if name in made.tasks]
    lacking = [name for name in wanted if name not in made.tasks]
    lines = [(not lacking, f"{len(have)} of its {len(wanted)} tasks have a result, and mteb reads them.")]
    if lacking:
        lines.append((False, f"Not run: {', '.join(lacking)}."))
    for name in have:
        result = mteb.results.TaskResult.from_disk(made.folder / f"{name}.json")
        lines += [(False, f"{name}: {what}.") for what in _lacking_parts(result, wanted[name])]
    if others := [name for name in made.tasks if name not in wanted]:
        lines.append((True, f"Also there, of other benchmarks: {', '.join(others)}."))
    if made.local:
        lines.append((True, f"Left out, for they are no tasks of mteb: {', '.join(made.local)}."))
    if any("--data" in record.run.get("arguments", []) for record in made.records if record.task in made.tasks):
        text = "Tasks were read from local files (--data), which nothing compared with mteb's revision of the set"
        lines.append((False, f"{text}: run them again from the hub."))
    if not all(command_of(record) for record in made.records if record.task in made.tasks):
        lines.append((False, "Some records name no command, so it is not known where their data came from."))
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


def _lacking_parts(result: Any, task: Any) -> list[str]:
    """Return which splits and subsets of a task a result has not, and whether it is of another revision."""
    found = []
    splits = [split for split in task.eval_splits if split not in result.scores]
    if splits:
        found.append(f"no result for the split {', '.join(splits)}")
    subsets = {entry["hf_subset"] for entries in result.scores.values() for entry in entries}
    if missing := sorted(set(task.hf_subsets) - subsets):
        found.append(f"no result for the subset {', '.join(missing)}")
    if result.dataset_revision != task.metadata.revision:
        found.append(f"of revision {result.dataset_revision} of the set, mteb has {task.metadata.revision}")
    return found


def _training(made: Submission, benchmark: str, tasks: Sequence[Any]) -> list[Line]:
    """Return what is known of the training data: without it the leaderboard cannot say what is zero-shot."""
    named = made.meta.training_datasets
    if named is None:
        text = "`training_datasets` is not stated, so nothing is known to be zero-shot: name with --training-datasets "
        text += "all sets of mteb that the model, its backbone and its teachers were trained on, or say none"
        return [(False, f"{text} if that is so.")]
    stated = ", ".join(sorted(named)) or "none"
    lines = [(True, f"`training_datasets`: {stated}.")]
    if unknown := sorted(name for name in named if not is_official(name)):
        known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]  # seconds: it makes them all
        for name in unknown:
            text = f"mteb has no set {name}; {did_you_mean(name, known)}it says nothing about zero-shot."
            lines.append((False, text))
    share = made.meta.zero_shot_percentage(tasks)
    seen = sorted({task.metadata.name for task in tasks} & (made.meta.get_training_datasets() or set()))
    text = f"{share} % of {benchmark} is zero-shot by that"
    lines.append((True, f"{text}; trained on {', '.join(seen)} or what is like it." if seen else f"{text}."))
    return lines


def _prompts(made: Submission) -> list[Line]:
    prompts = made.meta.loader_kwargs.get("model_prompts", {})
    if not prompts:
        return [(True, "None were used.")]
    lines = [(True, f"`{key}`: {json.dumps(prompt, ensure_ascii=False)}") for key, prompt in prompts.items()]
    return [*lines, (True, "They stand in `loader_kwargs`; mteb's wrapper puts them in front as it did here.")]
