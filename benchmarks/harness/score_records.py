"""One record per system and task: the score, its items, and the settings of the run.

``RESULTS/results`` is mteb's cache; ``RESULTS/records`` has a record for each of its files, written last. A task
without a record did not finish and is measured again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from embedserve.errors import CorruptFileError, InputError
from indexing.storage.files import replace_file

FORMAT = 1


@dataclass(frozen=True)
class ScoreRecord:
    """Result of one evaluation.

    Attributes:
        system: The name of the system in tables.
        model: mteb's name of the model.
        revision: Digest of all settings of the system that affect a score.
        task: mteb's name of the task.
        data: Digest of the task's texts, subsets and splits.
        type: The kind of task, such as Retrieval.
        metric: The task's main score.
        score: Value of the metric, 0 to 1.
        items: Items of the score, for resampling: ``kind`` is query, pair or experiment; ``groups`` has an entry per
            split and subset of the task, with the ``values`` of queries or experiments, or the ``predicted`` and
            ``gold`` values of pairs.
        dim: Dimension of a vector; None for words.
        spec: Specification of the encoder as plain values; None for words.
        fingerprint: Fingerprint of the encoder.
        engine: Engine and its settings; None for exhaustive search.
        prompts: Prompts of queries and documents.
        seconds: Duration of the task (``wall``), of encoding, of building the index and of searching it.
        tokens: Tokens read by the encoder, each text counted once.
        shared_by: Encoders that shared the decoder's passes: ``seconds["encode"]`` is their total.
        index_bytes: Size of the saved index.
        documents, queries: Number searched; 0 for tasks without search.
        token_vectors: Token vectors of all documents in exhaustive multi-vector search; else 0.
        tokens_per_s: Speed of this encoder alone, on a fixed sample.
        peak_memory_mb: Peak so far of the process, and of the GPU if there is one.
        run: Date, machine, versions, seed, and the arguments of the command.
        variant: Revision of the system without prompts by task: the same for all its tasks.
    """

    system: str
    model: str
    revision: str
    task: str
    type: str
    metric: str
    score: float
    items: dict[str, Any]
    dim: int | None = None
    spec: dict[str, Any] | None = None
    fingerprint: str | None = None
    engine: dict[str, Any] | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    shared_by: int = 1
    index_bytes: int = 0
    documents: int = 0
    queries: int = 0
    token_vectors: int = 0
    tokens_per_s: float | None = None
    peak_memory_mb: dict[str, float] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    data: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            CorruptFileError: The file is not a record, or has another format version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("format")
            if version != FORMAT:
                raise ValueError(f"format {version}, this version reads {FORMAT}")
            record = cls(**values)
            _check(record)
            return record
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            message = f"{path} is not an evaluation record ({error}); delete it to measure the task again"
            raise CorruptFileError(message) from None

    def write(self, results: Path) -> None:
        """Write the record atomically."""
        path = record_path(results, self.model, self.revision, self.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False).encode())


def _check(record: ScoreRecord) -> None:
    """Raise `TypeError` or `ValueError` if a value has the wrong type."""
    for name in ("system", "model", "revision", "task", "type", "metric"):
        if not isinstance(getattr(record, name), str):
            raise TypeError(f"{name} is not a string")
    names = ("predicted", "gold") if record.items.get("kind") == "pair" else ("values",)
    numbers = [record.score]
    for group in record.items.get("groups", []):
        if len({len(group[name]) for name in names}) != 1:
            raise ValueError("predicted and gold values differ in number")
        numbers += [value for name in names for value in group[name]]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a score or an item is not a number")


def record_path(results: Path, model: str, revision: str, task: str) -> Path:
    """Return the path of a record."""
    return results / "records" / model.replace("/", "__") / revision / f"{task}.json"


def read_records(results: Path) -> list[ScoreRecord]:
    """Return all records below ``results``, by system and task."""
    paths = sorted((results / "records").glob("*/*/*.json"))
    return [ScoreRecord.read(path) for path in paths]


def load_records(results: Path) -> list[ScoreRecord]:
    """Return all records below ``results``; raise `InputError` if there are none."""
    records = read_records(results)
    if not records:
        message = f"{results} has no evaluation records; create some with: embedserve bench mteb --results"
        raise InputError(f"{message} {results}", field="results")
    return records
