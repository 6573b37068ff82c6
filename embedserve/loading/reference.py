"""Reference vectors: saved embeddings of a few texts, to check that an encoder still gives the same vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import numpy as np

from embedserve.disk_records import atomic_path
from embedserve.errors import CorruptFileError
from embedserve.types import Encoded, Task

TASKS: tuple[Task, ...] = get_args(Task)
TEXTS = (
    "rain",
    "Join a sequence of arrays along a new axis.",
    "Größe, naïveté and 東京 are words too.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "The old engine measures two maps; nobody remembers the winter storm after lunch. " * 4,
)
# Largest accepted difference of a component between kernels and batch sizes, by the dtype of the weights.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}


def reference_vectors(encoder: Any) -> dict[Task, np.ndarray]:
    """Return all outputs of an `Encoder` for `TEXTS`, flattened to float32 (n,), for each task."""
    return {task: row_of(encoder.encode_rows(encoder.tokenize(TEXTS, task))) for task in TASKS}


def row_of(encoded: Encoded) -> np.ndarray:
    """Return all outputs, flattened and concatenated (n,)."""
    parts = [part.vectors.ravel() for part in (encoded.dense, encoded.multi) if part is not None]
    return np.concatenate([*parts, *([encoded.sparse.values] if encoded.sparse is not None else [])])


def write_reference(path: Path, fingerprint: str, vectors: Mapping[Task, np.ndarray]) -> None:
    """Write reference vectors atomically.

    Raises:
        OSError: The file cannot be written.
    """
    rows = {str(task): base64.b64encode(row.astype("<f4").tobytes()).decode() for task, row in vectors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"fingerprint": fingerprint, "texts": TEXTS, **rows}
    with atomic_path(path) as new:
        new.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_reference(path: Path, fingerprint: str) -> dict[Task, np.ndarray] | None:
    """Return the reference vectors of an encoder: those shipped with nano, or those in ``path``, or None.

    Raises:
        CorruptFileError: The file is damaged.
    """
    shipped = resources.files("embedserve.nano").joinpath("reference.json")
    if shipped.is_file() and (vectors := _parsed(shipped.read_text(encoding="utf-8"), "reference.json", fingerprint)):
        return vectors
    return read_file(path, fingerprint)


def read_file(path: Path, fingerprint: str) -> dict[Task, np.ndarray] | None:
    """Return the reference vectors in ``path``; None if the file is missing, or of another encoder or other texts.

    Raises:
        CorruptFileError: The file is damaged.
    """
    return _parsed(path.read_text(encoding="utf-8"), str(path), fingerprint) if path.is_file() else None


def _parsed(text: str, name: str, fingerprint: str) -> dict[Task, np.ndarray] | None:
    try:
        values = json.loads(text)
        if values["fingerprint"] != fingerprint or values["texts"] != list(TEXTS):
            return None
        return {task: np.frombuffer(base64.b64decode(values[task], validate=True), dtype="<f4") for task in TASKS}
    except (ValueError, KeyError, TypeError) as error:
        message = f"{name} contains no reference vectors ({error}); delete it: the next start writes it again"
        raise CorruptFileError(message, field=name) from None
