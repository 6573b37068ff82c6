"""One record for each system and task: the score, what each query or pair gave, and what the run was.

``RESULTS/results`` is mteb's own cache, ``RESULTS/records`` has a record beside each of its files, written last: what
has no record was not finished and is measured again.
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
    """What one evaluation gave.

    Attributes:
        system: The name of the system in tables.
        model: mteb's name of the model.
        revision: Of the system: everything that shapes a score.
        task: mteb's name.
        data: A digest of what the task is filled with: of other texts, subsets or splits it is another.
        type: The kind of task, such as Retrieval.
        metric: The task's main score.
        score: Its value, 0 to 1 as mteb has it.
        items: What the score is made of, to resample: ``kind`` is query, pair or experiment, ``groups`` a list for
            each split and subset of the task. A group has the ``values`` of queries or experiments, or the
            ``predicted`` and ``gold`` values of pairs.
        dim: Width of a vector; None for words.
        spec: The encoder's, as plain values; None for words.
        fingerprint: The encoder's.
        engine: The engine and its settings; None where all vectors are compared.
        prompts: In front of queries and documents.
        seconds: Of the whole task (``wall``), of encoding, of building an index and of searching it.
        tokens: That the encoder read, each text once.
        shared_by: Encoders that the same passes of the decoder served: they took ``seconds["encode"]`` together.
        index_bytes: Of the saved index.
        documents, queries: That were searched; 0 for other kinds of tasks.
        token_vectors: Of all documents, where each has several and they are compared exactly; else 0.
        tokens_per_s: Of this encoder by itself, on a fixed sample.
        peak_memory_mb: Of the process (and of the GPU, where there is one) so far.
        run: Date, machine, versions, seed, and the arguments of the command.
        variant: The revision that the system would have without prompts by task: the same for all its tasks.
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
            CorruptFileError: It is not one, or of another version.
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
            message = f"{path} is no record of an evaluation ({error}); delete it, and the task is measured again"
            raise CorruptFileError(message) from None

    def write(self, results: Path) -> None:
        """Write the record: all of it or nothing."""
        path = record_path(results, self.model, self.revision, self.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False).encode())


def _check(record: ScoreRecord) -> None:
    """Raise `TypeError` or `ValueError` where a value is not of its kind, so that no reader stumbles over it later."""
    for name in ("system", "model", "revision", "task", "type", "metric"):
        if not isinstance(getattr(record, name), str):
            raise TypeError(f"{name} is no text")
    names = ("predicted", "gold") if record.items.get("kind") == "pair" else ("values",)
    numbers = [record.score]
    for group in record.items.get("groups", []):
        if len({len(group[name]) for name in names}) != 1:
            raise ValueError("predicted and gold values are not as many")
        numbers += [value for name in names for value in group[name]]
    if not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a score or an item is no number")


def record_path(results: Path, model: str, revision: str, task: str) -> Path:
    """Return where the record of an evaluation lies."""
    return results / "records" / model.replace("/", "__") / revision / f"{task}.json"


def read_records(results: Path) -> list[ScoreRecord]:
    """Return all records below ``results``, by system and task."""
    paths = sorted((results / "records").glob("*/*/*.json"))
    return [ScoreRecord.read(path) for path in paths]


def load_records(results: Path) -> list[ScoreRecord]:
    """Return all records below ``results``; raise `InputError` where there are none."""
    records = read_records(results)
    if not records:
        message = f"{results} holds no records of an evaluation; make some with: embedserve bench mteb --results"
        raise InputError(f"{message} {results}", field="results")
    return records
