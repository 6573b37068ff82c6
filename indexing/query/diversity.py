"""Select diverse candidates of a search: group-by and maximal marginal relevance (MMR)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedserve.errors import InputError
from indexing.query.filters import ID


@dataclass(frozen=True)
class GroupBy:
    """Return at most ``size`` documents with the same value of ``field``, a path as in a filter.

    A document without the field is its own group.
    """

    field: str
    size: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.field, str) or not self.field:
            raise InputError(f"group_by.field must be the name of a field, got {self.field!r}", field="group_by.field")
        if type(self.size) is not int or self.size < 1:
            message = f"group_by.size must be a whole number of at least 1, got {self.size!r}"
            raise InputError(message, field="group_by.size")


@dataclass(frozen=True)
class Mmr:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): similar to the query, dissimilar to earlier hits.

    Attributes:
        balance: λ from 0 to 1: weight of the similarity to the query; 1 - λ is that of the similarity to earlier hits.
        field: Field of dense vectors for both similarities.
    """

    balance: float
    field: str

    def __post_init__(self) -> None:
        if isinstance(self.balance, bool) or not isinstance(self.balance, int | float) or not 0 <= self.balance <= 1:
            raise InputError(f"mmr.lambda must be between 0 and 1, got {self.balance!r}", field="mmr.lambda")


def mmr_order(
    relevance: np.ndarray, vectors: np.ndarray, k: int, balance: float, before: np.ndarray | None = None
) -> list[int]:
    """Return the indices of ``k`` candidates by greedy selection of the largest λ · relevance - (1 - λ) · similarity.

    The similarity is the largest dot product with a selected vector. Ties go to the first candidate.

    Args:
        relevance: (n,) similarity of the candidates to the query.
        vectors: (n, d) float32, normalised for cosine similarity.
        k: Maximum number of candidates to select.
        balance: λ.
        before: (m, d) vectors selected on earlier pages.
    """
    none = np.full(len(vectors), -np.inf, dtype=np.float32)
    nearest = (vectors @ before.T).max(axis=1) if before is not None and len(before) else none
    selected: list[int] = []
    while len(selected) < min(k, len(vectors)):
        similarity = np.where(np.isfinite(nearest), nearest, 0.0)
        gain = balance * relevance - (1 - balance) * similarity
        gain[selected] = -np.inf
        selected.append(int(np.argmax(gain)))
        nearest = np.maximum(nearest, vectors @ vectors[selected[-1]])
    return selected


def first_of_groups(
    keys: Sequence[str | None], k: int, size: int, excluded: Collection[str] = ()
) -> tuple[list[int], int]:
    """Return the indices of the first ``size`` candidates of the first ``k`` groups, and the number of groups.

    Args:
        keys: Group of each candidate, best first; None is its own group.
        k: Maximum number of groups.
        size: Maximum size of a group.
        excluded: Groups to skip.
    """
    indices: list[int] = []
    sizes: dict[str | int, int] = {}
    for index, key in enumerate(keys):
        if key is not None and key in excluded:
            continue
        group: str | int = index if key is None else key
        if group not in sizes and len(sizes) == k:
            continue
        if sizes.get(group, 0) < size:
            sizes[group] = sizes.get(group, 0) + 1
            indices.append(index)
    return indices, len(sizes)


def value_at(name: str, metadata: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path of a document's metadata, or its id for ``id``; None if there is no value."""
    if path == ID:
        return name
    value: Any = metadata
    rest = path
    while rest:
        if not isinstance(value, Mapping):
            return None
        if rest in value:
            return value[rest]
        key, _, rest = rest.partition(".")
        value = value.get(key)
    return value


def group_key(value: Any) -> str | None:
    """Return a string that is equal for equal values only; None for None."""
    return None if value is None else json.dumps(value, sort_keys=True)
