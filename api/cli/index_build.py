"""embedserve index build: from a source of any size to a collection, in shards that outlive interruptions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.console import JsonMeter, Meter, be_quiet, clock, load_encoder, note, out, out_json
from api.cli.shared_options import DataDir, Device, Json, Strategy
from api.settings import load_settings
from embedserve.errors import InputError

if TYPE_CHECKING:
    from embedserve import Encoder
    from indexing.collections.manifest import Manifest
    from indexing.jobs.job import Found
    from indexing.jobs.job_report import JobProgress
    from indexing.jobs.local_engine import Engine

SAMPLE = "python-docs"
STAGES = {"encode": "embedding", "write": "writing  ", "index": "indexing "}


def build(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of .txt/.md, JSONL, CSV, TSV (also .gz, .zst), Parquet, a BEIR folder, a Hugging Face "
            "dataset (its folder, or hf:NAME[:SPLIT]), - or python-docs."
        ),
    ],
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="Name of the collection; the source's name unless given."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            "--encoder",
            help="nano, a saved encoder, or any decoder's folder or hub id.",
            show_default=False,
        ),
    ] = None,
    strategy: Strategy = None,
    index: Annotated[
        str, typer.Option("--index", help="auto, flat, fastscan, ivf, hnsw, exact, or a faiss factory string.")
    ] = "auto",
    fmt: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help="folder, jsonl, csv, tsv, parquet, beir or dataset; the name tells unless given.",
        ),
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="Field of the id; id or _id unless given.")] = None,
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    title_field: Annotated[str, typer.Option(help="Field of the title, which records may lack.")] = "title",
    metadata_field: Annotated[
        list[str] | None, typer.Option(help="A field to keep as metadata; repeat it. All others unless given.")
    ] = None,
    on_error: Annotated[
        Literal["dead-letter", "stop"],
        typer.Option(help="What becomes of a bad record: written to a file and left out, or the end of the build."),
    ] = "dead-letter",
    dead_letters: Annotated[
        Path | None,
        typer.Option(help="File of the records left out; in the job's folder unless given.", show_default=False),
    ] = None,
    passage_tokens: Annotated[
        int | None,
        typer.Option(help="Split documents into passages of at most so many tokens.", show_default=False),
    ] = None,
    overlap: Annotated[int, typer.Option(help="Tokens at most with which a passage repeats the one before.")] = 0,
    shard_size: Annotated[int, typer.Option(help="Records in a shard: what a kill can cost, for each worker.")] = 2000,
    memory: Annotated[int, typer.Option(help="MB for texts and vectors in flight, beside model and index.")] = 512,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where shards are made: here, or on a Ray cluster.")
    ] = "local",
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Encoders at work: a process for each here (one for each GPU), an actor on Ray. One encoder here, and "
            "all GPUs or cores of a cluster, unless given.",
            show_default=False,
        ),
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, or auto; unless given, one of this machine.")
    ] = None,
    job_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of shards and reports, which every worker sees; DATA_DIR/jobs/NAME unless given.",
            show_default=False,
        ),
    ] = None,
    drop_shards: Annotated[
        bool, typer.Option("--drop-shards", help="Remove the shards at the end; a later build cannot use them.")
    ] = False,
    progress: Annotated[
        Literal["text", "json"],
        typer.Option(help="How progress is shown on stderr: for people, or a line of JSON each."),
    ] = "text",
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Build a collection, in place of the one of that name.

    The source is read as a stream and embedded in shards, which are kept. Interrupted or killed, the same command goes
    on where it was; with more documents behind those of before it embeds only the new ones. The old collection stays
    in use until the new one is complete. Records that cannot be used are left out and written to a file.
    The word python-docs stands for the documentation of the installed Python packages.

    Examples:
      embedserve index build ./notes
      embedserve index build products.csv --id-field sku --text-field description --title-field name
      embedserve index build corpus.jsonl.zst --collection papers --passage-tokens 256 --overlap 32
      embedserve index build corpus.parquet --engine ray --ray-address auto --replicas 8
      zcat more.jsonl.gz | embedserve index build - --collection more
      embedserve index build python-docs
    """
    from indexing.collections.aliases import list_aliases
    from indexing.collections.catalog import check_name, collection_path
    from indexing.collections.manifest import read_manifest
    from indexing.jobs.job import JobOptions, job_path, run_job
    from indexing.sources.passages import PassageSize

    settings = load_settings(model=model, device=device, data_dir=data_dir)
    name = check_name(collection or name_from(source))
    if name in (aliases := list_aliases(settings.data_dir)):
        message = f"{name!r} is an alias of collection {aliases[name]!r}; build that one, or choose another name"
        raise InputError(message, field="collection")
    if passage_tokens is None and overlap:
        raise InputError("overlap is that of passages; add --passage-tokens", field="overlap")
    options = JobOptions(
        shard_size=shard_size,
        passages=None if passage_tokens is None else PassageSize(passage_tokens, overlap),
        on_error=on_error,
        dead_letters=dead_letters,
        memory_mb=memory,
        index=index,
        drop_shards=drop_shards,
    )
    fields = {"id_field": id_field, "text_field": text_field, "title_field": title_field}
    found, total = open_source(source, fmt, {**fields, "metadata_fields": metadata_field})
    encoder = load_encoder(settings.model, "cpu" if engine == "ray" else settings.device, strategy)
    directory = collection_path(settings.data_dir, name)
    load = partial(load_replica, settings.model, strategy)
    meter = Meter(STAGES["encode"]) if progress == "text" else JsonMeter()

    def show(now: JobProgress) -> None:
        if now.stage == "stop":
            meter.close()
            note("\nstopping as soon as the texts in hand are embedded; again Ctrl-C does not wait")
            return
        label = STAGES[now.stage] if progress == "text" else now.stage
        meter.update(label, now.done, now.total, now.resumed)

    try:
        report = run_job(
            found,
            encoder,
            directory,
            job_dir or job_path(settings.data_dir, name),
            options,
            engine=engine_for(engine, replicas, encoder, load, settings.device, ray_address),
            total=total,
            progress=show,
        )
    except KeyboardInterrupt:
        meter.close()
        note(f"whole shards ({shard_size:,} records each) are kept; run the same command again to go on from there")
        raise
    finally:
        meter.close()
    manifest, what = read_manifest(directory), "passages" if options.passages else "documents"
    if report.dead_letters and json:  # else the report says so
        what_kind = "record" if report.dead_letters == 1 else "records"
        note(f"left out: {report.dead_letters:,} {what_kind} that cannot be used; see {report.dead_letter_file}")
    if manifest.truncated:
        cut = f"{manifest.truncated:,} of {manifest.count:,} {what} were cut to {encoder.max_tokens:,} tokens"
        note(f"note: {cut}; short passages (--passage-tokens N) are read whole")
    seconds = report.seconds["all"]
    if json:
        out_json({"name": name, "seconds": round(seconds, 3), **facts(manifest), "report": report.plain()})
        return
    out(f"built {name}: {manifest.count:,} {what}, {manifest.dim} dimensions, index {manifest.index}, {clock(seconds)}")
    for line in report.lines():
        note(line)
    where = f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""
    note(f'try: embedserve search --collection {name}{where} "your question"')


