"""``embedserve index build``: from a source of any size to a collection, in shards that survive interruptions."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.console import be_quiet, load_encoder, note, out, out_json
from api.cli.progress import JsonMeter, Meter, ProgressMeter, clock
from api.cli.shared_options import (
    MODEL_HELP,
    SOURCE_HELP,
    DataDir,
    Device,
    Format,
    IdField,
    Json,
    Strategy,
    TextField,
    TitleField,
)
from api.settings import load_settings
from embedserve.errors import InputError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing.collections.manifest import Manifest
    from indexing.jobs.build_plan import BuildPlan
    from indexing.jobs.job_report import JobProgress, JobReport

SAMPLE = "python-docs"
STAGES = {"encode": "embedding", "write": "writing  ", "index": "indexing "}
Progress = Literal["text", "json"]
Source = Annotated[
    str, typer.Argument(help=f"{SOURCE_HELP} Or python-docs, the documentation of the installed Python packages.")
]
TargetCollection = Annotated[
    str | None,
    typer.Option(
        "--collection",
        "-c",
        metavar="NAME",
        help="Name of the collection. Default: the name of the source.",
        show_default=False,
    ),
]
BuildModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        "--encoder",
        metavar="MODEL",
        help=f"{MODEL_HELP} Default: EMBEDSERVE_MODEL, or nano.",
        show_default=False,
    ),
]
IndexKind = Annotated[
    str,
    typer.Option("--index", metavar="KIND", help="auto, flat, fastscan, ivf, hnsw, exact, or a faiss factory string."),
]
MetadataFields = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD",
        help="Field to store as metadata; repeatable. Default: all other fields.",
        show_default=False,
    ),
]
OnError = Annotated[
    Literal["dead-letter", "stop"],
    typer.Option(help="For an invalid record: skip it and write it to the dead-letter file, or stop."),
]
DeadLetters = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File for skipped records. Default: dead-letters.jsonl in the job folder.",
        show_default=False,
    ),
]
PassageTokens = Annotated[
    int | None,
    typer.Option(metavar="N", help="Split documents into passages of at most N tokens.", show_default=False),
]
Overlap = Annotated[int, typer.Option(metavar="N", help="Start each passage with up to N tokens of the previous one.")]
ShardSize = Annotated[
    int, typer.Option(metavar="N", help="Records per shard: the work that an interruption can cost per worker.")
]
MemoryMb = Annotated[
    int, typer.Option(metavar="MB", help="Memory for texts and vectors in flight, besides model and index.")
]
EngineName = Annotated[Literal["local", "ray"], typer.Option(help="Encode on this machine or on a Ray cluster.")]
Replicas = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Number of encoders: processes (one per GPU), or actors on Ray. Default: one encoder in "
        "this process; on Ray, one per GPU or core of the cluster.",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address of a running Ray cluster, or auto. Default: start Ray on this machine.",
        show_default=False,
    ),
]
JobFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for shards and reports, shared by all workers. Default: DATA_DIR/jobs/NAME.",
        show_default=False,
    ),
]
DropShards = Annotated[
    bool, typer.Option("--drop-shards", help="Delete the shards at the end; a later build cannot reuse them.")
]
ProgressFormat = Annotated[Progress, typer.Option(help="Show progress on stderr as text or as JSON lines.")]


def build(
    source: Source,
    collection: TargetCollection = None,
    model: BuildModel = None,
    strategy: Strategy = None,
    index: IndexKind = "auto",
    fmt: Format = None,
    id_field: IdField = None,
    text_field: TextField = "text",
    title_field: TitleField = "title",
    metadata_field: MetadataFields = None,
    on_error: OnError = "dead-letter",
    dead_letters: DeadLetters = None,
    passage_tokens: PassageTokens = None,
    overlap: Overlap = 0,
    shard_size: ShardSize = 2000,
    memory: MemoryMb = 512,
    engine: EngineName = "local",
    replicas: Replicas = None,
    ray_address: RayAddress = None,
    job_dir: JobFolder = None,
    drop_shards: DropShards = False,
    progress: ProgressFormat = "text",
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Build a collection from a source, replacing the existing collection of that name.

    The source is read as a stream and embedded in shards, which are kept in the job folder. After an interruption, run
    the same command again: it reuses the complete shards. If documents were appended to the source, only the new ones
    are embedded. Searches use the old collection until the new one is complete. Invalid records are skipped and
    written to a dead-letter file.

    Examples:
      embedserve index build ./notes
      embedserve index build products.csv --id-field sku --text-field description --title-field name
      embedserve index build corpus.jsonl.zst --collection papers --passage-tokens 256 --overlap 32
      embedserve index build corpus.parquet --engine ray --ray-address auto --replicas 8
      zcat more.jsonl.gz | embedserve index build - --collection more
      embedserve index build python-docs
    """  # fmt: skip
    from indexing.jobs.build_plan import BuildPlan

    settings = load_settings(model=model, device=device, data_dir=data_dir)
    plan = BuildPlan(
        source=source,
        collection=collection or name_from(source),
        data_dir=settings.data_dir,
        model=settings.model,
        strategy=strategy,
        device=settings.device,
        format=fmt,
        id_field=id_field,
        text_field=text_field,
        title_field=title_field,
        metadata_fields=None if metadata_field is None else tuple(metadata_field),
        index=index,
        passage_tokens=passage_tokens,
        overlap=overlap,
        shard_size=shard_size,
        memory_mb=memory,
        on_error=on_error,
        dead_letters=dead_letters,
        drop_shards=drop_shards,
        engine=engine,
        replicas=replicas,
        ray_address=ray_address,
        job_dir=job_dir,
    )
    execute(plan, progress, as_json=json)
    if not json:
        option = f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""
        note(f'try: embedserve search --collection {plan.collection}{option} "your question"')


