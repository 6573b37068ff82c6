"""One file per encoding strategy, each exporting ``OPTIONS`` (names and defaults) and ``build``.

A file whose strategy has trained weights says ``TRAINED = True``, or has ``is_trained(options)`` where that depends;
one whose weights follow from texts in one pass has ``fit(encoder, texts)``;
one that makes a vector for each token says ``MULTI_VECTOR = True``; one whose options name files has
``canonical_options(options)``, which puts digests in their place. Random weights are drawn after
``torch.manual_seed(SEED)``, the same on every machine.

To add one: write its file, add its line to `STRATEGIES`; the contract tests pick it up by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from embedserve.errors import SpecError, did_you_mean
from embedserve.spec import EncoderSpec

STRATEGIES = {
    "mean": "embedserve.strategies.plain",
    "last_token": "embedserve.strategies.plain",
    "weighted_mean": "embedserve.strategies.plain",
    "layer_mean": "embedserve.strategies.layer_mean",
    "weighted_layers": "embedserve.strategies.weighted_layers",
    "multilayer": "embedserve.strategies.multilayer",
    "glot": "embedserve.strategies.glot",
    "latent_attention": "embedserve.strategies.latent_attention",
    "prompteol": "embedserve.strategies.prompteol",
    "echo": "embedserve.strategies.echo",
    "embedfilter": "embedserve.strategies.embedfilter",
    "token_prepending": "embedserve.strategies.token_prepending",
    "colbert": "embedserve.strategies.colbert",
    "lexsembridge": "embedserve.strategies.lexsembridge",
    "promptreps": "embedserve.strategies.promptreps",
    "whitening": "embedserve.strategies.whitening",
    "adapter": "embedserve.strategies.adapter",
    "causal2vec": "embedserve.strategies.causal2vec",
}

SEED = 3407

Build = Callable[[EncoderSpec, dict[str, Any], Path], list[nn.Module]]


def pick(name: str, known: dict[str, Any], what: str, field: str) -> Any:
    """Return ``known[name]``, or raise `SpecError` with the nearest name and all of them."""
    if name in known:
        return known[name]
    listed = ", ".join(sorted(known))
    raise SpecError(f"there is no {what} {name!r}; {did_you_mean(name, known)}there are {listed}", field=field)


def file_of(strategy: str) -> ModuleType:
    """Return the file of a strategy."""
    return import_module(pick(strategy, STRATEGIES, "strategy", "strategy"))


def is_trained(strategy: str, options: Mapping[str, Any] | None = None) -> bool:
    """Say whether the strategy, with these options or its defaults, has weights of its own that are trained."""
    file = file_of(strategy)
    if hasattr(file, "is_trained"):
        return bool(file.is_trained({**file.OPTIONS, **(options or {})}))
    return bool(getattr(file, "TRAINED", False))


def is_fitted(strategy: str) -> bool:
    """Say whether the strategy's weights are fitted to texts in one pass, without pairs, steps or a loss."""
    return hasattr(file_of(strategy), "fit")


def is_multi_vector(strategy: str) -> bool:
    """Say whether the strategy makes a vector for each token, compared by MaxSim."""
    return bool(getattr(file_of(strategy), "MULTI_VECTOR", False))


def with_defaults(spec: EncoderSpec) -> EncoderSpec:
    """Return ``spec`` with every option of its strategy spelled out: a default that changes is another spec."""
    defaults = file_of(spec.strategy).OPTIONS
    for name in spec.options:
        pick(name, defaults or {"(none)": None}, f"option of {spec.strategy}", f"options.{name}")
    return replace(spec, options={**defaults, **spec.options})


def canonical_options(spec: EncoderSpec) -> dict[str, Any]:
    """Return the strategy's options with digests in the place of files: those that a fingerprint is made of."""
    canonical = getattr(file_of(spec.strategy), "canonical_options", dict)
    found: dict[str, Any] = canonical(spec.options)
    return found


def build_strategy(spec: EncoderSpec, folder: Path) -> list[nn.Module]:
    """Return the modules that turn texts into sentence vectors, not yet normalised, in the order they run."""
    build: Build = file_of(spec.strategy).build
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build(spec, dict(spec.options), folder)
