"""Turn candidates into hits: select the ones to return and read their documents, vectors and explanations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexing.base import Hits, unit
from indexing.collections import view as views
from indexing.collections.state import State
from indexing.collections.stored_vectors import is_live, vectors_at
from indexing.query.diversity import first_of_groups, group_key, mmr_order, value_at
from indexing.query.explanations import Explanation, matches_of, ranks_of
from indexing.query.search_options import Hit, Options


@dataclass(frozen=True)
class Selection:
    """The candidates returned for one query: sequence numbers, scores, and the values they are grouped by."""

    rows: list[int]
    scores: list[float]
    groups: list[Any]


def select_hits(state: State, hits: Hits, queries: Mapping[str, Any], options: Options) -> tuple[list[Selection], bool]:
    """Return the selection of each query, and whether all requested groups were filled."""
    selections, complete = [], True
    shown = set(options.shown or ())
    for query in range(len(hits)):
        rows, scores = (values.tolist() for values in hits.of(query))
        indices = [index for index, row in enumerate(rows) if row not in shown]
        if options.group_by is not None:
            indices, groups, count = _grouped(state, rows, indices, options)
            complete &= count == options.k
        else:
            indices = _diverse(state, rows, indices, queries, query, options) if options.mmr else indices[: options.k]
            groups = [None] * len(indices)
        selections.append(Selection([rows[index] for index in indices], [scores[index] for index in indices], groups))
    return selections, complete


def _grouped(
    state: State, rows: Sequence[int], indices: Sequence[int], options: Options
) -> tuple[list[int], list[Any], int]:
    """Return the selected indices into ``rows``, the group value of each, and the number of groups."""
    assert options.group_by is not None
    earlier = [row for row in options.shown or () if is_live(state.view, row)]
    documents = views.documents_at(state.view, [*(rows[index] for index in indices), *earlier])
    values = {row: value_at(d.id, d.metadata, options.group_by.field) for row, d in documents.items()}
    excluded = {key for row in earlier if (key := group_key(values[row])) is not None}
    keys = [group_key(values[rows[index]]) for index in indices]
    positions, count = first_of_groups(keys, options.k, options.group_by.size, excluded)
    selected = [indices[position] for position in positions]
    return selected, [values[rows[index]] for index in selected], count


def _diverse(
    state: State, rows: Sequence[int], indices: Sequence[int], queries: Mapping[str, Any], query: int, options: Options
) -> list[int]:
    """Return the selected indices into ``rows`` in the order of maximal marginal relevance."""
    assert options.mmr is not None
    name = options.mmr.field
    field = state.manifest.fields[name]
    earlier = [row for row in options.shown or () if is_live(state.view, row)]
    vectors: Any = vectors_at(state.view, name, field, [*(rows[index] for index in indices), *earlier])
    query_vector = queries[name][query : query + 1]
    if field.metric == "cosine":
        vectors, query_vector = unit(vectors), unit(query_vector)
    candidates, before = vectors[: len(indices)], vectors[len(indices) :]
    order = mmr_order(candidates @ query_vector[0], candidates, options.k, options.mmr.balance, before)
    return [indices[position] for position in order]


def assemble_hits(
    state: State,
    selections: Sequence[Selection],
    rankings: Mapping[str, Hits],
    queries: Mapping[str, Any],
    options: Options,
) -> list[list[Hit]]:
    """Return the hits of each query with their documents and the requested vectors and explanations.

    Args:
        state: The searched snapshot.
        selections: The selection of each query.
        rankings: The candidates of each field, for explanations.
        queries: Query vectors or texts by field.
        options: The options of the search.
    """
    view, fields = state.view, state.manifest.fields
    rows = list(dict.fromkeys(row for selection in selections for row in selection.rows))
    index_of = {row: index for index, row in enumerate(rows)}
    documents = views.documents_at(view, rows)
    returned = [name for name, field in fields.items() if options.vectors and field.output != "words"]
    explained = dict.fromkeys([*rankings, *([options.rerank] if options.rerank else [])]) if options.explain else {}
    matched = [name for name in explained if fields[name].output == "multi"]
    stored: dict[str, Any] = {name: vectors_at(view, name, fields[name], rows) for name in {*returned, *matched}}
    lists = []
    for query, selection in enumerate(selections):
        ranks = ranks_of(rankings, query) if options.explain else {}
        hits = []
        for row, score, group in zip(selection.rows, selection.scores, selection.groups, strict=True):
            document, index = documents[row], index_of[row]
            explanation = None
            if options.explain:
                tokens = {name: matches_of(queries[name], query, stored[name], index) for name in matched}
                explanation = Explanation(ranks.get(row, {}), tokens)
            vectors = {name: stored[name][index] for name in returned} if options.vectors else None
            content = (document.id, score, document.text, document.title, document.metadata)
            hits.append(Hit(*content, row, group, vectors, explanation))
        lists.append(hits)
    return lists
