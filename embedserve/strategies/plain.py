"""The baselines: the mean of the last hidden states, the last token's, and the position-weighted mean.

The weighted mean gives token i of n the weight i / (1 + … + n): later tokens of a causal model have read more
(SGPT, Muennighoff 2022, section 4.1, eq. 2).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from embedserve.backbone import hidden_size, load_plain
from embedserve.compat import Pooling
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec

OPTIONS: dict[str, Any] = {}
POOLING = {"mean": "mean", "last_token": "lasttoken", "weighted_mean": "weightedmean"}


def pooling(name: Any, width: int, field: str = "options.pooling") -> nn.Module:
    """Return the library's own pooling of one of the names of `POOLING`, over states of ``width`` D."""
    if name not in list(POOLING):  # a list: the option may be of a kind that has no hash
        raise SpecError(f"{field} must be one of {', '.join(POOLING)}, got {name!r}", field=field)
    return Pooling(width, pooling_mode=POOLING[name])


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder and the library's own pooling: a saved model loads without embedserve."""
    transformer = load_plain(spec, folder)
    return [transformer, pooling(spec.strategy, hidden_size(transformer))]
