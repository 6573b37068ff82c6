"""The tables of options in docs/strategies, generated from the strategies' fields.

python -m embedserve.strategies.option_tables docs/strategies.md docs/strategies/*.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from embedserve.strategies import strategy_class
from embedserve.strategies.strategy import StrategyOption, options_of

BLOCK = re.compile(r"<!-- options of (\w+) -->\n.*?<!-- end -->", re.DOTALL)


def option_table(name: str) -> str:
    """Return the Markdown table of the options of the strategy ``name``."""
    rows = [
        f"| `{option.name}` | {_default(option)} | {option.allowed} | {option.help} |"
        for option in options_of(strategy_class(name))
    ]
    return "\n".join(["| option | default | values | |", "|---|---|---|---|", *rows])


def with_tables(text: str) -> str:
    """Return ``text`` with a current table in every block ``<!-- options of NAME -->`` … ``<!-- end -->``."""
    return BLOCK.sub(lambda match: f"<!-- options of {match[1]} -->\n{option_table(match[1])}\n<!-- end -->", text)


def _default(option: StrategyOption) -> str:
    return f"`{option.default}`" if isinstance(option.default, str) else json.dumps(option.default)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
