"""Echo embeddings (Springer et al. 2024, section 3): the text twice, pooled over the second copy.

A causal model reads the second copy with the whole text before it. Costs twice the tokens. The pieces are tokenised
one by one: begin token, ``before``, text, ``repeat``, text, end token; the end token is pooled too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from embedserve.backbone import hidden_size, load_decoder
from embedserve.compat import Pooling
from embedserve.decoder import Decoder
from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec
from embedserve.strategies.plain import POOLING
from embedserve.tokens import Template

OPTIONS: dict[str, Any] = {
    "before": "Rewrite the following paragraph: ",
    "repeat": ". The rewritten paragraph: ",
    "pooling": "mean",
}


def build(spec: EncoderSpec, options: dict[str, Any], folder: Path) -> list[nn.Module]:
    """Return the decoder behind the echo template and pooling over the second copy."""
    if options["pooling"] not in ("mean", "last_token"):
        message = f"options.pooling must be mean or last_token, got {options['pooling']!r}"
        raise SpecError(message, field="options.pooling")
    for name in ("before", "repeat"):
        if not isinstance(options[name], str):
            raise SpecError(f"options.{name} must be a string, got {options[name]!r}", field=f"options.{name}")
    template = Template(before=options["before"], repeat=options["repeat"])
    transformer = load_decoder(spec, folder, Decoder, template)
    return [transformer, Pooling(hidden_size(transformer), pooling_mode=POOLING[options["pooling"]])]
