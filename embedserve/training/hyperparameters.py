"""Hyperparameters of a training run, from the strategy's recipe and the command line."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embedserve.errors import SpecError, did_you_mean
from embedserve.strategies import STRATEGIES, is_fitted, is_multi_vector, pick
from embedserve.training.pseudo_queries import KINDS

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run.

    Attributes:
        loss: ``contrastive`` (in-batch and hard negatives) or ``distillation`` of a teacher's similarities.
        tune: Weights to train: the strategy's own over a frozen backbone (``head``), these and low-rank adapters of
            the backbone (``lora``), or everything (``all``).
        temperature: Divisor of the similarities.
        symmetric: Also rank the queries for each passage.
        batch_size: Pairs per update, whose texts are each other's negatives.
        mini_batch_size: Pairs in memory at a time (gradient caching, Gao et al. 2021). Default: all.
        pseudo_queries: Kinds of queries to generate from the passages: ``keywords`` (their rarest words) or ``part``
            (a run of words), see `embedserve.training.pseudo_queries`.
        negatives: Hard negatives per pair, mined if the data has fewer.
        matryoshka: Leading dimensions at which the loss is also computed (Kusupati et al. 2022).
        steps: Maximum number of updates. Default: as many as ``epochs`` takes.
        epochs: Passes over the pairs.
        lr: Peak learning rate, reached after ``warmup`` (a share of the steps), with linear decay to 0.
        weight_decay: Weight decay of AdamW.
        max_tokens: Texts are truncated to this many tokens during training.
        limit: Maximum number of pairs per source. Default: all.
        dev_share: Share of the pairs held out for evaluation.
        eval_steps: Updates between evaluations.
        patience: Stop after this many evaluations without improvement.
        lora_rank: Rank r of the adapters; their alpha is 2 r.
        teacher: Encoder to distil from or to mine negatives with.
        seed: Random seed of the sample and the order of the data.
        options: Options of the strategy.
    """

    loss: Literal["contrastive", "distillation"] = "contrastive"
    tune: Literal["head", "lora", "all"] = "head"
    temperature: float = 0.05
    symmetric: bool = False
    batch_size: int = 64
    mini_batch_size: int | None = None
    pseudo_queries: tuple[str, ...] = ()
    negatives: int = 0
    matryoshka: tuple[int, ...] = ()
    steps: int | None = None
    epochs: float = 1.0
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    max_tokens: int = 256
    limit: int | None = None
    dev_share: float = 0.02
    eval_steps: int = 100
    patience: int = 5
    lora_rank: int = 16
    teacher: str | None = None
    seed: int = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, known in (("loss", ("contrastive", "distillation")), ("tune", ("head", "lora", "all"))):
            if getattr(self, name) not in known:
                raise SpecError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}", field=name)
        for name, minimum in MINIMUMS.items():
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, (int, float)) or value < minimum
            ):
                raise SpecError(f"{name} must be at least {minimum}, got {value!r}", field=name)
        for name, example in (("matryoshka", [128, 64]), ("pseudo_queries", ["keywords"])):
            if not isinstance(getattr(self, name), (list, tuple)):
                message = f"{name} must be a list, such as {example}; got {getattr(self, name)!r}"
                raise SpecError(message, field=name)
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if invalid := [dim for dim in self.matryoshka if type(dim) is not int or dim < 1]:
            raise SpecError(f"matryoshka must be whole numbers of at least 1, got {invalid[0]!r}", field="matryoshka")
        for kind in self.pseudo_queries:
            pick(kind, KINDS, "kind of pseudo-queries", "pseudo_queries")
        self._check_conflicts()

    def _check_conflicts(self) -> None:
        """Raise `SpecError` if one setting would be ignored because of another."""
        if self.loss == "distillation" and self.teacher is None:
            raise SpecError("loss=distillation needs a teacher; set teacher to an encoder", field="teacher")
        if self.loss == "distillation":
            for name in CONTRASTIVE:
                if getattr(self, name):
                    message = f"{name} needs loss=contrastive, got loss=distillation; omit one of them"
                    raise SpecError(message, field=name)
        if self.teacher is not None and self.loss != "distillation" and not self.negatives:
            message = "teacher has no effect without loss=distillation or negatives; set one of them, or omit teacher"
            raise SpecError(message, field="teacher")
        if self.matryoshka and self.mini_batch_size:
            message = "matryoshka and mini_batch_size cannot be combined; omit one of them"
            raise SpecError(message, field="matryoshka")


