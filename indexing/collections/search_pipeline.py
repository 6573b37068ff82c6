"""Searches over one state of a collection: one field or several, joined, ranked again, and chosen from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from embedserve.errors import InputError
from indexing.base import Hits
from indexing.collections import view as views
from indexing.collections.hit_assembly import choose, with_documents
from indexing.collections.manifest import Manifest
from indexing.collections.state import State
from indexing.query.fusion import fuse, rerank
from indexing.query.search_options import MAX_K, Hit, Options, check_k

HYBRID = "hybrid"


def find_hits(
    state: State,
    names: Sequence[str],
    queries: Mapping[str, Any],
    options: Options,
    spent: dict[str, float] | None = None,
) -> list[list[Hit]]:
    """Return the best documents of each query, best first.

    Args:
        state: What is searched.
        names: Fields whose rankings are joined.
        queries: By field, Q vectors or texts; those of the field that ranks again too, and of that of ``mmr``.
        options: The rest.
        spent: Takes the seconds of each stage that there was: ``retrieve`` (the candidates of each field), ``fuse``,
            ``rerank`` (by MaxSim or ``mmr``), ``fetch`` (choosing what is shown and reading it).
    """
    fields, view = state.manifest.fields, state.view
    if options.group_by is not None and options.mmr is not None:
        raise InputError("group_by and mmr do not go together; send one of them", field="mmr")
    for width in _widths(options, several=len(names) > 1):
        with timed(spent, "retrieve"):
            found = {
                name: views.search_field(view, name, fields[name], queries[name], width, options.filter)
                for name in names
            }
        with timed(spent if len(names) > 1 else None, "fuse"):
            hits = joined(list(found.values()), width, options, names)
        if options.rerank is not None:
            with timed(spent, "rerank"):
                hits = ranked_again(view, hits, options.rerank, queries)
        hits = above(hits, options.score_threshold)
        with timed(spent, "fetch" if options.mmr is None else "rerank"):
            chosen, enough = choose(state, hits, queries, options)
        if enough or not len(hits) or hits.counts.max() < width:
            break
    with timed(spent, "fetch"):
        return with_documents(state, chosen, found, queries, options)


@contextmanager
def timed(spent: dict[str, float] | None, stage: str) -> Iterator[None]:
    """Add the seconds of the block to those of its stage, where they are wanted."""
    started = time.perf_counter()
    yield
    if spent is not None:
        spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - started


def _widths(options: Options, *, several: bool) -> Iterator[int]:
    """Yield how many candidates each field gives, then more, as long as that may help."""
    shown = len(options.shown or ())
    if options.rerank is not None or options.mmr is not None:
        yield max(options.k, check_k(options.candidates, "candidates"))
        return
    if several and options.shown is not None:
        yield MAX_K
        return
    width = min(options.k + shown, MAX_K)
    width = max(width, check_k(options.candidates, "candidates")) if several else width
    if options.group_by is not None:
        width = min(2 * width * options.group_by.size, MAX_K)
    yield width
    while options.group_by is not None and width < MAX_K:
        width = min(4 * width, MAX_K)
        yield width


def joined(found: Sequence[Hits], width: int, options: Options, names: Sequence[str]) -> Hits:
    """Return the rankings of the fields ``names`` as one."""
    if len(found) == 1:
        return found[0]
    return fuse(found, width, options.fusion, weights_of(options.weights, names), rrf_k=options.rrf_k)


def ranked_again(view: views.View, hits: Hits, name: str, queries: Mapping[str, Any]) -> Hits:
    """Return the hits in the order of exact MaxSim by the field ``name``."""
    if name not in queries:
        raise InputError(f"there are no query vectors for {name!r}, which rerank needs", field="rerank")
    score = views.token_scores(view, name)
    width = max(hits.rows.shape[1], 1)
    return rerank(hits, lambda query, rows: score(queries[name][query], rows), width)


def above(hits: Hits, threshold: float | None) -> Hits:
    """Return the hits whose score is at least ``threshold``."""
    if threshold is None:
        return hits
    mask = np.arange(hits.rows.shape[1]) < hits.counts[:, None]
    return Hits(hits.rows, hits.scores, (mask & (hits.scores >= threshold)).sum(axis=1, dtype=np.int64))


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


def check_mmr(manifest: Manifest, name: str) -> str:
    """Return ``name`` if it is a field of dense vectors, else raise `InputError`."""
    if name not in manifest.fields or manifest.fields[name].output != "dense":
        known = ", ".join(key for key, field in manifest.fields.items() if field.output == "dense") or "no such fields"
        raise InputError(f"mmr needs a field of dense vectors, got {name!r}; there are {known}", field="mmr.field")
    return name


def weights_of(weights: Mapping[str, float] | None, names: Sequence[str]) -> list[float] | None:
    """Return the weight of each field in a fusion, 1 unless given."""
    if weights is None:
        return None
    if unknown := sorted(weights.keys() - set(names)):
        raise InputError(f"weights: {unknown[0]!r} is not searched; {', '.join(names)} are", field="weights")
    return [float(weights.get(name, 1.0)) for name in names]


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
