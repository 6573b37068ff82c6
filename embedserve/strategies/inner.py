"""A strategy over the vectors of another one: whitening and adapter name it in their option ``of``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec, parse_spec
from embedserve.strategies import build_strategy, is_multi_vector, is_trained, with_defaults

FIELD = "options.of"


def inner_spec(of: Any) -> EncoderSpec:
    """Return the strategy that ``of`` names, such as ``mean`` or ``token_prepending:start=0``, with its options."""
    if not isinstance(of, str) or not of.strip():
        raise SpecError(f"{FIELD} must name a strategy, such as mean; got {of!r}", field=FIELD)
    try:
        spec = with_defaults(parse_spec(of))
        refused = is_trained(spec.strategy, spec.options) or is_multi_vector(spec.strategy)
    except SpecError as error:
        raise SpecError(f"{FIELD} {of!r}: {error.message}", field=FIELD) from None
    if refused or spec.post or spec.backbone != "nano":
        message = f"{FIELD} must name a strategy that has one vector a text and no trained weights, and nothing else"
        raise SpecError(f"{message}; got {of!r}", field=FIELD)
    return spec


def canonical_inner(of: Any) -> dict[str, Any]:
    """Return the strategy and all its options as plain values."""
    spec = inner_spec(of)
    return {"strategy": spec.strategy, "options": dict(spec.options)}


def build_inner(spec: EncoderSpec, of: Any, folder: Path) -> list[nn.Module]:
    """Return the modules of the strategy that ``of`` names, with everything else as in ``spec``."""
    inner = inner_spec(of)
    return build_strategy(replace(spec, strategy=inner.strategy, options=inner.options, post=()), folder)
