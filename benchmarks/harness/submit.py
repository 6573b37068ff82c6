"""Submission to mteb's leaderboard: a model's description, its results, and a checklist of what is missing.

The leaderboard takes two pull requests: the description as a file of ``mteb/models/model_implementations`` in
github.com/embeddings-benchmark/mteb, and the result files in github.com/embeddings-benchmark/results. Nothing is sent:
`write_submission` writes a folder with both. It never includes Local… tasks.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mteb
from mteb.models import MultiVectorWrapper, SentenceTransformerEncoderWrapper
from mteb.models.model_meta import ModelMeta, ScoringFunction
from pydantic import ValidationError

from benchmarks.harness.checklist import Submission, checklist_of, is_official
from benchmarks.harness.score_records import ScoreRecord, load_records
from benchmarks.harness.table import check_system, names_of
from benchmarks.harness.tasks import benchmark_of
from embedserve import EmbedserveError, InputError
from embedserve.errors import CorruptFileError

LOADERS: dict[str, Any] = {
    "dense": SentenceTransformerEncoderWrapper,
    "late-interaction": MultiVectorWrapper,
}  # by model type
# Strategies saved with modules of sentence-transformers only: their folders load without embedserve.
STOCK = ("mean", "last_token", "weighted_mean", "embedfilter", "as_saved")
STOCK_FIELDS = {"attention": (None, "causal"), "template": (None, ""), "pool_prompt": (None, True)}


def write_submission(
    results: Path,
    output: Path,
    system: str,
    name: str,
    *,
    revision: str | None = None,
    benchmark: str = "MTEB(eng, v2)",
    fields: Mapping[str, Any] | None = None,
) -> Submission:
    """Write the file for mteb, the folder of results and ``CHECKLIST.md`` to ``output``.

    Args:
        results: Results folder of an evaluation, see `score_records`.
        output: New or empty folder.
        system: Name of the system in tables.
        name: Name of the model on the hub, ORG/MODEL.
        revision: Commit on the hub with the evaluated model. Default: the digest of the system's settings.
        benchmark: Benchmark whose tasks are expected.
        fields: Fields of mteb's ``ModelMeta``, such as ``license``. Default: measured values, else None.

    Raises:
        InputError: The system or benchmark is unknown, the name has no organisation, mteb rejects a field, or the
            folder is not empty.
        CorruptFileError: A result file of mteb is missing or damaged.
        EmbedserveError: mteb cannot read the written files.
    """
    records = load_records(results)
    check_system(system, records, "system")
    selected = [record for named, record in zip(names_of(records), records, strict=True) if named == system]
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"--name must be ORG/MODEL, as on the hub, got {name!r}", field="name")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty; name a new folder", field="output")
    tasks = benchmark_of(benchmark).tasks
    meta = describe(results, selected, name, revision or selected[0].variant or selected[0].revision, fields or {})
    official = [record for record in selected if is_official(record.task)]
    local = [record.task for record in selected if record not in official]
    folder = output / "results" / meta.model_name_as_path() / str(meta.revision)
    _copy(results, official, folder, meta)
    code = output / f"{_identifier(name)}.py"
    code.write_text(source_of(meta), encoding="utf-8")
    submission = Submission(meta, folder, code, [record.task for record in official], local, selected)
    check(submission, output)
    text = checklist_of(submission, benchmark, tasks, is_revision_given=revision is not None)
    (output / "CHECKLIST.md").write_text(text, encoding="utf-8")
    return replace(submission, checklist=text)


def describe(
    results: Path, records: Sequence[ScoreRecord], name: str, revision: str, fields: Mapping[str, Any]
) -> ModelMeta:
    """Return mteb's description of a system; ``fields`` override the values of the harness.

    Raises:
        InputError: mteb rejects a field.
        CorruptFileError: The description saved by the harness is missing or damaged.
    """
    path = _result_path(results, records[0]).with_name("model_meta.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kinds = values["model_type"]
        values = {key: value for key, value in values.items() if key in ModelMeta.model_fields}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} does not describe a model ({error}); {AGAIN}") from None
    loader = LOADERS.get(kinds[0]) if records[0].engine is None else None
    prompts = prompts_of(records)
    values |= {
        "name": name,
        "revision": revision,
        "loader": loader,
        "loader_kwargs": {
            **({"model_prompts": prompts} if prompts else {}),
            **({"trust_remote_code": True} if loader is not None and not is_stock(records[0]) else {}),
        },
        "use_instructions": bool(prompts),
        "adapted_from": _backbone(records[0]),
        **fields,
    }
    try:
        return ModelMeta(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        message = f"mteb rejects {field} {values.get(field)!r}: {first['msg']}"
        raise InputError(message, field=field) from None


AGAIN = "delete the system's records and run the evaluation again with the same --results"


def _backbone(record: ScoreRecord) -> str | None:
    """Return the backbone's name on the hub, or None."""
    spec = record.spec or {}
    name = str(spec.get("backbone", ""))
    return name if name.count("/") == 1 and name[0] not in "./~" and spec.get("strategy") != "as_saved" else None


