"""A low-rank residual adapter over frozen vectors, trained on your own pairs (Khatry et al. 2023, arXiv 2310.05380).

    q' = q + B A q        A (r, d), B (d, r), B = 0 before training

for the unit vectors q of queries, and with ``side=both`` also for documents, with separate weights. With
``side=query`` an existing index stays valid. Trains on a few hundred pairs in seconds. The authors published no code;
the form is inferred from the abstract. US patent 12,645,671 B2 claims adding a learned residual to a query's vector:
get advice before you use this strategy in the United States. No other strategy uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.compat import vector_width
from embedserve.decoder import Decoder
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.inner import build_inner, canonical_inner
from embedserve.strategies.strategy import Strategy, option


class Adapter(HeadModule):
    """Normalises ``sentence_embedding`` (B, d) and adds its low-rank residual.

    Args:
        width: d.
        rank: r.
        side: ``query`` or ``both``.
    """

    config_keys = ["width", "rank", "side"]

    def __init__(self, width: int, rank: int, side: str) -> None:
        super().__init__()
        self.width, self.rank, self.side = width, rank, side
        self.query = residual(width, rank)
        if side == "both":
            self.document = residual(width, rank)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adapt the rows of queries; with ``side=both`` also those of documents."""
        vectors = features["sentence_embedding"]
        unit, is_query = functional.normalize(vectors.float(), dim=-1), features["is_query"][:, None]
        document = self.document(unit) if self.side == "both" else 0.0
        features["sentence_embedding"] = (unit + torch.where(is_query, self.query(unit), document)).to(vectors.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return d."""
        return self.width


def residual(width: int, rank: int) -> nn.Sequential:
    """Return the map B A, initialised to 0."""
    down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)


@dataclass(frozen=True)
class AdapterStrategy(Strategy):
    """The vectors of another strategy plus a trained low-rank residual."""

    of: str = option("mean", "strategy whose vectors are adapted: one vector per text, no trained weights")
    rank: int = option(16, "rank r of the residual", minimum=1)
    side: Literal["query", "both"] = option(
        "query", "which side is adapted; `both` needs a rebuilt index, documents have separate weights"
    )

    def is_trained(self) -> bool:
        """Return True."""
        return True

    def canonical(self) -> dict[str, Any]:
        """Return the options with the inner strategy as plain values."""
        return {**super().canonical(), "of": canonical_inner(self.of)}

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the modules of the inner strategy, and the adapter."""
        modules = build_inner(spec, self.of, folder)
        if not isinstance(modules[0], Decoder):  # only our own input module says which rows are queries
            modules = build_inner(replace(spec, template="{text}"), self.of, folder)
        return [*modules, Adapter(vector_width(modules), self.rank, self.side)]
