"""One file per encoding strategy, each exporting ``OPTIONS`` (names and defaults) and ``build``.

To add one: write its file, add its line to `STRATEGIES`; the contract tests pick it up by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from embedserve.errors import SpecError, did_you_mean
from embedserve.spec import EncoderSpec

STRATEGIES = {
    "mean": "embedserve.strategies.plain",
    "last_token": "embedserve.strategies.plain",
    "weighted_mean": "embedserve.strategies.plain",
    "layer_mean": "embedserve.strategies.layer_mean",
    "prompteol": "embedserve.strategies.prompteol",
    "echo": "embedserve.strategies.echo",
    "embedfilter": "embedserve.strategies.embedfilter",
}

Build = Callable[[EncoderSpec, dict[str, Any], Path], list[nn.Module]]


def pick(name: str, known: dict[str, Any], what: str, field: str) -> Any:
    """Return ``known[name]``, or raise `SpecError` with the nearest name and all of them."""
    if name in known:
        return known[name]
    listed = ", ".join(sorted(known))
    raise SpecError(f"there is no {what} {name!r}; {did_you_mean(name, known)}there are {listed}", field=field)


def with_defaults(spec: EncoderSpec) -> EncoderSpec:
    """Return ``spec`` with every option of its strategy spelled out: a default that changes is another spec."""
    defaults = import_module(pick(spec.strategy, STRATEGIES, "strategy", "strategy")).OPTIONS
    for name in spec.options:
        pick(name, defaults or {"(none)": None}, f"option of {spec.strategy}", f"options.{name}")
    return replace(spec, options={**defaults, **spec.options})


def build_strategy(spec: EncoderSpec, folder: Path) -> list[nn.Module]:
    """Return the modules that turn texts into sentence vectors, not yet normalised, in the order they run."""
    build: Build = import_module(pick(spec.strategy, STRATEGIES, "strategy", "strategy")).build
    return build(spec, dict(spec.options), folder)
