"""The baselines: the mean of the last hidden states, the last token's, and the position-weighted mean.

The weighted mean gives token i of n the weight i / (1 + … + n): later tokens of a causal model have read more
(SGPT, Muennighoff 2022, section 4.1, eq. 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from embedserve.backbone import hidden_size, load_as
from embedserve.compat import Pooling, Transformer
from embedserve.spec import EncoderSpec

OPTIONS: dict[str, Any] = {}
POOLING = {"mean": "mean", "last_token": "lasttoken", "weighted_mean": "weightedmean"}


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder and the library's own pooling: a saved model loads without embedserve."""
    transformer = load_as(Transformer, spec, folder)
    return [transformer, Pooling(hidden_size(transformer), pooling_mode=POOLING[spec.strategy])]
