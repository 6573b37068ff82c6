"""Cost of a system: dimension of its vectors, encoding speed, index size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness.score_records import ScoreRecord
from benchmarks.harness.table import names_of

WORDS, DENSE, TOKENS, SPARSE, HYBRID = "words", "one vector", "token vectors", "sparse weights", "hybrid"
ENGINES = {
    "bm25": WORDS, "muvera": TOKENS, "lemur": TOKENS, "plaid": TOKENS, "sparse": SPARSE, "hybrid": HYBRID,
    "hybrid-bm25": HYBRID,
}  # fmt: skip
FLOAT32, FLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Cost:
    """Cost of a system; None if the records lack the value.

    Attributes:
        kind: Kind of vectors searched.
        dim: Dimension of a vector.
        tokens_per_s: Encoding speed, the median over its records.
        bytes_per_document: Index size: saved files of an engine, else float32 vectors, or float16 token vectors.
    """

    kind: str
    dim: int | None
    tokens_per_s: float | None
    bytes_per_document: float | None


def costs_of(records: Sequence[ScoreRecord]) -> dict[str, Cost]:
    """Return the cost of each system, by its name in tables."""
    groups: dict[str, list[ScoreRecord]] = {}
    for name, record in zip(names_of(records), records, strict=True):
        groups.setdefault(name, []).append(record)
    return {name: _cost(group) for name, group in groups.items()}


def _cost(records: list[ScoreRecord]) -> Cost:
    speeds = [record.tokens_per_s for record in records if record.tokens_per_s]
    speed = statistics.median(speeds) if speeds else None
    return Cost(kind_of(records[0]), records[0].dim, speed, _bytes_per_document(records))


def kind_of(record: ScoreRecord) -> str:
    """Return what the system of a record searches: words, one vector or several per text, weights, or a hybrid."""
    if record.engine is not None:
        return ENGINES.get(record.engine["name"], DENSE)
    if record.spec is None:
        return WORDS
    return TOKENS if record.token_vectors or record.spec.get("strategy") == "colbert" else DENSE


def _bytes_per_document(records: list[ScoreRecord]) -> float | None:
    first = records[0]
    documents = sum(record.documents for record in records)
    if first.engine is not None:
        size = sum(record.index_bytes for record in records)
        return size / documents if size and documents else None
    if first.dim is None:
        return None
    if kind_of(first) == DENSE:
        return FLOAT32 * first.dim
    counted = [record for record in records if record.token_vectors]
    if not counted:
        return None
    vectors, documents = (sum(getattr(r, name) for r in counted) for name in ("token_vectors", "documents"))
    return FLOAT16 * first.dim * vectors / documents
