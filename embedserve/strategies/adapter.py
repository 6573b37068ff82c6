"""A low-rank residual adapter of frozen vectors, trained on pairs of one's own (Khatry et al. 2023, arXiv 2310.05380).

    q' = q + B A q        A (r, d), B (d, r), B = 0 at first

for the unit vectors q of queries, and with ``side`` both, with weights of their own, for documents. With ``side``
query an existing index stays as it is. Trains on a few hundred pairs in seconds. No code was published; the form is
inferred. Adding a learned residual to a query's vector is claimed by US patent 12,645,671 B2: get advice before using
this strategy in the United States. Nothing else here uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedserve.compat import vector_width
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.heads import HeadModule
from embedserve.spec import EncoderSpec
from embedserve.strategies.inner import build_inner, canonical_inner

OPTIONS: dict[str, Any] = {"of": "mean", "rank": 16, "side": "query"}
TRAINED = True
SIDES = ("query", "both")


class Adapter(HeadModule):
    """Adds to ``sentence_embedding`` (B, d), made unit length, its low-rank residual.

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
        """Adapt the rows of queries, and with ``side`` both those of documents."""
        vectors = features["sentence_embedding"]
        unit, is_query = functional.normalize(vectors.float(), dim=-1), features["is_query"][:, None]
        other = self.document(unit) if self.side == "both" else 0.0
        features["sentence_embedding"] = (unit + torch.where(is_query, self.query(unit), other)).to(vectors.dtype)
        return features

    def get_embedding_dimension(self) -> int:
        """Return d."""
        return self.width


def residual(width: int, rank: int) -> nn.Sequential:
    """Return B A, 0 at first."""
    down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
    nn.init.zeros_(up.weight)
    return nn.Sequential(down, up)


def canonical_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with those of the inner strategy spelled out."""
    return {**options, "of": canonical_inner(options["of"])}


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the modules of the inner strategy, and the adapter."""
    if type(options["rank"]) is not int or options["rank"] < 1:
        message = f"options.rank must be a whole number of at least 1, got {options['rank']!r}"
        raise SpecError(message, field="options.rank")
    if options["side"] not in SIDES:
        raise SpecError(f"options.side must be query or both, got {options['side']!r}", field="options.side")
    modules = build_inner(spec, options["of"], folder)
    if not isinstance(modules[0], Decoder):  # the adapter asks what is a query, which the plain input does not say
        modules = build_inner(replace(spec, template="{text}"), options["of"], folder)
    return [*modules, Adapter(vector_width(modules), options["rank"], options["side"])]
