"""Which of the candidates of a search are shown: one group each, unlike each other, not shown before."""

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
    """Show ``size`` documents at most of those with the same value of ``field``, a path as in a filter.

    A document without the field is a group by itself.
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
    """Maximal marginal relevance (Carbonell and Goldstein 1998): near the query, and unlike what stands before.

    Attributes:
        balance: λ from 0 to 1: the weight of the likeness with the query beside that with the documents before.
        field: Of dense vectors, by which both likenesses are measured.
    """

    balance: float
    field: str

    def __post_init__(self) -> None:
        if isinstance(self.balance, bool) or not isinstance(self.balance, int | float) or not 0 <= self.balance <= 1:
            raise InputError(f"mmr.lambda must lie from 0 to 1, got {self.balance!r}", field="mmr.lambda")


def mmr_order(
    relevance: np.ndarray, vectors: np.ndarray, k: int, balance: float, before: np.ndarray | None = None
) -> list[int]:
    """Return the places of ``k`` candidates: each time the one of the largest λ · relevance - (1 - λ) · likeness.

    The likeness is the largest dot product with a vector that was chosen before. Of equal ones the first is taken.

    Args:
        relevance: (n,) of the candidates to the query.
        vectors: (n, d) float32, of unit length where products are to be cosines.
        k: How many; fewer where there are no more.
        balance: λ.
        before: (m, d) what was chosen earlier.
    """
    none = np.full(len(vectors), -np.inf, dtype=np.float32)
    nearest = (vectors @ before.T).max(axis=1) if before is not None and len(before) else none
    chosen: list[int] = []
    while len(chosen) < min(k, len(vectors)):
        likeness = np.where(np.isfinite(nearest), nearest, 0.0)
        gain = balance * relevance - (1 - balance) * likeness
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen


def first_of_groups(keys: Sequence[str | None], k: int, size: int, done: Collection[str] = ()) -> tuple[list[int], int]:
    """Return the places of the first ``size`` of each of the first ``k`` groups, and how many groups there are.

    Args:
        keys: The group of each candidate, best first; None is a group by itself.
        k: Groups.
        size: Of a group, at most.
        done: Groups that are not wanted any more.
    """
    places: list[int] = []
    taken: dict[str | int, int] = {}
    for place, key in enumerate(keys):
        if key is not None and key in done:
            continue
        group: str | int = place if key is None else key
        if group not in taken and len(taken) == k:
            continue
        if taken.get(group, 0) < size:
            taken[group] = taken.get(group, 0) + 1
            places.append(place)
    return places, len(taken)


def value_at(name: str, metadata: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path of a document's metadata, or its id for ``id``; None where there is none."""
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
    """Return what is equal for equal values only; None for none."""
    return None if value is None else json.dumps(value, sort_keys=True)
