"""Explain a hit: its score and rank by each retriever, and its best-matching tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedserve.types import TokenEmbeddings
from indexing.base import Hits


@dataclass(frozen=True)
class Rank:
    """The score of a document by one retriever, and its rank, from 1."""

    score: float
    rank: int


@dataclass(frozen=True)
class TokenMatch:
    """A token of a query, and the most similar token of the document.

    Attributes:
        query: Index into the token vectors of the query.
        document: Index into the token vectors of the document.
        similarity: Dot product of the two; the sum over the query's tokens is MaxSim.
        query_token: Vocabulary id of the query token; -1 if unknown.
        document_token: Vocabulary id of the document token; -1 if unknown.
    """

    query: int
    document: int
    similarity: float
    query_token: int
    document_token: int


@dataclass(frozen=True)
class Explanation:
    """Why a document matches.

    Attributes:
        retrievers: Rank by field; fields without the document among their candidates are omitted.
        tokens: Matches by field of token vectors.
    """

    retrievers: Mapping[str, Rank]
    tokens: Mapping[str, Sequence[TokenMatch]] = field(default_factory=dict)


def ranks_of(rankings: Mapping[str, Hits], query: int) -> dict[int, dict[str, Rank]]:
    """Return score and rank of each row by each retriever for one query."""
    of_row: dict[int, dict[str, Rank]] = {}
    for name, hits in rankings.items():
        rows, scores = hits.of(query)
        for rank, (row, score) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True), 1):
            of_row.setdefault(row, {})[name] = Rank(score, rank)
    return of_row


def matches(
    query: np.ndarray, document: np.ndarray, query_ids: np.ndarray, document_ids: np.ndarray
) -> list[TokenMatch]:
    """Return the best-matching token of a document for every token of a query, in the order of the query.

    Args:
        query: (q, d) float32.
        document: (t, d) float32.
        query_ids: (q,) vocabulary ids.
        document_ids: (t,) vocabulary ids.
    """
    products = query @ document.T  # (q, t)
    best = products.argmax(axis=1)
    return [
        TokenMatch(row, int(column), float(products[row, column]), int(query_ids[row]), int(document_ids[column]))
        for row, column in enumerate(best)
    ]


def matches_of(queries: TokenEmbeddings, query: int, documents: TokenEmbeddings, document: int) -> list[TokenMatch]:
    """Return `matches` of one of several queries and one of several documents."""
    rows = slice(queries.offsets[query], queries.offsets[query + 1])
    columns = slice(documents.offsets[document], documents.offsets[document + 1])
    ids = queries.token_ids[rows], documents.token_ids[columns]
    return matches(queries.vectors[rows], documents.vectors[columns], *ids)
