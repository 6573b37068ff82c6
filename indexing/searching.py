"""Searches over one state of a collection: one field or several, joined and ranked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedserve.errors import InputError
from indexing import view as views
from indexing.base import Hits
from indexing.filters import Filter
from indexing.fusion import Method, fuse, rerank
from indexing.manifest import Manifest
from indexing.state import State

MAX_K = 1000
CANDIDATES = 100  # of each field, at least, where rankings are joined
HYBRID = "hybrid"


@dataclass(frozen=True)
class Hit:
    """A document that was found; a higher score is better."""

    id: str
    score: float
    text: str
    title: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """What a search is to do besides the queries; see `indexing.collection.Collection.search`."""

    k: int
    filter: Filter | None = None
    fusion: Method = "rrf"
    weights: Mapping[str, float] | None = None
    rerank: str | None = None
    candidates: int = CANDIDATES


def find_hits(state: State, names: Sequence[str], queries: Mapping[str, Any], options: Options) -> list[list[Hit]]:
    """Return the best documents of each query, best first.

    Args:
        state: What is searched.
        names: Fields whose rankings are joined.
        queries: By field, Q vectors or texts; those of the field that ranks again too.
        options: The rest.
    """
    fields, view = state.manifest.fields, state.view
    several = len(names) > 1 or options.rerank is not None
    width = max(options.k, check_k(options.candidates, "candidates")) if several else options.k
    found = [views.search_field(view, name, fields[name], queries[name], width, options.filter) for name in names]
    hits = found[0] if len(found) == 1 else fuse(found, width, options.fusion, weights_of(options.weights, names))
    if options.rerank is not None:
        hits = ranked_again(view, hits, options.rerank, queries)
    return with_documents(view, views.first(hits, options.k))


def ranked_again(view: views.View, hits: Hits, name: str, queries: Mapping[str, Any]) -> Hits:
    """Return the hits in the order of exact MaxSim by the field ``name``."""
    if name not in queries:
        raise InputError(f"there are no query vectors for {name!r}, which rerank needs", field="rerank")
    score = views.token_scores(view, name)
    width = max(hits.rows.shape[1], 1)
    return rerank(hits, lambda query, rows: score(queries[name][query], rows), width)


def with_documents(view: views.View, hits: Hits) -> list[list[Hit]]:
    """Return the documents behind hits whose rows are numbers in the order of writing."""
    found = [hits.of(query) for query in range(len(hits))]
    documents = views.documents_at(view, [int(row) for rows, _ in found for row in rows])
    lists = []
    for rows, scores in found:
        pairs = [(documents[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        lists.append([Hit(d.id, score, d.text, d.title, d.metadata) for d, score in pairs])
    return lists


def searched(manifest: Manifest, mode: str | None) -> list[str]:
    """Return the names of the fields that a mode stands for: one, all for ``hybrid``, the main one for None."""
    if mode == HYBRID:
        return list(manifest.fields)
    if mode is None:
        return [next(name for name, field in manifest.fields.items() if field is manifest.main)]
    if mode not in manifest.fields:
        raise InputError(f"there is no field {mode!r}; there are {', '.join(manifest.fields)}", field="mode")
    return [mode]


def check_reranking(manifest: Manifest, name: str) -> str:
    """Return ``name`` if it is a field of token vectors, else raise `InputError`."""
    if name not in manifest.fields or manifest.fields[name].output != "multi":
        known = ", ".join(key for key, field in manifest.fields.items() if field.output == "multi") or "no such fields"
        raise InputError(f"rerank needs a field of token vectors, got {name!r}; there are {known}", field="rerank")
    return name


def weights_of(weights: Mapping[str, float] | None, names: Sequence[str]) -> list[float] | None:
    """Return the weight of each field in a fusion, 1 unless given."""
    if weights is None:
        return None
    if unknown := sorted(weights.keys() - set(names)):
        raise InputError(f"weights: {unknown[0]!r} is not searched; {', '.join(names)} are", field="weights")
    return [float(weights.get(name, 1.0)) for name in names]


def check_k(k: int, field: str = "top_k") -> int:
    """Return ``k`` if that many may be asked for, else raise `InputError`."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise InputError(f"{field} must be a whole number from 1 to {MAX_K}, got {k!r}", field=field)
    return k


def check_queries(queries: Sequence[str]) -> None:
    """Raise `InputError` unless ``queries`` is a list of texts, none of them blank."""
    if isinstance(queries, str):
        raise InputError("queries must be a list of texts, got one string", field="query")
    if not queries:
        raise InputError("there is no query", field="query")
    for number, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            what = "empty" if isinstance(query, str) else f"of type {type(query).__name__}, not a string"
            raise InputError(f"query {number} is {what}", field="query")
