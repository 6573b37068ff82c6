"""What every index promises: vectors in, `Hits` out, higher scores first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from embedserve.errors import InputError
from embedserve.types import Embeddings, Task

Metric = Literal["cosine", "inner_product"]
METRICS: tuple[str, ...] = get_args(Metric)


@dataclass(frozen=True)
class Hits:
    """The best rows for each query, best first; equal scores by lower row.

    Attributes:
        rows: (Q, k) int64, row numbers of the index; only the first ``counts[q]`` of a line mean anything.
        scores: (Q, k) float32, higher is better; -inf where there is no hit.
        counts: (Q,) int64, how many hits each query has.
    """

    rows: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (n,) and scores (n,) of one query, missing hits left out."""
        count = int(self.counts[query])
        return self.rows[query, :count], self.scores[query, :count]


class VectorIndex(Protocol):
    """Vectors that can be searched; safe to search from many threads, as long as nobody adds or removes."""

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def metric(self) -> Metric:
        """What a score is."""
        ...

    @property
    def kind(self) -> str:
        """The name the index was built by: ``exact`` or a faiss factory string."""
        ...

    def __len__(self) -> int: ...

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best rows of each query; ``k`` is clipped to the number of rows.

        Args:
            queries: (Q, d) float32.
            k: Hits wanted for each query, at least 1.
            allowed: (m,) int64, the only rows that may be found; those that are not there are passed over.
        """
        ...


class MutableIndex(VectorIndex, Protocol):
    """A vector index that can be changed and saved: `ExactIndex` and `FaissIndex`; sparse and lexical ones are alike.

    Who changes an index sees to it that nobody searches meanwhile.
    """

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors (n, d) float32 under row numbers (n,) int64 that are not there yet."""
        ...

    def remove(self, rows: np.ndarray) -> None:
        """Take rows (n,) int64 out; an unknown row is an error."""
        ...

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory``, which afterwards holds all of it or what it held before."""
        ...


class TextEncoder(Protocol):
    """The part of `embedserve.Encoder` that collections need."""

    @property
    def name(self) -> str:
        """A name for people."""
        ...

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal only where vectors may be compared."""
        ...

    @property
    def spec(self) -> Any:
        """The `embedserve.spec.EncoderSpec`."""
        ...

    def embed(self, texts: Sequence[str], task: Task = "document") -> Embeddings:
        """Return one vector for each text, in order."""
        ...


def plain_spec(encoder: TextEncoder) -> dict[str, Any]:
    """Return the encoder's spec as it reads after a round trip through JSON."""
    values: dict[str, Any] = json.loads(json.dumps(encoder.spec.to_dict()))
    return values


def as_vectors(values: np.ndarray, dim: int | None = None, *, field: str = "vectors") -> np.ndarray:
    """Return ``values`` as contiguous float32 (N, d), or say what is wrong with them.

    Raises:
        InputError: Not two-dimensional, not ``dim`` wide, not numbers, or not finite in float32.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = np.array(values, dtype=np.float32, order="C", copy=None)
    except (TypeError, ValueError) as error:
        raise InputError(f"{field} must be an array of numbers (N, d): {error}", field=field) from None
    if vectors.ndim != 2:
        raise InputError(f"{field} must be an array (N, d), got shape {vectors.shape}", field=field)
    if dim is not None and vectors.shape[1] != dim:
        raise InputError(f"{field} have {vectors.shape[1]} dimensions, the index has {dim}", field=field)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InputError(f"{field}: row {int(np.argmin(finite))} holds NaN or infinity", field=field)
    return vectors


def as_metric(metric: str) -> Metric:
    """Return ``metric`` if there is such a metric, else raise `InputError`."""
    for known in get_args(Metric):
        if metric == known:
            return known
    raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}", field="metric")


def clip_k(k: int, size: int) -> int:
    """Return ``k`` clipped to ``size`` rows; raise `InputError` unless it is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, got {k!r}", field="top_k")
    return min(int(k), size)


def as_queries(index: VectorIndex, queries: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """Return ``queries`` (Q, d) as an index compares them with its rows, and ``k`` clipped to the number of rows.

    Raises:
        InputError: What `as_vectors` or `clip_k` refuse.
    """
    k = clip_k(k, len(index))
    vectors = as_vectors(queries, index.dim, field="queries")
    return (unit(vectors) if index.metric == "cosine" else vectors), k


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return the rows of ``vectors`` (N, d) at unit length, float32; a row of zeros stays zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))  # (N,)
    norms[norms == 0] = 1
    scaled: np.ndarray = (vectors / norms[:, None]).astype(np.float32)
    return scaled


def make_hits(rows: np.ndarray, scores: np.ndarray) -> Hits:
    """Order raw results and take the missing ones out.

    Args:
        rows: (Q, k) int64, negative where there is no hit.
        scores: (Q, k) float32, higher is better.
    """
    missing = rows < 0
    if not missing.any() and (scores[:, :-1] > scores[:, 1:]).all():  # the usual case, and nothing to order
        counts = np.full(len(rows), rows.shape[1], dtype=np.int64)
        return Hits(rows.astype(np.int64, copy=False), scores.astype(np.float32, copy=False), counts)
    scores = np.where(missing, -np.inf, scores).astype(np.float32)
    order = np.lexsort((np.where(missing, np.iinfo(np.int64).max, rows), -scores))  # (Q, k), last key first
    lines = np.arange(len(rows))[:, None]
    return Hits(
        rows=np.where(missing, 0, rows).astype(np.int64)[lines, order],
        scores=scores[lines, order],
        counts=(~missing).sum(axis=1, dtype=np.int64),
    )