def run_saved_plan(
    plan: Annotated[Path, typer.Argument(metavar="FILE", help="A build plan as JSON.")], json: Json = False
) -> None:
    """Run a build plan that the service saved, with progress and result as JSON."""
    from indexing.jobs.build_plan import BuildPlan

    execute(BuildPlan.read(plan), "json", as_json=json)


def execute(plan: BuildPlan, progress: Progress, *, as_json: bool) -> None:
    """Build the collection of a plan and print the result.

    Raises:
        InputError: The name of the collection is an alias, or an option is invalid.
    """
    from indexing.collections.aliases import list_aliases
    from indexing.collections.catalog import collection_path
    from indexing.collections.manifest import read_manifest
    from indexing.jobs.build_plan import run_plan

    if plan.collection in (aliases := list_aliases(plan.data_dir)):
        target = aliases[plan.collection]
        message = f"{plan.collection!r} is an alias of collection {target!r}; build that one, or choose another name"
        raise InputError(message, field="collection")
    encoder = load_encoder(plan.model, "cpu" if plan.engine == "ray" else plan.device, plan.strategy)
    meter: ProgressMeter = Meter(STAGES["encode"]) if progress == "text" else JsonMeter()

    def show(state: JobProgress) -> None:
        if state.stage == "stop":
            meter.close()
            note("\nstopping after the current batch; press Ctrl-C again to stop immediately")
        else:
            stage = STAGES[state.stage] if progress == "text" else state.stage
            meter.update(stage, state.done, state.total, state.resumed)

    try:
        report = run_plan(plan, encoder, partial(load_replica, plan.model, plan.strategy), show)
    except KeyboardInterrupt:
        meter.close()
        note(f"complete shards ({plan.shard_size:,} records each) are kept; run the same command again to continue")
        raise
    finally:
        meter.close()
    print_result(plan, report, read_manifest(collection_path(plan.data_dir, plan.collection)), encoder, as_json=as_json)


def print_result(plan: BuildPlan, report: JobReport, manifest: Manifest, encoder: Encoder, *, as_json: bool) -> None:
    """Print the collection, and the report as JSON or as text."""
    unit, seconds = "passages" if plan.passage_tokens else "documents", report.seconds["all"]
    if report.dead_letters and as_json:  # the text report has this line too
        records = "record" if report.dead_letters == 1 else "records"
        note(f"skipped {report.dead_letters:,} invalid {records}; see {report.dead_letter_file}")
    if manifest.truncated:
        message = f"{manifest.truncated:,} of {manifest.count:,} {unit} were truncated to {encoder.max_tokens:,} tokens"
        note(f"note: {message}; use --passage-tokens N to index whole documents")
    if as_json:
        name = {"name": plan.collection, "seconds": round(seconds, 3)}
        out_json({**name, **facts(manifest), "report": report.plain()})
        return
    size = f"{manifest.count:,} {unit}, {manifest.dim} dimensions, index {manifest.index}, {clock(seconds)}"
    out(f"built {plan.collection}: {size}")
    for line in report.lines():
        note(line)


def load_replica(model: str, strategy: str | None, device: str) -> Encoder:
    """Load an encoder in a worker process."""
    be_quiet(debug=False)
    return load_encoder(model, device, strategy)


def name_from(source: str) -> str:
    """Return the default name of a collection: the name of its source without suffixes."""
    if source == "-":
        raise InputError("documents from stdin have no name; add --collection NAME", field="collection")
    stem = (source if source.startswith("hf:") else Path(source).resolve().name).lower().removeprefix("hf:")
    stem = re.sub(r"(\.(jsonl|ndjson|csv|tsv|parquet|pq))?(\.(gz|zst))?$", "", stem)
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:64]
    if not name:
        raise InputError(
            f"no collection name can be derived from {source!r}; add --collection NAME", field="collection"
        )
    return name


def facts(manifest: Manifest) -> dict[str, Any]:
    """Return the main properties of a collection."""
    keys = ("count", "truncated", "dim", "metric", "index", "encoder", "fingerprint", "created", "version")
    return {key: getattr(manifest, key) for key in keys}
