"""``embedserve strategies``: the encoding strategies and their options."""

from __future__ import annotations

import inspect
import json
from typing import Annotated

import typer

from api.cli.console import out, out_json
from api.cli.shared_options import Json


def strategies(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show the options of one strategy. Default: list all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the strategies, or the options of one.

    Examples:
      embedserve strategies
      embedserve strategies glot
      embedserve embed --strategy glot:layers=2,conv=gcn "a text"
    """
    from embedserve.strategies import STRATEGIES, strategy_class
    from embedserve.strategies.strategy import options_of

    shown = {key: strategy_class(key) for key in ([name] if name else STRATEGIES)}
    if as_json:
        out_json(
            {
                key: [
                    {"name": option.name, "default": option.default, "allowed": option.allowed, "help": option.help}
                    for option in options_of(kind)
                ]
                for key, kind in shown.items()
            }
        )
        return
    for key, kind in shown.items():
        out(f"{key:<18}{inspect.getdoc(kind)}")
        for option in options_of(kind) if name else ():
            out(f"  {option.name}={json.dumps(option.default)}: {option.help} ({option.allowed})")
