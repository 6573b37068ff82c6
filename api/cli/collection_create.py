"""``embedserve collection create``: an empty collection with the given fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli.console import load_encoder, out, out_json
from api.cli.shared_options import DataDir, Device, Json, Model, Strategy
from api.settings import load_settings
from embedserve.errors import InputError

if TYPE_CHECKING:
    from indexing import Field


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new collection.")],
    field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=OUTPUT[:INDEX]",
            help="A field; OUTPUT is dense, multi, sparse or words. Repeatable. Default: dense vectors and words.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        str, typer.Option("--index", metavar="KIND", help="Index of the dense vectors, without --field.")
    ] = "auto",
    model: Model = None,
    strategy: Strategy = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Create an empty collection.

    Examples:
      embedserve collection create notes
      embedserve collection create papers --field dense=dense:hnsw --field bm25=words
    """
    from indexing import create_collection
    from indexing.collections.aliases import list_aliases
    from indexing.collections.catalog import collection_path
    from indexing.collections.collection_build import check_options
    from indexing.segments.fields import default_fields

    settings = load_settings(model=model, device=device, data_dir=data_dir)
    directory = collection_path(settings.data_dir, name)
    if name in list_aliases(settings.data_dir):
        raise InputError(f"{name!r} is an alias; choose another name, or remove the alias", field="name")
    encoder = load_encoder(settings.model, settings.device, strategy)
    fields = dict(_field(text, encoder) for text in field or ()) or default_fields(encoder, index=index)
    check_options(fields, 1, None)
    create_collection(directory, fields)
    values = {"name": name, "fields": {key: f.output for key, f in fields.items()}, "path": str(directory)}
    if json:
        out_json(values)
    else:
        out(f"created {name}: {', '.join(f'{key} ({f.output})' for key, f in fields.items())}")


def _field(text: str, encoder: Any) -> tuple[str, Field]:
    from indexing.segments.fields import WORDS, field_of

    key, separator, definition = text.partition("=")
    output, _, index = definition.partition(":")
    if not separator or output not in ("dense", "multi", "sparse", "words"):
        message = f"--field must be NAME=OUTPUT[:INDEX] with OUTPUT dense, multi, sparse or words, got {text!r}"
        raise InputError(message, field="field")
    if output == "words":
        return key, WORDS
    if output not in encoder.outputs:
        message = f"{encoder.name} has no output {output}, only {' and '.join(encoder.outputs)}; choose another --model"
        raise InputError(message, field="field")
    return key, field_of(encoder, output, index=index or "auto")  # type: ignore[arg-type]
