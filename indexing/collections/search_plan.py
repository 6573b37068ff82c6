"""Search plans: options of a search checked once against the fields of a collection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedserve.errors import InputError
from indexing.collections.manifest import Manifest
from indexing.collections.state import State
from indexing.query.fusion import METHODS
from indexing.query.search_options import Options, check_k

HYBRID = "hybrid"


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """A checked search of one snapshot; made by `Collection.plan`.

    Attributes:
        state: The snapshot to search.
        names: Fields to retrieve candidates from; several rankings are fused.
        options: The checked options.
        weights: Weight of each of ``names`` in the fusion; None for equal weights.
    """

    state: State
    names: Sequence[str]
    options: Options
    weights: Sequence[float] | None

    @property
    def required(self) -> tuple[str, ...]:
        """Fields that need a vector or text of each query: ``names``, and those of reranking and MMR."""
        mmr = self.options.mmr.field if self.options.mmr is not None else None
        return tuple(name for name in dict.fromkeys([*self.names, self.options.rerank, mmr]) if name is not None)

    def check_queries(self, queries: Mapping[str, Any]) -> None:
        """Raise `InputError` if ``queries`` lacks a required field."""
        for name in self.required:
            if name not in queries:
                what = "rerank" if name == self.options.rerank and name not in self.names else "vectors"
                raise InputError(f"query vectors of field {name!r} are missing", field=what)


def plan_search(state: State, options: Options, mode: str | Sequence[str] | None) -> SearchPlan:
    """Check ``options`` against the fields of a snapshot; see `Collection.plan`."""
    manifest = state.manifest
    names = fields_of_mode(manifest, mode) if mode is None or isinstance(mode, str) else list(mode)
    for name in names:
        fields_of_mode(manifest, name)
    if not names:
        raise InputError("mode names no field to search", field="mode")
    check_k(options.k)
    check_k(options.candidates, "candidates")
    if options.fusion not in METHODS:
        raise InputError(f"fusion must be one of {', '.join(METHODS)}, got {options.fusion!r}", field="fusion")
    if options.rerank is not None:
        _check_output(manifest, options.rerank, "multi", "token vectors", "rerank")
    if options.mmr is not None:
        _check_output(manifest, options.mmr.field, "dense", "dense vectors", "mmr.field")
        if options.group_by is not None:
            raise InputError("group_by and mmr cannot be combined; send one of them", field="mmr")
    return SearchPlan(state, names, options, _weights_of(options.weights, names))


def fields_of_mode(manifest: Manifest, mode: str | None) -> list[str]:
    """Return the fields that a mode searches: one by name, all for ``hybrid``, the main field for None."""
    if mode == HYBRID:
        return list(manifest.fields)
    if mode is None:
        return [next(name for name, field in manifest.fields.items() if field is manifest.main)]
    if mode not in manifest.fields:
        raise InputError(f"mode {mode!r} is not a field; the fields are {', '.join(manifest.fields)}", field="mode")
    return [mode]


def _check_output(manifest: Manifest, name: str, output: str, title: str, param: str) -> None:
    known = [key for key, field in manifest.fields.items() if field.output == output]
    if name not in known:
        hint = f"use one of {', '.join(known)}" if known else "the collection has no such field"
        raise InputError(f"{param} must be a field of {title}, got {name!r}; {hint}", field=param)


def _weights_of(weights: Mapping[str, float] | None, names: Sequence[str]) -> list[float] | None:
    if weights is None:
        return None
    if unknown := sorted(weights.keys() - set(names)):
        message = f"weights: field {unknown[0]!r} is not searched; the search covers {', '.join(names)}"
        raise InputError(message, field="weights")
    values = [float(weights.get(name, 1.0)) for name in names]
    if not all(0 <= weight < float("inf") for weight in values):
        raise InputError(f"weights must be finite and not negative, got {dict(weights)}", field="weights")
    return values
