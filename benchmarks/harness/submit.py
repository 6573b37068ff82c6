"""What mteb's leaderboard asks for: a model's description, its results, and a list of what is still missing.

The leaderboard takes two pull requests: the description as a file of ``mteb/models/model_implementations`` in
github.com/embeddings-benchmark/mteb, and the result files in github.com/embeddings-benchmark/results. Nothing is sent:
`write_submission` makes a folder with both. Local… tasks are never part of it.
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
}  # by the type of model
# Strategies that are saved as the library's own modules alone: such a folder loads without embedserve.
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
    """Write into ``output`` the file for mteb, the folder of results, and ``CHECKLIST.md``.

    Args:
        results: Folder of an evaluation, see `records`.
        output: New or empty folder.
        system: Its name in tables.
        name: Of the model on the hub, ORG/MODEL.
        revision: The commit of the hub that holds what was evaluated; the system's own revision if left out.
        benchmark: Whose tasks are looked for.
        fields: Of mteb's ``ModelMeta``, such as ``license``; what is left out and not measured stays None.

    Raises:
        InputError: No such system or benchmark, a name without an organisation, a field that mteb refuses, a folder
            that holds something.
        CorruptFileError: A result of mteb's is missing or damaged.
        EmbedserveError: mteb cannot read what was written.
    """
    records = load_records(results)
    check_system(system, records, "system")
    own = [record for named, record in zip(names_of(records), records, strict=True) if named == system]
    if name.count("/") != 1 or not all(name.split("/")):
        raise InputError(f"--name must be ORG/MODEL, as on the hub, got {name!r}", field="name")
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty; name a new folder", field="output")
    tasks = benchmark_of(benchmark).tasks
    meta = describe(results, own, name, revision or own[0].variant or own[0].revision, fields or {})
    official = [record for record in own if is_official(record.task)]
    local = [record.task for record in own if record not in official]
    folder = output / "results" / meta.model_name_as_path() / str(meta.revision)
    _copy(results, official, folder, meta)
    code = output / f"{_identifier(name)}.py"
    code.write_text(source_of(meta), encoding="utf-8")
    made = Submission(meta, folder, code, [record.task for record in official], local, own)
    check(made, output)
    text = checklist_of(made, benchmark, tasks, is_revision_given=revision is not None)
    (output / "CHECKLIST.md").write_text(text, encoding="utf-8")
    return replace(made, checklist=text)


def describe(
    results: Path, own: Sequence[ScoreRecord], name: str, revision: str, fields: Mapping[str, Any]
) -> ModelMeta:
    """Return mteb's description of a system: what the harness measured, with ``fields`` in the place of its own.

    Raises:
        InputError: mteb refuses a field.
        CorruptFileError: What the harness kept is missing or damaged.
    """
    path = _result_path(results, own[0]).with_name("model_meta.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kinds = values["model_type"]
        values = {key: value for key, value in values.items() if key in ModelMeta.model_fields}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} does not describe a model ({error}); {AGAIN}") from None
    loader = LOADERS.get(kinds[0]) if own[0].engine is None else None
    prompts = prompts_of(own)
    values |= {
        "name": name,
        "revision": revision,
        "loader": loader,
        "loader_kwargs": {
            **({"model_prompts": prompts} if prompts else {}),
            **({"trust_remote_code": True} if loader is not None and not is_stock(own[0]) else {}),
        },
        "use_instructions": bool(prompts),
        "adapted_from": _backbone(own[0]),
        **fields,
    }
    try:
        return ModelMeta(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        message = f"mteb refuses {field} {values.get(field)!r}: {first['msg']}"
        raise InputError(message, field=field) from None


AGAIN = "run the evaluation again with the same --results, after deleting the system's records"


def _backbone(record: ScoreRecord) -> str | None:
    """Return the backbone's name on the hub, where the encoder was made of one."""
    spec = record.spec or {}
    name = str(spec.get("backbone", ""))
    return name if name.count("/") == 1 and name[0] not in "./~" and spec.get("strategy") != "as_saved" else None


def is_stock(record: ScoreRecord) -> bool:
    """Say whether the encoder is saved as modules of sentence-transformers alone, which load without embedserve."""
    spec = record.spec or {}
    own_posts = [post for post in spec.get("post", []) if not str(post).startswith(("truncate", "embedfilter"))]
    plain = all(spec.get(field, usual[0]) in usual for field, usual in STOCK_FIELDS.items())
    return spec.get("strategy") in STOCK and not own_posts and plain


def prompts_of(records: Sequence[ScoreRecord]) -> dict[str, str]:
    """Return the prompts as mteb's wrappers take them: by side, by kind of task, or by task where they differ.

    Texts of tasks that know no queries are encoded as documents here; mteb looks for such a prompt by the kind of task.
    """
    found: dict[str, str] = {}
    sides = {(side, record.prompts.get(side, "")) for record in records if _searches(record) for side in SIDES}
    if len(sides) <= len(SIDES):
        found |= {side: prompt for side, prompt in sorted(sides) if prompt}
    kinds = sorted({record.type for record in records if not (_searches(record) and len(sides) <= len(SIDES))})
    for kind in kinds:
        group = [record for record in records if record.type == kind]
        for side in SIDES if _searches(group[0]) else SIDES[1:]:
            end = f"-{side}" if _searches(group[0]) else ""
            prompts = {record.prompts.get(side, "") for record in group}
            named = {f"{kind}{end}": next(iter(prompts))} if len(prompts) == 1 else {}
            named = named or {f"{record.task}{end}": record.prompts.get(side, "") for record in group}
            found |= {key: prompt for key, prompt in named.items() if prompt and not key.startswith("Local")}
    return found


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


def check(made: Submission, output: Path) -> None:
    """Raise `EmbedserveError` unless mteb reads back the description and every result."""
    loaded = [value for value in runpy.run_path(str(made.code)).values() if isinstance(value, ModelMeta)]
    if loaded != [made.meta]:
        raise EmbedserveError(f"{made.code} does not give back the description; please report it")
    found = mteb.ResultCache(output).load_results(models=[str(made.meta.name)], include_remote=False)
    read = sorted(result.task_name for model in found.model_results for result in model.task_results)
    if read != sorted(made.tasks):
        raise EmbedserveError(f"of {', '.join(made.tasks)} mteb reads {', '.join(read) or 'none'} in {made.folder}")


def _copy(results: Path, official: Sequence[ScoreRecord], folder: Path, meta: ModelMeta) -> None:
    """Copy mteb's result files, and of its notes on the runs those of these tasks; describe the model beside them."""
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
                raise ValueError("another task's")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(f"{path} is no result of {record.task} ({error}); {AGAIN}") from None
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
    """Return a name as Python and file systems take it."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_").lower() or "model"
    return f"model_{text}" if text[0].isdigit() else text