def is_stock(record: ScoreRecord) -> bool:
    """Return whether the encoder is saved with modules of sentence-transformers only."""
    spec = record.spec or {}
    custom_posts = [post for post in spec.get("post", []) if not str(post).startswith(("truncate", "embedfilter"))]
    plain = all(spec.get(field, defaults[0]) in defaults for field, defaults in STOCK_FIELDS.items())
    return spec.get("strategy") in STOCK and not custom_posts and plain


def prompts_of(records: Sequence[ScoreRecord]) -> dict[str, str]:
    """Return the prompts for mteb's wrappers: by side, by kind of task, or by task if they differ.

    Texts of tasks without queries are encoded as documents; mteb looks up their prompt by the kind of task.
    """
    entries: dict[str, str] = {}
    sides = {(side, record.prompts.get(side, "")) for record in records if _searches(record) for side in SIDES}
    if len(sides) <= len(SIDES):
        entries |= {side: prompt for side, prompt in sorted(sides) if prompt}
    kinds = sorted({record.type for record in records if not (_searches(record) and len(sides) <= len(SIDES))})
    for kind in kinds:
        group = [record for record in records if record.type == kind]
        for side in SIDES if _searches(group[0]) else SIDES[1:]:
            end = f"-{side}" if _searches(group[0]) else ""
            prompts = {record.prompts.get(side, "") for record in group}
            named = {f"{kind}{end}": next(iter(prompts))} if len(prompts) == 1 else {}
            named = named or {f"{record.task}{end}": record.prompts.get(side, "") for record in group}
            entries |= {key: prompt for key, prompt in named.items() if prompt and not key.startswith("Local")}
    return entries


SIDES = ("query", "document")


def source_of(meta: ModelMeta) -> str:
    """Return the Python file for ``mteb/models/model_implementations``."""
    wrapper = None if meta.loader is None else getattr(meta.loader, "__name__", "")
    lines = [
        "from __future__ import annotations",
        "",
        "from mteb.models.model_meta import ModelMeta, ScoringFunction",
        *([f"from mteb.models.sentence_transformer_wrapper import {wrapper}"] if wrapper else []),
        "",
        f"{_identifier(str(meta.name).split('/')[1])} = {meta.to_python()}",
        "",
    ]
    text = "\n".join(lines)
    return text if ScoringFunction.__name__ in meta.to_python() else text.replace(", ScoringFunction", "", 1)


def check(submission: Submission, output: Path) -> None:
    """Raise `EmbedserveError` unless mteb reads back the description and every result."""
    loaded = [value for value in runpy.run_path(str(submission.code)).values() if isinstance(value, ModelMeta)]
    if loaded != [submission.meta]:
        raise EmbedserveError(f"{submission.code} does not load as the same description; please report it")
    loaded_results = mteb.ResultCache(output).load_results(models=[str(submission.meta.name)], include_remote=False)
    read = sorted(result.task_name for model in loaded_results.model_results for result in model.task_results)
    if read != sorted(submission.tasks):
        raise EmbedserveError(
            f"{submission.folder} holds {', '.join(submission.tasks)}, but mteb reads {', '.join(read) or 'none'}"
        )


def _copy(results: Path, official: Sequence[ScoreRecord], folder: Path, meta: ModelMeta) -> None:
    """Copy mteb's result files and run settings of the official tasks, and write the model's description."""
    folder.mkdir(parents=True)
    described = meta.to_dict()
    if meta.training_datasets is not None:
        described["training_datasets"] = sorted(meta.training_datasets)
    (folder / "model_meta.json").write_text(json.dumps(described, indent=4, default=str), encoding="utf-8")
    settings: dict[str, None] = {}
    for record in official:
        path = _result_path(results, record)
        try:
            text = path.read_text(encoding="utf-8")
            if json.loads(text)["task_name"] != record.task:
                raise ValueError("it is of another task")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{path} is not a result of {record.task} ({error}); {AGAIN}") from None
        (folder / path.name).write_text(text, encoding="utf-8")
        notes = path.with_name("run_settings.jsonl")
        lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
        settings |= {line: None for line in lines if line and json.loads(line)["task"] == record.task}
    if settings:
        (folder / "run_settings.jsonl").write_text("".join(f"{line}\n" for line in settings), encoding="utf-8")


def _result_path(results: Path, record: ScoreRecord) -> Path:
    path = mteb.ResultCache(results).get_task_result_path(record.task, record.model, record.revision)
    return Path(path)


def _searches(record: ScoreRecord) -> bool:
    return record.type in ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")


def _identifier(name: str) -> str:
    """Return a name as a valid Python identifier and file name."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_").lower() or "model"
    return f"model_{text}" if text[0].isdigit() else text
