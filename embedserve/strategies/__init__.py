"""Encoding strategies: one file each, with a subclass of `strategy.Strategy` whose fields are the options.

To add one, write its file and add a line to `STRATEGIES`; the contract tests and the documentation of options read that
table. Random weights are drawn after ``torch.manual_seed(SEED)``, so they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from embedserve.errors import SpecError, did_you_mean
from embedserve.spec import EncoderSpec
from embedserve.strategies.strategy import Strategy

STRATEGIES = {
    "mean": "embedserve.strategies.plain:PlainStrategy",
    "last_token": "embedserve.strategies.plain:PlainStrategy",
    "weighted_mean": "embedserve.strategies.plain:PlainStrategy",
    "layer_mean": "embedserve.strategies.layer_mean:LayerMeanStrategy",
    "weighted_layers": "embedserve.strategies.weighted_layers:WeightedLayersStrategy",
    "multilayer": "embedserve.strategies.multilayer:MultiLayerStrategy",
    "glot": "embedserve.strategies.glot:GlotStrategy",
    "latent_attention": "embedserve.strategies.latent_attention:LatentAttentionStrategy",
    "prompteol": "embedserve.strategies.prompteol:PromptEOLStrategy",
    "echo": "embedserve.strategies.echo:EchoStrategy",
    "embedfilter": "embedserve.strategies.embedfilter:EmbedFilterStrategy",
    "token_prepending": "embedserve.strategies.token_prepending:TokenPrependingStrategy",
    "colbert": "embedserve.strategies.colbert:ColbertStrategy",
    "lexsembridge": "embedserve.strategies.lexsembridge:LexSemBridgeStrategy",
    "promptreps": "embedserve.strategies.promptreps:PromptRepsStrategy",
    "whitening": "embedserve.strategies.whitening:WhiteningStrategy",
    "adapter": "embedserve.strategies.adapter:AdapterStrategy",
    "causal2vec": "embedserve.strategies.causal2vec:Causal2VecStrategy",
}

SEED = 3407


def pick(name: str, known: dict[str, Any], what: str, field: str) -> Any:
    """Return ``known[name]``.

    Raises:
        SpecError: The name is unknown; the message has the nearest one and all of them.
    """
    if name in known:
        return known[name]
    listed = ", ".join(sorted(known))
    raise SpecError(f"unknown {what} {name!r}; {did_you_mean(name, known)}known are {listed}", field=field)


def strategy_class(name: str) -> type[Strategy]:
    """Import and return the class of the strategy ``name``."""
    module, _, attribute = pick(name, STRATEGIES, "strategy", "strategy").partition(":")
    strategy: type[Strategy] = getattr(import_module(module), attribute)
    return strategy


def strategy_of(spec: EncoderSpec) -> Strategy:
    """Return the strategy of ``spec`` with its options, checked."""
    strategy = strategy_class(spec.strategy).from_options(spec.strategy, spec.options)
    strategy.check()
    return strategy


def is_trained(name: str, options: Mapping[str, Any] | None = None) -> bool:
    """Return whether the strategy has trained weights with these options; omitted options have their defaults."""
    return strategy_class(name).from_options(name, options or {}).is_trained()


def is_fitted(name: str) -> bool:
    """Return whether the strategy's weights are fitted to texts in one pass, without pairs, steps or a loss."""
    return strategy_class(name).fitted


def is_multi_vector(name: str) -> bool:
    """Return whether the strategy gives one vector per token, compared by MaxSim."""
    return strategy_class(name).multi_vector


def with_defaults(spec: EncoderSpec) -> EncoderSpec:
    """Return ``spec`` with a value for every option of its strategy, so that a changed default is another spec."""
    return replace(spec, options=asdict(strategy_of(spec)))


def canonical_options(spec: EncoderSpec) -> dict[str, Any]:
    """Return the options that enter a fingerprint: a digest of each file instead of its path."""
    return strategy_of(spec).canonical()


def build_strategy(spec: EncoderSpec, folder: Path) -> list[nn.Module]:
    """Return the modules that turn texts into vectors, not yet normalised, in the order they run."""
    strategy = strategy_of(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return strategy.build(spec, folder)