def open_source(source: str, fmt: str | None, fields: dict[str, Any]) -> tuple[Iterable[Found], int | None]:
    """Return what stands in a source, and the number of its records where that is known."""
    from indexing.sources.corpus import count_documents, read_all
    from indexing.sources.python_docs import python_documents

    if source == SAMPLE:
        documents = list(python_documents())
        return documents, len(documents)
    return read_all(source, fmt=fmt, **fields), count_documents(source, fmt=fmt)


def engine_for(
    kind: str, replicas: int | None, encoder: Encoder, load: Any, device: str, ray_address: str | None
) -> Engine | None:
    """Return where shards are made; None for threads of this process.

    ``load`` gives an encoder on a device, in whatever process calls it.
    """
    if replicas is not None and replicas < 1:
        raise InputError(f"replicas must be at least 1, got {replicas}", field="replicas")
    if kind == "ray":
        from indexing.jobs.ray_engine import RayEngine

        return RayEngine(load, replicas, device, address=ray_address)
    if ray_address is not None:
        raise InputError("--ray-address needs --engine ray", field="ray_address")
    if replicas is None or replicas == 1:
        return None
    from indexing.jobs.local_engine import ProcessEngine

    on_gpu = encoder.device.type == "cuda"
    return ProcessEngine(load, [f"cuda:{number}" if on_gpu else "cpu" for number in range(replicas)])


def load_replica(model: str, strategy: str | None, device: str) -> Encoder:
    """Load an encoder in a process of its own."""
    be_quiet(debug=False)
    return load_encoder(model, device, strategy)


def name_from(source: str) -> str:
    """Return the name that a collection takes from its source."""
    if source == "-":
        raise InputError("documents from standard input need a name; add --collection NAME", field="collection")
    stem = (source if source.startswith("hf:") else Path(source).resolve().name).lower().removeprefix("hf:")
    stem = re.sub(r"(\.(jsonl|ndjson|csv|tsv|parquet|pq))?(\.(gz|zst))?$", "", stem)
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:64]
    if not name:
        raise InputError(f"no name can be made of {source!r}; add --collection NAME", field="collection")
    return name


def facts(manifest: Manifest) -> dict[str, Any]:
    """Return what a person wants to know of a collection."""
    keys = ("count", "truncated", "dim", "metric", "index", "encoder", "fingerprint", "created", "version")
    return {key: getattr(manifest, key) for key in keys}
