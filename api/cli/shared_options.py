"""Options and arguments that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from embedserve.errors import InputError

MODEL_HELP = "nano, the folder of a saved encoder, or the folder or Hub id of any decoder model."
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help=f"{MODEL_HELP} Default: EMBEDSERVE_MODEL, or nano.", show_default=False
    ),
]
CollectionModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="New location of the encoder that built the collection. Default: its recorded location.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N. Default: auto.", show_default=False),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="Root folder of the collections. Default: EMBEDSERVE_DATA_DIR, or ~/.local/share/embedserve.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and errors as JSON on stderr.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        metavar="JSON",
        help='Only documents that match a metadata filter, such as {"field": "year", "gte": 2024}.',
        show_default=False,
    ),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        metavar="STRATEGY",
        help="How hidden states become a vector: mean, embedfilter:ratio=4, mean+truncate:64, … "
        "Default: the model's own, or mean.",
        show_default=False,
    ),
]
CollectionName = Annotated[str, typer.Argument(metavar="NAME", help="Name or alias of a collection.")]

SOURCE_HELP = (
    "A folder of .txt and .md files; a .jsonl, .csv or .tsv file, optionally .gz or .zst; a .parquet file; a BEIR "
    "folder; a Hugging Face dataset (folder or hf:NAME[:SPLIT]); or - for JSONL on stdin."
)
Format = Annotated[
    Literal["folder", "jsonl", "csv", "tsv", "parquet", "beir", "dataset"] | None,
    typer.Option("--format", "-f", help="Format of the source. Default: detected from its name.", show_default=False),
]
IdField = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="Field of the document id. Default: id or _id, else the line number.",
        show_default=False,
    ),
]
TextField = Annotated[str, typer.Option(metavar="FIELD", help="Field of the text.")]
TitleField = Annotated[str, typer.Option(metavar="FIELD", help="Field of the title; optional in a record.")]


def filter_of(text: str | None) -> Any:
    """Return the validated filter of ``--filter``; None if it was not given."""
    if text is None:
        return None
    import orjson

    from indexing.query.filters import compile_filter

    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"--filter is not valid JSON: {error}", field="filter") from None
    compile_filter(values)
    return values


def help_of(command: Callable[..., None]) -> str:
    """Return a command's docstring as its help, with one example per line."""
    return inspect.cleandoc(command.__doc__ or "").replace("\nExamples:", "\n\b\nExamples:")
