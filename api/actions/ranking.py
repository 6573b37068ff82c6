"""How near texts are to a query: by MaxSim of token vectors, or by cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedserve.scoring import maxsim
from embedserve.types import Encoded, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.service import Service


@dataclass(frozen=True)
class Ranked:
    """Scores (N,) float32 of texts in their order; higher is better. ``tokens`` were read, the query's among them."""

    scores: np.ndarray
    tokens: int

    def best(self, count: int | None = None) -> list[int]:
        """Return the places of the ``count`` best texts, best first; of equals the one that stands first."""
        return np.argsort(-self.scores, kind="stable")[:count].tolist()


async def rank(
    service: Service,
    query: str,
    texts: Sequence[str],
    *,
    field: str,
    query_field: str = "query",
    model: str | None = None,
    tasks: tuple[Task, Task] = ("query", "document"),
    truncate: str = "end",
    max_tokens: int | None = None,
    priority: str | None = None,
) -> Ranked:
    """Return how near each of ``texts`` is to ``query``.

    Args:
        service: What embeds.
        query: One text.
        texts: At least one.
        field: What an error calls ``texts``.
        query_field: What an error calls ``query``.
        model: Name of the model; None for the default one.
        tasks: What the query and the texts are.
        truncate: Which end of a long text is cut.
        max_tokens: Tokens to read of each of ``texts``.
        priority: Who goes first; by the tasks unless given.
    """
    how: dict[str, Any] = {"model": model, "priority": priority, "truncate": truncate}
    # One after the other: beside its own query a list larger than the queue would never be taken.
    asked = await service.embed([query], tasks[0], field=query_field, **how)
    found = await service.embed(texts, tasks[1], field=field, max_tokens=max_tokens, **how)
    scores = await service.in_search_thread(scores_of, asked, found)
    return Ranked(scores, int(asked.tokens.sum() + found.tokens.sum()))


def scores_of(query: Encoded, texts: Encoded) -> np.ndarray:
    """Return the scores (N,) float32 of texts for the one text of ``query``: MaxSim of token vectors, else cosines."""
    if query.dense is not None and texts.dense is not None:
        scores: np.ndarray = texts.dense.vectors @ query.dense.vectors[0]
        return scores
    assert query.multi is not None and texts.multi is not None  # an encoder makes the one or the other
    return maxsim(query.multi[0], texts.multi)
