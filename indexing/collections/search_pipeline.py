"""The search pipeline: retrieve candidates of each field, fuse, rerank, select, fetch documents."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from indexing.base import Hits
from indexing.collections import view as views
from indexing.collections.hit_assembly import assemble_hits, select_hits
from indexing.collections.search_plan import SearchPlan
from indexing.query.fusion import fuse, rerank
from indexing.query.search_options import MAX_K, Hit, Options


def run_search(
    plan: SearchPlan, queries: Mapping[str, Any], timings_s: dict[str, float] | None = None
) -> list[list[Hit]]:
    """Return the best documents of each query, best first.

    Args:
        plan: The checked search.
        queries: Q vectors, or Q texts for words, of each of ``plan.required``.
        timings_s: Receives the seconds of each stage that ran: ``retrieve`` (candidates of each field), ``fuse``,
            ``rerank`` (by MaxSim or MMR), ``fetch`` (selecting and reading documents).
    """
    plan.check_queries(queries)
    options, state = plan.options, plan.state
    fields, view = state.manifest.fields, state.view
    several = len(plan.names) > 1
    for width in _widths(options, several=several):
        with timed(timings_s, "retrieve"):
            rankings = {
                name: views.search_field(view, name, fields[name], queries[name], width, options.filter)
                for name in plan.names
            }
        hits = next(iter(rankings.values()))
        if several:
            with timed(timings_s, "fuse"):
                hits = fuse(list(rankings.values()), width, options.fusion, plan.weights, rrf_k=options.rrf_k)
        if options.rerank is not None:
            with timed(timings_s, "rerank"):
                hits = rerank_by_tokens(view, hits, options.rerank, queries[options.rerank])
        hits = above_threshold(hits, options.score_threshold)
        with timed(timings_s, "fetch" if options.mmr is None else "rerank"):
            selections, complete = select_hits(state, hits, queries, options)
        if complete or not len(hits) or hits.counts.max() < width:
            break
    with timed(timings_s, "fetch"):
        return assemble_hits(state, selections, rankings, queries, options)


@contextmanager
def timed(timings_s: dict[str, float] | None, stage: str) -> Iterator[None]:
    """Add the seconds of the block to ``timings_s[stage]``."""
    start = time.perf_counter()
    yield
    if timings_s is not None:
        timings_s[stage] = timings_s.get(stage, 0.0) + time.perf_counter() - start


def _widths(options: Options, *, several: bool) -> Iterator[int]:
    """Yield the number of candidates of each field: the first attempt, then larger ones while groups are missing."""
    if options.rerank is not None or options.mmr is not None:
        yield max(options.k, options.candidates)
        return
    if several and options.shown is not None:
        yield MAX_K
        return
    width = min(options.k + len(options.shown or ()), MAX_K)
    if several:
        width = max(width, options.candidates)
    if options.group_by is not None:
        width = min(2 * width * options.group_by.size, MAX_K)
    yield width
    while options.group_by is not None and width < MAX_K:
        width = min(4 * width, MAX_K)
        yield width


def rerank_by_tokens(view: views.View, hits: Hits, name: str, queries: Any) -> Hits:
    """Return the hits ranked by exact MaxSim over the token vectors of field ``name``."""
    score = views.token_scores(view, name)
    return rerank(hits, lambda query, rows: score(queries[query], rows), max(hits.rows.shape[1], 1))


def above_threshold(hits: Hits, threshold: float | None) -> Hits:
    """Return the hits whose score is at least ``threshold``."""
    if threshold is None:
        return hits
    mask = np.arange(hits.rows.shape[1]) < hits.counts[:, None]
    return Hits(hits.rows, hits.scores, (mask & (hits.scores >= threshold)).sum(axis=1, dtype=np.int64))
