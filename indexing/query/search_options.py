"""Search options and hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from embedserve.errors import InputError
from indexing.query.diversity import GroupBy, Mmr
from indexing.query.explanations import Explanation
from indexing.query.filters import Filter
from indexing.query.fusion import RRF_K, Method

MAX_K = 1000
CANDIDATES = 100  # default for each field whose ranking is fused or reranked


@dataclass(frozen=True)
class Hit:
    """A matching document; a higher score is better.

    Attributes:
        id: The document's id.
        score: Score by the field, by the fusion, or by the reranking field.
        text: The document's text.
        title: The document's title.
        metadata: The document's metadata.
        row: The document's sequence number, its position in write order.
        group: Value of the ``group_by`` field.
        vectors: By field, if requested: (d,), (t, d), or the weight of each vocabulary entry.
        explanation: Why the document matches, if requested.
    """

    id: str
    score: float
    text: str
    title: str
    metadata: Mapping[str, Any]
    row: int = field(default=-1, compare=False, repr=False)
    group: Any = field(default=None, repr=False)
    vectors: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    explanation: Explanation | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Options:
    """Options of a search, checked by `indexing.Collection.plan`.

    Attributes:
        k: Hits per query, or groups per query with ``group_by``; 1 to 1000.
        filter: Only documents that match.
        fusion: How the rankings of several fields are fused, see `indexing.query.fusion`.
        weights: Weight of each field in the fusion. Default: 1.
        rerank: Field of token vectors whose exact MaxSim ranks the candidates.
        candidates: Candidates per field to fuse, rerank or diversify; at least ``k`` are used.
        rrf_k: The constant k of reciprocal rank fusion.
        score_threshold: Minimum score of a hit.
        group_by: Limit the hits of each group.
        mmr: Diversify the hits; scores do not change.
        shown: Sequence numbers returned by earlier pages, which are excluded. None: no paging. With paging, the first
            page uses the same candidate depth as the last, so that pages are consistent.
        vectors: Return the vectors of hits.
        explain: Explain hits.
    """

    k: int
    filter: Filter | None = None
    fusion: Method = "rrf"
    weights: Mapping[str, float] | None = None
    rerank: str | None = None
    candidates: int = CANDIDATES
    rrf_k: int = RRF_K
    score_threshold: float | None = None
    group_by: GroupBy | None = None
    mmr: Mmr | None = None
    shown: Sequence[int] | None = None
    vectors: bool = False
    explain: bool = False


class OptionKeywords(TypedDict, total=False):
    """The keyword arguments of `indexing.Collection.search` that are passed to `Options`."""

    fusion: Method
    weights: Mapping[str, float] | None
    rerank: str | None
    candidates: int
    rrf_k: int
    score_threshold: float | None
    group_by: GroupBy | None
    mmr: Mmr | None
    shown: Sequence[int] | None
    explain: bool


def check_k(k: int, field: str = "top_k") -> int:
    """Return ``k`` if it is between 1 and `MAX_K`, else raise `InputError`."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise InputError(f"{field} must be a whole number from 1 to {MAX_K}, got {k!r}", field=field)
    return k


def check_texts(queries: Sequence[str]) -> None:
    """Raise `InputError` if ``queries`` is not a list of texts, or one of them is blank."""
    if isinstance(queries, str):
        raise InputError("queries must be a list of texts, got one string", field="query")
    if not queries:
        raise InputError("queries is empty; pass at least one text", field="query")
    for number, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            what = "empty" if isinstance(query, str) else f"of type {type(query).__name__}, not a string"
            raise InputError(f"query {number} is {what}", field="query")
