"""Echo embeddings (Springer et al. 2024, section 3): the text twice, pooled over the second copy.

A causal model reads the second copy with the whole text before it. Costs twice the tokens. The pieces are tokenised
one by one: begin token, ``before``, text, ``repeat``, text, end token; the end token is pooled too.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from embedserve.backbone import FormattedTransformer, hidden_size, load_as
from embedserve.compat import Pooling
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
    template = asdict(Template(before=options["before"], repeat=options["repeat"]))
    transformer = load_as(FormattedTransformer, spec, folder, template=template)
    return [transformer, Pooling(hidden_size(transformer), pooling_mode=POOLING[options["pooling"]])]