CONTRASTIVE = ("symmetric", "mini_batch_size", "matryoshka")  # settings of the contrastive loss only
FITTED = ("options", "limit", "seed")  # settings of a fitted strategy
MINIMUMS = {
    "temperature": 1e-4,
    "batch_size": 2,
    "mini_batch_size": 1,
    "negatives": 0,
    "steps": 1,
    "epochs": 0,
    "lr": 0,
    "warmup": 0,
    "weight_decay": 0,
    "max_tokens": 8,
    "limit": 2,
    "dev_share": 0,
    "eval_steps": 1,
    "patience": 1,
    "lora_rank": 1,
}


def read_recipe(strategy: str, *, published: bool = False) -> dict[str, Any]:
    """Return the settings of a strategy's recipe: the project's, or with ``published`` the paper's.

    Raises:
        SpecError: The paper publishes none.
    """
    path = RECIPES / f"{strategy}.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    paper = values.pop("paper", {})
    if published and not paper:
        raise SpecError(f"no values are published for {strategy}; omit recipe=paper", field="recipe")
    return {**values, **paper} if published else values


def settings_for(strategy: str, overrides: Mapping[str, Any], *, published: bool = False) -> TrainSettings:
    """Return the settings of a run: the recipe's, updated with ``overrides``, of which None means not set.

    Settings of the recipe that ``overrides`` makes meaningless are dropped: those of the contrastive loss for another
    loss, the rank of adapters without adapters, and the steps if epochs are set.

    Raises:
        SpecError: A strategy or setting does not exist, or a value is invalid or has no effect.
    """
    pick(strategy, STRATEGIES, "strategy", "strategy")
    values = read_recipe(strategy, published=published)
    overrides = {name: value for name, value in overrides.items() if value is not None}
    known = [field.name for field in dataclasses.fields(TrainSettings)]
    for name in overrides:
        if name not in known:
            raise SpecError(f"unknown setting {name!r}; {did_you_mean(name, known)}", field=name)
    if overrides.get("loss") == "distillation":
        values = {name: value for name, value in values.items() if name not in CONTRASTIVE}
    if "epochs" in overrides:
        if "steps" in overrides:
            raise SpecError("steps and epochs cannot be combined; omit one of them", field="epochs")
        values.pop("steps", None)
    if overrides.get("tune", values.get("tune")) != "lora":
        values.pop("lora_rank", None)
    options = {**values.get("options", {}), **overrides.get("options", {})}
    settings = TrainSettings(**{**values, **overrides, "options": options})
    refuse_unused(strategy, overrides)
    check_settings(strategy, settings)
    return settings


def check_settings(strategy: str, settings: TrainSettings) -> None:
    """Raise `SpecError` if a setting other than its default has no effect on ``strategy``."""
    names = [field.name for field in dataclasses.fields(settings)]
    refuse_unused(strategy, [name for name in names if getattr(settings, name) != getattr(DEFAULTS, name)])
    if settings.lora_rank != DEFAULTS.lora_rank and settings.tune != "lora":
        message = f"lora_rank needs tune=lora, got tune={settings.tune}; omit one of them"
        raise SpecError(message, field="lora_rank")
    if is_multi_vector(strategy):
        for name in ("symmetric", "matryoshka"):
            if getattr(settings, name):
                message = f"{name} needs one vector per text, but {strategy} computes one per token; omit {name}"
                raise SpecError(message, field=name)


def refuse_unused(strategy: str, names: Iterable[str]) -> None:
    """Raise `SpecError` if ``strategy`` is fitted in one pass and one of ``names`` is a setting of training."""
    if is_fitted(strategy) and (unused := [name for name in names if name not in FITTED]):
        message = f"{strategy} is fitted in one pass, not trained: {unused[0]} has no effect; omit it"
        raise SpecError(message, field=unused[0])


DEFAULTS = TrainSettings()
