"""How a strategy is trained: every number in one value, from the strategy's recipe and the command line."""

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
        tune: What is trained: the strategy's own weights over a frozen backbone (``head``), low-rank adapters of the
            backbone beside them (``lora``), or everything (``all``).
        temperature: Divides the similarities.
        symmetric: Score passages against queries, too.
        batch_size: Pairs whose texts are each other's negatives.
        mini_batch_size: Pairs that are in memory at a time (gradient caching, Gao et al. 2021); None for all.
        pseudo_queries: Further pairs made of the passages: ``keywords`` are their rarest words, ``part`` a run of
            words (`embedserve.training.pseudo_queries`).
        negatives: Hard negatives of each pair; where the data has fewer, they are mined.
        matryoshka: Leading dimensions at which the loss is taken as well (Kusupati et al. 2022).
        steps: Updates at most; None for ``epochs``.
        epochs: Passes over the pairs.
        lr: The highest learning rate, reached after ``warmup`` (a share of the steps), then falling to 0.
        weight_decay: Of AdamW.
        max_tokens: Tokens read of one text in training.
        limit: Pairs of each source at most; None for all.
        dev_share: Share of the pairs to judge by, kept out of the training.
        eval_steps: Updates between two judgements.
        patience: Judgements without a better one after which the run ends.
        lora_rank: Rank r of the adapters; their alpha is 2 r.
        teacher: The encoder to distil, and to mine negatives with.
        seed: Draws the data and their order.
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
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < least):
                raise SpecError(f"{name} must be at least {least}, got {value!r}", field=name)
        for name, example in (("matryoshka", [128, 64]), ("pseudo_queries", ["keywords"])):
            if not isinstance(getattr(self, name), (list, tuple)):
                message = f"{name} must be a list, such as {example}; got {getattr(self, name)!r}"
                raise SpecError(message, field=name)
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if wrong := [dim for dim in self.matryoshka if type(dim) is not int or dim < 1]:
            raise SpecError(f"matryoshka must be whole numbers of at least 1, got {wrong[0]!r}", field="matryoshka")
        for kind in self.pseudo_queries:
            pick(kind, KINDS, "kind of pseudo-queries", "pseudo_queries")
        self._check_together()

    def _check_together(self) -> None:
        """Raise `SpecError` for settings of which one would be ignored beside another."""
        if self.loss == "distillation" and self.teacher is None:
            raise SpecError("loss=distillation needs a teacher: name an encoder", field="teacher")
        if self.loss == "distillation":
            for name in CONTRASTIVE:
                if getattr(self, name):
                    message = f"{name} goes with loss=contrastive, not with distillation; leave one of them out"
                    raise SpecError(message, field=name)
        if self.teacher is not None and self.loss != "distillation" and not self.negatives:
            message = "a teacher is distilled, or mines negatives; set loss=distillation or negatives, or leave it out"
            raise SpecError(message, field="teacher")
        if self.matryoshka and self.mini_batch_size:
            message = "matryoshka and mini_batch_size do not go together; leave one out"
            raise SpecError(message, field="matryoshka")


CONTRASTIVE = ("symmetric", "mini_batch_size", "matryoshka")  # what only this loss knows
FITTED = ("options", "limit", "seed")  # what a strategy that is fitted in one pass reads
LEAST = {
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
    """Return the settings of a strategy's recipe: ours, or with ``published`` those of the paper.

    Raises:
        SpecError: The paper gives none.
    """
    path = RECIPES / f"{strategy}.toml"
    values = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    paper = values.pop("paper", {})
    if published and not paper:
        raise SpecError(f"no values are published for {strategy}; leave recipe=paper out", field="recipe")
    return {**values, **paper} if published else values


def settings_for(strategy: str, given: Mapping[str, Any], *, published: bool = False) -> TrainSettings:
    """Return the settings of a run: the recipe's, then what was ``given``; a setting of None counts as not given.

    What the recipe says and plays no part beside what was given is left out: of the contrastive loss where another is
    asked for, the rank of adapters where there are none, the steps where epochs are given.

    Raises:
        SpecError: There is no strategy or setting of a name, or a value makes no sense, or plays no part here.
    """
    pick(strategy, STRATEGIES, "strategy", "strategy")
    values = read_recipe(strategy, published=published)
    given = {name: value for name, value in given.items() if value is not None}
    known = [field.name for field in dataclasses.fields(TrainSettings)]
    for name in given:
        if name not in known:
            raise SpecError(f"there is no setting {name!r}; {did_you_mean(name, known)}", field=name)
    if given.get("loss") == "distillation":
        values = {name: value for name, value in values.items() if name not in CONTRASTIVE}
    if "epochs" in given:
        if "steps" in given:
            raise SpecError("steps and epochs both say when training ends; leave one of them out", field="epochs")
        values.pop("steps", None)
    if given.get("tune", values.get("tune")) != "lora":
        values.pop("lora_rank", None)
    options = {**values.get("options", {}), **given.get("options", {})}
    settings = TrainSettings(**{**values, **given, "options": options})
    refuse_unused(strategy, given)
    check_settings(strategy, settings)
    return settings


def check_settings(strategy: str, settings: TrainSettings) -> None:
    """Raise `SpecError` where a setting that is not the default plays no part for ``strategy``."""
    names = [field.name for field in dataclasses.fields(settings)]
    refuse_unused(strategy, [name for name in names if getattr(settings, name) != getattr(DEFAULTS, name)])
    if settings.lora_rank != DEFAULTS.lora_rank and settings.tune != "lora":
        message = f"lora_rank goes with tune=lora, not with tune={settings.tune}; leave one of them out"
        raise SpecError(message, field="lora_rank")
    if is_multi_vector(strategy):
        for name in ("symmetric", "matryoshka"):
            if getattr(settings, name):
                message = f"{name} is for one vector a text, and {strategy} makes one a token; leave it out"
                raise SpecError(message, field=name)


def refuse_unused(strategy: str, names: Iterable[str]) -> None:
    """Raise `SpecError` if ``strategy`` is fitted in one pass and one of ``names`` is a setting of training."""
    if is_fitted(strategy) and (unused := [name for name in names if name not in FITTED]):
        message = f"{strategy} is fitted to texts in one pass, not trained, and takes no {unused[0]}; leave it out"
        raise SpecError(message, field=unused[0])


DEFAULTS = TrainSettings()
