"""The inner strategy of `whitening` and `adapter`, named by their option ``of``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from embedserve.errors import SpecError
from embedserve.spec import EncoderSpec, parse_spec
from embedserve.strategies import build_strategy, is_multi_vector, is_trained, with_defaults
from embedserve.strategies.strategy import option_error


def inner_spec(of: str) -> EncoderSpec:
    """Return the spec of the strategy ``of``, such as ``mean`` or ``token_prepending:start=0``, with all its options.

    Raises:
        SpecError: ``of`` is not a strategy of one vector per text without trained weights.
    """
    try:
        spec = with_defaults(parse_spec(of))
        refused = is_trained(spec.strategy, spec.options) or is_multi_vector(spec.strategy)
    except SpecError as error:
        raise option_error("of", f"{of!r} is not a strategy: {error.message}") from None
    if refused or spec.post or spec.backbone != "nano":
        problem = "must name a strategy with one vector per text and no trained weights, without backbone or transforms"
        raise option_error("of", f"{problem}; got {of!r}")
    return spec


def canonical_inner(of: str) -> dict[str, Any]:
    """Return the strategy ``of`` and all its options as plain values."""
    spec = inner_spec(of)
    return {"strategy": spec.strategy, "options": dict(spec.options)}


def build_inner(spec: EncoderSpec, of: str, folder: Path) -> list[nn.Module]:
    """Return the modules of the strategy ``of``; everything else is as in ``spec``."""
    inner = inner_spec(of)
    return build_strategy(replace(spec, strategy=inner.strategy, options=inner.options, post=()), folder)
