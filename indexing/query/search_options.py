"""What a search is asked for, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from embedserve.errors import InputError
from indexing.query.diversity import GroupBy, Mmr
from indexing.query.explanations import Explanation
from indexing.query.filters import Filter
from indexing.query.fusion import RRF_K, Method

MAX_K = 1000
CANDIDATES = 100  # of each field, at least, where rankings are joined


@dataclass(frozen=True)
class Hit:
    """A document that was found; a higher score is better.

    Attributes:
        id: The document's.
        score: By the field, the fusion, or the field that ranked again.
        text: The document's.
        title: The document's.
        metadata: The document's.
        row: Its number in the order of writing.
        group: Its value of the field that hits are grouped by.
        vectors: By field, where they were asked for: (d,), (t, d), or the weight of each vocabulary entry.
        explanation: Why it was found, where that was asked for.
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
    """The options of a search; see `indexing.Collection.search`.

    Attributes:
        k: Hits for each query, or groups of them with ``group_by``.
        filter: What documents must pass.
        fusion: How rankings are joined.
        weights: Of the fields in the fusion.
        rerank: The field of token vectors that ranks the candidates in the end.
        candidates: Of each field.
        rrf_k: Of the fusion by ranks.
        score_threshold: The least score that is shown.
        group_by: Shows few documents of each group.
        mmr: Shows documents that are unlike each other; the scores stay what they are.
        shown: Rows that earlier pages have shown and this one does not; None where there are no pages. The ranking is
            then as deep for the first page as for the last, so that pages continue each other.
        vectors: Whether hits have their vectors.
        explain: Whether hits say why they were found.
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


def check_k(k: int, field: str = "top_k") -> int:
    """Return ``k`` if that many may be asked for, else raise `InputError`."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise InputError(f"{field} must be a whole number from 1 to {MAX_K}, got {k!r}", field=field)
    return k
