"""One index build as a value: what is read, what encodes it, how the job runs, and where the collection goes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedserve.errors import InputError
from indexing.base import TextEncoder
from indexing.collections.catalog import check_name, collection_path
from indexing.jobs.job import MEMORY_MB, SHARD_SIZE, JobOptions, OnError, SourceRecord, job_path, run_job
from indexing.jobs.job_report import JobProgress, JobReport
from indexing.jobs.local_engine import LoadEncoder, ProcessEngine
from indexing.jobs.shard_engine import ShardEngine
from indexing.sources.corpus import count_documents, read_all
from indexing.sources.passages import PassageSize
from indexing.sources.python_docs import python_documents

SAMPLE = "python-docs"  # not a file, but the docstrings of installed packages


@dataclass(frozen=True)
class BuildPlan:
    """Everything that an index build depends on; survives a round trip through JSON.

    Attributes:
        source: What `indexing.read_documents` reads, or ``python-docs``.
        collection: Name of the collection, which is replaced if it exists.
        data_dir: Root folder of the data.
        model: Model of the encoder: ``nano``, a folder or a Hub id.
        strategy: How hidden states become vectors, as `embedserve.spec.parse_spec` reads it. Default: the model's own.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        format: Format of the source. Default: detected from its name.
        id_field: Field of the document id. Default: ``id`` or ``_id``.
        text_field: Field of the text.
        title_field: Field of the title, which is optional in a record.
        metadata_fields: Fields stored as metadata. Default: all other fields.
        index: Kind of vector index: see `indexing.build_collection`.
        passage_tokens: Split documents into passages of at most this many tokens. Default: no splitting.
        overlap: Maximum number of tokens that a passage repeats of the previous one.
        shard_size: Records per shard.
        memory_mb: Memory for texts and vectors in flight.
        on_error: ``dead-letter`` skips and records invalid records, ``stop`` fails at the first one.
        dead_letters: File of the skipped records. Default: ``dead-letters.jsonl`` in the job folder.
        drop_shards: Delete the shards after the collection is published.
        engine: ``local`` or ``ray``.
        replicas: Number of encoders. Default: one in this process; on Ray, one per GPU or core of the cluster.
        ray_address: Address of a Ray cluster. Default: a cluster on this machine.
        job_dir: Folder of shards and reports. Default: ``data_dir/jobs/collection``.

    Raises:
        InputError: A value is out of range, or two values contradict each other.
    """

    source: str
    collection: str
    data_dir: Path
    model: str = "nano"
    strategy: str | None = None
    device: str = "auto"
    format: str | None = None
    id_field: str | None = None
    text_field: str = "text"
    title_field: str = "title"
    metadata_fields: tuple[str, ...] | None = None
    index: str = "auto"
    passage_tokens: int | None = None
    overlap: int = 0
    shard_size: int = SHARD_SIZE
    memory_mb: int = MEMORY_MB
    on_error: OnError = "dead-letter"
    dead_letters: Path | None = None
    drop_shards: bool = False
    engine: Literal["local", "ray"] = "local"
    replicas: int | None = None
    ray_address: str | None = None
    job_dir: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.collection)
        if self.passage_tokens is None and self.overlap:
            raise InputError("overlap is only used with passages; set passage_tokens as well", field="overlap")
        if self.replicas is not None and self.replicas < 1:
            raise InputError(f"replicas must be at least 1, got {self.replicas}", field="replicas")
        if self.ray_address is not None and self.engine != "ray":
            raise InputError("--ray-address needs --engine ray", field="ray_address")
        self.options  # noqa: B018  raises InputError

    @property
    def options(self) -> JobOptions:
        """How the job runs."""
        return JobOptions(
            shard_size=self.shard_size,
            passages=None if self.passage_tokens is None else PassageSize(self.passage_tokens, self.overlap),
            on_error=self.on_error,
            dead_letters=self.dead_letters,
            memory_mb=self.memory_mb,
            index=self.index,
            drop_shards=self.drop_shards,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BuildPlan:
        """Return the plan that `to_dict` wrote, also after JSON."""
        paths = {name: Path(values[name]) for name in ("data_dir", "dead_letters", "job_dir") if values.get(name)}
        names = values.get("metadata_fields")
        return cls(**{**values, **paths, "metadata_fields": None if names is None else tuple(names)})

    @classmethod
    def read(cls, path: Path) -> BuildPlan:
        """Return the plan in a JSON file."""
        return cls.from_dict(json.loads(path.read_text()))

    def records(self) -> tuple[Iterable[SourceRecord], int | None]:
        """Return the records of the source, and their number if it is known without reading it."""
        if self.source == SAMPLE:
            documents = list(python_documents())
            return documents, len(documents)
        records = read_all(
            self.source,
            fmt=self.format,
            id_field=self.id_field,
            text_field=self.text_field,
            title_field=self.title_field,
            metadata_fields=self.metadata_fields,
        )
        return records, count_documents(self.source, fmt=self.format)


def run_plan(
    plan: BuildPlan, encoder: TextEncoder, load: LoadEncoder, progress: Callable[[JobProgress], None]
) -> JobReport:
    """Build the collection of a plan; see `run_job`.

    Args:
        plan: What to build.
        encoder: The encoder of the plan.
        load: Loads the same encoder on a device, in other processes.
        progress: Called after each shard.
    """
    records, total = plan.records()
    return run_job(
        records,
        encoder,
        collection_path(plan.data_dir, plan.collection),
        plan.job_dir or job_path(plan.data_dir, plan.collection),
        plan.options,
        engine=engine_of(plan, encoder, load),
        total=total,
        progress=progress,
    )


def engine_of(plan: BuildPlan, encoder: TextEncoder, load: LoadEncoder) -> ShardEngine | None:
    """Return the engine of a plan; None for threads of this process."""
    if plan.engine == "ray":
        from indexing.jobs.ray_engine import RayEngine

        return RayEngine(load, plan.replicas, plan.device, address=plan.ray_address)
    if plan.replicas is None or plan.replicas == 1:
        return None
    on_gpu = str(encoder.device).startswith("cuda")
    return ProcessEngine(load, [f"cuda:{number}" if on_gpu else "cpu" for number in range(plan.replicas)])
