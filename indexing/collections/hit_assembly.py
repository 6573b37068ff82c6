"""What a search shows of its candidates: which of them, and what of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexing.base import Hits, unit
from indexing.collections import view as views
from indexing.collections.state import State
from indexing.collections.stored_vectors import is_there, vectors_at
from indexing.query.diversity import first_of_groups, group_key, spread, value_at
from indexing.query.explanations import Explanation, matches_of, placed
from indexing.query.search_options import Hit, Options


@dataclass(frozen=True)
class Chosen:
    """What one query shows: rows, their scores, and the values that they are grouped by."""

    rows: list[int]
    scores: list[float]
    groups: list[Any]


def choose(state: State, hits: Hits, queries: Mapping[str, Any], options: Options) -> tuple[list[Chosen], bool]:
    """Return what each query shows of its candidates, and whether that is as much as was asked for."""
    chosen, enough = [], True
    shown = set(options.shown or ())
    for query in range(len(hits)):
        rows, scores = (values.tolist() for values in hits.of(query))
        places = [place for place, row in enumerate(rows) if row not in shown]
        groups: list[Any] = []
        if options.group_by is not None:
            places, groups, count = _grouped(state, rows, places, options)
            enough &= count == options.k
        else:
            places = (
                _unlike(state, rows, places, queries, query, options)
                if options.mmr is not None
                else places[: options.k]
            )
            groups = [None] * len(places)
        chosen.append(Chosen([rows[place] for place in places], [scores[place] for place in places], groups))
    return chosen, enough


def _grouped(
    state: State, rows: Sequence[int], places: Sequence[int], options: Options
) -> tuple[list[int], list[Any], int]:
    """Return the places that are shown, the group of each, and how many groups there are."""
    assert options.group_by is not None
    before = [row for row in options.shown or () if is_there(state.view, row)]
    documents = views.documents_at(state.view, [*(rows[place] for place in places), *before])
    values = {row: value_at(d.id, d.metadata, options.group_by.field) for row, d in documents.items()}
    done = {key for row in before if (key := group_key(values[row])) is not None}
    keys = [group_key(values[rows[place]]) for place in places]
    kept, count = first_of_groups(keys, options.k, options.group_by.size, done)
    return [places[at] for at in kept], [values[rows[places[at]]] for at in kept], count


def _unlike(
    state: State, rows: Sequence[int], places: Sequence[int], queries: Mapping[str, Any], query: int, options: Options
) -> list[int]:
    """Return the places that are shown, in the order of marginal relevance."""
    assert options.mmr is not None
    name = options.mmr.field
    field = state.manifest.fields[name]
    before = [row for row in options.shown or () if is_there(state.view, row)]
    vectors: Any = vectors_at(state.view, name, field, [*(rows[place] for place in places), *before])
    asked = queries[name][query : query + 1]
    if field.metric == "cosine":
        vectors, asked = unit(vectors), unit(asked)
    candidates, earlier = vectors[: len(places)], vectors[len(places) :]
    return [places[at] for at in spread(candidates @ asked[0], candidates, options.k, options.mmr.balance, earlier)]


def with_documents(
    state: State, chosen: Sequence[Chosen], found: Mapping[str, Hits], queries: Mapping[str, Any], options: Options
) -> list[list[Hit]]:
    """Return the documents behind what each query shows, with what else was asked for.

    Args:
        state: Where they are.
        chosen: Of each query.
        found: The hits of each field, for explanations.
        queries: By field.
        options: Of the search.
    """
    view, fields = state.view, state.manifest.fields
    rows = list(dict.fromkeys(row for one in chosen for row in one.rows))
    place_of = {row: place for place, row in enumerate(rows)}
    documents = views.documents_at(view, rows)
    wanted = [name for name, kept in fields.items() if options.vectors and kept.output != "words"]
    compared = dict.fromkeys([*found, *([options.rerank] if options.rerank else [])]) if options.explain else {}
    compared = {name: None for name in compared if fields[name].output == "multi"}
    kept: dict[str, Any] = {name: vectors_at(view, name, fields[name], rows) for name in {*wanted, *compared}}
    lists = []
    for query, one in enumerate(chosen):
        told = placed(found, query) if options.explain else {}
        hits = []
        for row, score, group in zip(one.rows, one.scores, one.groups, strict=True):
            document, place = documents[row], place_of[row]
            explanation = None
            if options.explain:
                tokens = {name: matches_of(queries[name], query, kept[name], place) for name in compared}
                explanation = Explanation(told.get(row, {}), tokens)
            vectors = {name: kept[name][place] for name in wanted} if options.vectors else None
            what = (document.id, score, document.text, document.title, document.metadata)
            hits.append(Hit(*what, row, group, vectors, explanation))
        lists.append(hits)
    return lists
