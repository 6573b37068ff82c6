"""Interfaces of indexes and encoders: vectors in, `Hits` out, higher scores first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from embedserve.errors import InputError
from embedserve.types import Embeddings, Encoded, Task, TokenRows

Metric = Literal["cosine", "inner_product"]
METRICS: tuple[str, ...] = get_args(Metric)


@dataclass(frozen=True)
class Hits:
    """The best rows for each query, best first; equal scores by lower row.

    Attributes:
        rows: (Q, k) int64, row numbers of the index; only the first ``counts[q]`` of line q are valid.
        scores: (Q, k) float32, higher is better; -inf for missing hits.
        counts: (Q,) int64, number of hits of each query.
    """

    rows: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (n,) and scores (n,) of one query, without missing hits."""
        count = int(self.counts[query])
        return self.rows[query, :count], self.scores[query, :count]


class VectorIndex(Protocol):
    """Searchable vectors. Safe to search from many threads while it is not being modified."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    @property
    def metric(self) -> Metric:
        """The similarity of the scores."""
        ...

    @property
    def kind(self) -> str:
        """The kind of index: ``exact`` or a faiss factory string."""
        ...

    def __len__(self) -> int: ...

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> Hits:
        """Return the best rows of each query; ``k`` is clipped to the number of rows.

        Args:
            queries: (Q, d) float32.
            k: Hits per query, at least 1.
            allowed: (m,) int64, the only rows to consider; unknown rows are ignored.
        """
        ...


class MutableIndex(VectorIndex, Protocol):
    """A vector index that can be modified and saved: `ExactIndex` and `FaissIndex`.

    Not thread-safe: do not search an index while it is being modified.
    """

    def add(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors (n, d) float32 with new row numbers (n,) int64."""
        ...

    def remove(self, rows: np.ndarray) -> None:
        """Remove rows (n,) int64; an unknown row is an error."""
        ...

    def save(self, directory: Path, fingerprint: str = "") -> None:
        """Write the index to ``directory``, atomically."""
        ...


class TextEncoder(Protocol):
    """What collections and jobs need of an encoder; `embedserve.Encoder` is one."""

    @property
    def name(self) -> str:
        """A name for messages."""
        ...

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal only if vectors are comparable."""
        ...

    @property
    def spec(self) -> Any:
        """The `embedserve.spec.EncoderSpec`."""
        ...

    @property
    def outputs(self) -> Sequence[str]:
        """The outputs of `encode`: any of ``dense``, ``multi`` and ``sparse``."""
        ...

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens read of one text."""
        ...

    @property
    def device(self) -> Any:
        """``cpu``, ``cuda`` or ``cuda:NUMBER``, as a string or a `torch.device`."""
        ...

    def embed(self, texts: Sequence[str], task: Task = "document") -> Embeddings:
        """Return one dense vector per text, in order."""
        ...

    def encode(self, texts: Sequence[str], task: Task = "document") -> Encoded:
        """Return every output, in order."""
        ...


@runtime_checkable
class TokenEncoder(TextEncoder, Protocol):
    """An encoder that exposes its tokenizer: required to split documents into passages."""

    def tokenize(self, texts: Sequence[str], task: Task = "document") -> TokenRows:
        """Return the token rows of texts."""
        ...

    def token_spans(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return for each text (n, 2) int64: start and end of its tokens in characters."""
        ...


def plain_spec(encoder: TextEncoder) -> dict[str, Any]:
    """Return the encoder's spec as JSON values."""
    values: dict[str, Any] = json.loads(json.dumps(encoder.spec.to_dict()))
    return values


def as_vectors(values: np.ndarray, dim: int | None = None, *, field: str = "vectors") -> np.ndarray:
    """Return ``values`` as contiguous float32 (N, d).

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
    """Return ``metric`` if it is known, else raise `InputError`."""
    for known in get_args(Metric):
        if metric == known:
            return known
    raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}", field="metric")


def clip_k(k: int, size: int) -> int:
    """Return ``k`` clipped to ``size`` rows; raise `InputError` unless it is an integer of at least 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"top_k must be a whole number of at least 1, got {k!r}", field="top_k")
    return min(int(k), size)


def as_queries(index: VectorIndex, queries: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """Return ``queries`` (Q, d), normalised if the metric requires it, and ``k`` clipped to the number of rows.

    Raises:
        InputError: As `as_vectors` and `clip_k`.
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
    """Sort raw results and drop missing ones.

    Args:
        rows: (Q, k) int64, negative for missing hits.
        scores: (Q, k) float32, higher is better.
    """
    missing = rows < 0
    if not missing.any() and (scores[:, :-1] > scores[:, 1:]).all():  # the usual case: already sorted
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
