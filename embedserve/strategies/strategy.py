"""The base class of strategies: a frozen dataclass of options that checks them and builds the modules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from torch import nn

from embedserve.errors import SpecError, did_you_mean
from embedserve.spec import EncoderSpec


@dataclass(frozen=True)
class Strategy:
    """How a decoder's hidden states become vectors. Each field is an option, declared with `option`.

    Attributes:
        multi_vector: The strategy gives one vector per token, compared by MaxSim.
        fitted: The weights are fitted to texts in one pass by `fit`, without pairs, steps or a loss.
    """

    multi_vector: ClassVar[bool] = False
    fitted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for declared in options_of(type(self)):
            declared.check(getattr(self, declared.name))

    @classmethod
    def from_options(cls, strategy: str, options: Mapping[str, Any]) -> Self:
        """Return the strategy with ``options``; omitted ones have their defaults.

        Raises:
            SpecError: An option is unknown, or its value is of the wrong type or out of range.
        """
        names = [declared.name for declared in options_of(cls)]
        for name in options:
            if name not in names:
                known = f"its options are {', '.join(names)}" if names else "it has none"
                message = f"{strategy} has no option {name!r}; {did_you_mean(name, names)}{known}"
                raise SpecError(message, field=f"options.{name}")
        return cls(**options)

    def check(self) -> None:
        """Raise `SpecError` for options that exclude each other."""

    def is_trained(self) -> bool:
        """Return whether the modules after the decoder have trained weights."""
        return False

    def canonical(self) -> dict[str, Any]:
        """Return the options that enter a fingerprint: a digest of each file instead of its path."""
        return asdict(self)

    def build(self, spec: EncoderSpec, folder: Path) -> list[nn.Module]:
        """Return the modules that turn texts into vectors, not yet normalised.

        Args:
            spec: The encoder.
            folder: The backbone's folder.
        """
        raise NotImplementedError

    def fit(self, encoder: Any, texts: Iterable[str]) -> None:
        """Fit the last module of ``encoder`` to ``texts``."""
        raise NotImplementedError


@dataclass(frozen=True)
class StrategyOption:
    """An option of a strategy.

    Attributes:
        name: The name in ``EncoderSpec.options``.
        default: The default value.
        help: One phrase that explains it.
        kinds: Accepted types: int, float, str, bool, ``NoneType``, ``Literal[...]`` or ``list[...]`` of one of them.
        minimum: The smallest accepted number.
    """

    name: str
    default: Any
    help: str
    kinds: tuple[Any, ...]
    minimum: float | None = None

    @property
    def allowed(self) -> str:
        """The accepted values in words, such as ``a whole number of at least 1, or null``."""
        return ", or ".join(_described(kind, self.minimum) for kind in self.kinds)

    def check(self, value: Any) -> None:
        """Raise `SpecError` unless ``value`` is accepted."""
        if not any(_accepts(kind, value, self.minimum) for kind in self.kinds):
            raise option_error(self.name, f"must be {self.allowed}; got {value!r}")


def option(default: Any, help: str, *, minimum: float | None = None) -> Any:
    """Declare a field of a `Strategy` as an option."""
    return field(default=default, metadata={"help": help, "minimum": minimum})


def options_of(strategy: type[Strategy]) -> tuple[StrategyOption, ...]:
    """Return the options of a strategy in the order of its fields."""
    hints = get_type_hints(strategy)
    return tuple(
        StrategyOption(f.name, f.default, f.metadata["help"], _alternatives(hints[f.name]), f.metadata["minimum"])
        for f in fields(strategy)
    )


def option_error(name: str, problem: str) -> SpecError:
    """Return the `SpecError` of the option ``name``, whose message starts with that name."""
    return SpecError(f"options.{name} {problem}", field=f"options.{name}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _accepts(kind: Any, value: Any, minimum: float | None) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_accepts(get_args(kind)[0], element, minimum) for element in value)
    if kind is float and type(value) in (int, float):
        return math.isfinite(value) and (minimum is None or value >= minimum)
    return type(value) is kind and (kind is not int or minimum is None or value >= minimum)


def _described(kind: Any, minimum: float | None) -> str:
    if get_origin(kind) is Literal:
        *names, last = get_args(kind)
        return f"{', '.join(names)} or {last}"
    at_least = "" if minimum is None else f" of at least {minimum:g}"
    if get_origin(kind) is list:
        return {int: "a list of whole numbers", float: "a list of numbers", str: "a list of strings"}[get_args(kind)[0]]
    return {
        int: f"a whole number{at_least}",
        float: f"a number{at_least}",
        str: "a string",
        bool: "true or false",
        NoneType: "null",
    }[kind]
