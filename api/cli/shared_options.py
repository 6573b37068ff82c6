"""The options that several commands share, described once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from embedserve.errors import InputError

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="nano, a saved encoder, or any decoder's folder or hub id.", show_default=False),
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:1; auto unless set.", show_default=False)
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of the collections; EMBEDSERVE_DATA_DIR unless given.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and errors as JSON on stderr.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        help='What documents must pass, as JSON: {"field": "year", "gte": 2024}.',
        show_default=False,
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="How states become a vector: mean, embedfilter:ratio=4, mean+truncate:64, …",
        show_default=False,
    ),
]


def filter_of(text: str | None) -> Any:
    """Return the filter that ``--filter`` gave, once it is found to be one; None for none."""
    if text is None:
        return None
    import orjson

    from indexing.query.filters import compile_filter

    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"--filter is not JSON: {error}", field="filter") from None
    compile_filter(values)
    return values


def help_of(command: Callable[..., None]) -> str:
    """Return a command's docstring as its help, the examples kept line by line."""
    return inspect.cleandoc(command.__doc__ or "").replace("\nExamples:", "\n\b\nExamples:")
