"""Options of strategies: the check of their values, and the documentation generated from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from embedserve import EncoderSpec, SpecError
from embedserve.strategies import STRATEGIES, strategy_class, strategy_of, with_defaults
from embedserve.strategies.option_tables import BLOCK, with_tables
from embedserve.strategies.strategy import Strategy, option, options_of

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "strategies.md", *sorted((DOCS / "strategies").glob("*.md"))]


@dataclass(frozen=True)
class ExampleStrategy(Strategy):
    count: int = option(2, "a count", minimum=1)
    share: float | None = option(None, "a share", minimum=0)
    kind: Literal["a", "b", "c"] = option("a", "a kind")
    flag: bool = option(False, "a flag")
    layers: str | list[int] = option("all", "some layers")


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("count", [0, -1, True, 1.0, "1", None, [1]], "a whole number of at least 1"),
        ("share", [-0.5, True, "0.5", float("inf"), float("nan")], "a number of at least 0, or null"),
        ("kind", ["d", 1, None, ["a"], {"a": 1}], "a, b or c"),
        ("flag", [0, 1, "true", None], "true or false"),
        ("layers", [3, None, ["1"], [1.5], [True]], "a string, or a list of whole numbers"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(name, values, allowed):
    for value in values:
        with pytest.raises(SpecError) as caught:
            ExampleStrategy(**{name: value})
        assert str(caught.value) == f"options.{name} must be {allowed}; got {value!r}"
        assert caught.value.field == f"options.{name}"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("count", [1, 10**9]),
        ("share", [None, 0, 0.5, 3]),
        ("kind", ["a", "b", "c"]),
        ("flag", [True, False]),
        ("layers", ["all", [], [1, 2]]),
    ],
)
def test_an_accepted_value_is_unchanged(name, values):
    for value in values:
        assert getattr(ExampleStrategy(**{name: value}), name) == value


def test_an_unknown_option_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match="glot has no option 'hiden'; did you mean 'hidden'") as caught:
        strategy_of(EncoderSpec("glot", options={"hiden": 4}))
    assert caught.value.field == "options.hiden"
    with pytest.raises(SpecError, match="mean has no option 'ratio'; it has none"):
        strategy_of(EncoderSpec("mean", options={"ratio": 4}))


@pytest.mark.parametrize("name", STRATEGIES)
def test_defaults_are_accepted_and_spelled_out(name):
    spec = with_defaults(EncoderSpec(name))
    assert dict(spec.options) == {option.name: option.default for option in options_of(strategy_class(name))}
    assert with_defaults(spec) == spec


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_documented_options_are_those_of_the_code(path):
    text = path.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: make options"


def test_every_option_is_documented_once():
    documented = [match[1] for path in PAGES for match in BLOCK.finditer(path.read_text(encoding="utf-8"))]
    assert sorted(documented) == sorted(name for name in STRATEGIES if options_of(strategy_class(name)))
