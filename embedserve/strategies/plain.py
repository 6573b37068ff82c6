"""The baselines: the mean of the last hidden states, the last token's, and the position-weighted mean.

The weighted mean gives token i of n the weight i / (1 + … + n), since later tokens of a causal model have seen more
of the text (SGPT, Muennighoff 2022, section 4.1, eq. 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from embedserve.backbone import hidden_size, load_plain
from embedserve.compat import Pooling
from embedserve.spec import EncoderSpec
from embedserve.strategies.strategy import Strategy

PoolingName = Literal["mean", "last_token", "weighted_mean"]
POOLING = {"mean": "mean", "last_token": "lasttoken", "weighted_mean": "weightedmean"}


def pooling(name: str, width: int) -> nn.Module:
    """Return sentence-transformers' pooling over states of ``width`` D; ``name`` is a key of `POOLING`."""
    return Pooling(width, pooling_mode=POOLING[name])


@dataclass(frozen=True)
class PlainStrategy(Strategy):
    """The mean of the last hidden states, the last token's, or the position-weighted mean."""

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the decoder and the pooling, both stock modules: a saved model loads without embedserve."""
        decoder = load_plain(spec, folder)
        return [decoder, pooling(spec.strategy, hidden_size(decoder))]
