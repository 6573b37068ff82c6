"""Why a document was found: its score and rank by each retriever, and which of its tokens answer those of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from embedserve.types import TokenEmbeddings
from indexing.base import Hits


@dataclass(frozen=True)
class Rank:
    """The score of a document by one retriever, and its rank there from 1."""

    score: float
    rank: int


@dataclass(frozen=True)
class TokenMatch:
    """A token of a query, and the token of the document that is most like it.

    Attributes:
        query: Its place among the query's token vectors.
        document: The place of the other among the document's.
        similarity: Their dot product; over all tokens of the query these add up to MaxSim.
        query_token: Its vocabulary entry; -1 where that is not known.
        document_token: The other's.
    """

    query: int
    document: int
    similarity: float
    query_token: int
    document_token: int


@dataclass(frozen=True)
class Explanation:
    """Why a document was found.

    Attributes:
        retrievers: By field; those that did not find it among their candidates are left out.
        tokens: By field of token vectors.
    """

    retrievers: Mapping[str, Rank]
    tokens: Mapping[str, Sequence[TokenMatch]] = field(default_factory=dict)


def ranks_of(found: Mapping[str, Hits], query: int) -> dict[int, dict[str, Rank]]:
    """Return what each retriever says of each row that it found for one query."""
    of_row: dict[int, dict[str, Rank]] = {}
    for name, hits in found.items():
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
        query_ids: (q,) vocabulary entries.
        document_ids: (t,) vocabulary entries.
    """
    products = query @ document.T  # (q, t)
    best = products.argmax(axis=1)
    return [
        TokenMatch(place, int(at), float(products[place, at]), int(query_ids[place]), int(document_ids[at]))
        for place, at in enumerate(best)
    ]


def matches_of(queries: TokenEmbeddings, query: int, documents: TokenEmbeddings, document: int) -> list[TokenMatch]:
    """Return `matches` of one query and one document among several."""
    asked = slice(queries.offsets[query], queries.offsets[query + 1])
    found = slice(documents.offsets[document], documents.offsets[document + 1])
    ids = queries.token_ids[asked], documents.token_ids[found]
    return matches(queries.vectors[asked], documents.vectors[found], *ids)
