"""Similarity of texts to a query: MaxSim of token vectors, or cosine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedserve.scoring import maxsim
from embedserve.types import Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.inference.encode_options import EncodeOptions
    from api.inference.model import Model
from api.service import Service


@dataclass(frozen=True)
class Ranked:
    """Scores (N,) float32 of texts in order, higher is better, and the tokens read, including the query's."""

    scores: np.ndarray
    tokens: int

    def best(self, count: int | None = None) -> list[int]:
        """Return the indices of the ``count`` best texts, best first; of equal scores the lower index first."""
        return np.argsort(-self.scores, kind="stable")[:count].tolist()


async def rank(
    service: Service,
    model: Model,
    query: str,
    texts: Sequence[str],
    query_options: EncodeOptions,
    options: EncodeOptions,
) -> Ranked:
    """Return the similarity of each of ``texts`` to ``query``.

    Args:
        service: Runs the scoring in a search thread.
        model: Embeds the texts.
        query: One text.
        texts: At least one.
        query_options: How to embed the query.
        options: How to embed the texts.
    """
    # Sequentially: a list larger than the queue is accepted only while the queue is empty.
    query_encoded, _ = await model.embed([query], query_options)
    encoded, _ = await model.embed(texts, options)
    scores = await service.in_search_thread(scores_of, query_encoded, encoded)
    return Ranked(scores, int(query_encoded.tokens.sum() + encoded.tokens.sum()))


def scores_of(query: Encoded, texts: Encoded) -> np.ndarray:
    """Return the scores (N,) float32 of texts for the one text of ``query``: cosines, or MaxSim of token vectors."""
    if query.dense is not None and texts.dense is not None:
        scores: np.ndarray = texts.dense.vectors @ query.dense.vectors[0]
        return scores
    assert query.multi is not None and texts.multi is not None  # an encoder has one of the two
    return maxsim(query.multi[0], texts.multi)
