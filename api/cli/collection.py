"""embedserve collection: write to a collection, and read and count what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.collection_encoders import encoders_of
from api.cli.collection_versions import COMMANDS
from api.cli.console import load_encoder, note, out, out_json
from api.cli.progress import Meter
from api.cli.shared_options import DataDir, Device, Filter, Json, Model, Strategy, filter_of, help_of
from api.settings import load_settings
from embedserve.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from indexing import Document, Field

BATCH = 256
PAGE = 500
Name = Annotated[str, typer.Argument(help="Name of the collection, or an alias.")]

collection_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Write to collections, read and count their documents, keep and restore them.\n\n"
    "Whole sources are built faster, and in place of what was there, by embedserve index build.",
)


def create(
    name: Annotated[str, typer.Argument(help="Name of the new collection.")],
    field: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=OUTPUT[:INDEX] with OUTPUT dense, multi, sparse or words; repeat it. Dense vectors and the "
            "words unless given."
        ),
    ] = None,
    index: Annotated[str, typer.Option("--index", help="Of the dense vectors where no --field is given.")] = "auto",
    model: Model = None,
    strategy: Strategy = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Make an empty collection.

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
        raise InputError(f"{name!r} is an alias; choose another name, or remove it", field="name")
    encoder = load_encoder(settings.model, settings.device, strategy)
    fields = dict(_field(text, encoder) for text in field or ()) or default_fields(encoder, index=index)
    check_options(fields, 1, None)
    create_collection(directory, fields)
    values = {"name": name, "fields": {key: f.output for key, f in fields.items()}, "path": str(directory)}
    _say(values, json, f"created {name}: {', '.join(f'{key} ({f.output})' for key, f in fields.items())}")


def _field(text: str, encoder: Any) -> tuple[str, Field]:
    from indexing.segments.fields import WORDS, field_of

    key, found, rest = text.partition("=")
    output, _, index = rest.partition(":")
    if not found or output not in ("dense", "multi", "sparse", "words"):
        message = f"--field must be NAME=OUTPUT[:INDEX] with OUTPUT dense, multi, sparse or words, got {text!r}"
        raise InputError(message, field="field")
    if output == "words":
        return key, WORDS
    if output not in encoder.outputs:
        message = f"{encoder.name} makes {' and '.join(encoder.outputs)}, so no field of {output}; choose another model"
        raise InputError(message, field="field")
    return key, field_of(encoder, output, index=index or "auto")  # type: ignore[arg-type]


def upsert(
    name: Name,
    source: Annotated[str, typer.Argument(help="What embedserve index build reads; - for JSONL from stdin.")],
    fmt: Annotated[
        str | None, typer.Option("--format", "-f", help="folder, jsonl, csv, tsv, parquet, beir or dataset.")
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="Field of the id; id or _id unless given.")] = None,
    text_field: Annotated[str, typer.Option(help="Field of the text.")] = "text",
    title_field: Annotated[str, typer.Option(help="Field of the title, which records may lack.")] = "title",
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="What becomes of a record that cannot be used.")
    ] = "stop",
    model: Model = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Write documents, each in place of the one with its id.

    They are embedded and written batch by batch; what was written is found by every search at once, also where a
    later record ends the command.

    Examples:
      embedserve collection upsert notes more.jsonl
      echo '{"id": "rain", "text": "It rained all night."}' | embedserve collection upsert notes -
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve
    from indexing.collections.catalog import published
    from indexing.collections.collection_build import iter_batches
    from indexing.sources.corpus import read_all

    settings = load_settings(model=model, device=device, data_dir=data_dir)
    directory = resolve(settings.data_dir, name)
    manifest = published(directory)
    found = read_all(source, fmt=fmt, id_field=id_field, text_field=text_field, title_field=title_field)
    encoders = encoders_of(manifest, settings, chosen=model is not None, names=manifest.fields)
    failed: list[str] = []
    written, meter = 0, Meter("writing  ")
    with Collection.open(directory, encoders, writable=True) as collection:
        try:
            for batch in iter_batches(_usable(found, failed, stop=on_error == "stop"), BATCH):
                written += collection.upsert(list({document.id: document for document in batch}.values()))
                meter.update("writing  ", written, None)
        finally:
            meter.close()
        count = len(collection)
    for problem in failed:
        note(f"left out: {problem}")
    values = {"collection": directory.name, "upserted": written, "failed": failed, "count": count}
    _say(values, json, f"wrote {written:,} documents to {directory.name}, which has {count:,} now")


def _usable(found: Iterator[Any], failed: list[str], *, stop: bool) -> Iterator[Document]:
    from embedserve.data.records import BadRecord

    for record in found:
        if not isinstance(record, BadRecord):
            yield record
        elif stop:
            raise record.error
        else:
            failed.append(record.error.message)


def delete(
    name: Name,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of documents.")] = None,
    filter: Filter = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Delete documents by id or by filter.

    Examples:
      embedserve collection delete notes rain bread
      embedserve collection delete notes --filter '{"field": "year", "lte": 2020}'
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    wanted = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name), writable=True) as collection:
        deleted, key = collection.delete(ids or None, filter=wanted), collection.name
    _say({"collection": key, "deleted": deleted}, json, f"deleted {deleted:,} documents of {key}")


def get(
    name: Name,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids; all documents unless given.")] = None,
    filter: Filter = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents at most.")] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Print documents as JSONL, in the order of writing; embedserve index build and collection upsert read it.

    Examples:
      embedserve collection get notes rain
      embedserve collection get notes --filter '{"field": "year", "gte": 2024}' > recent.jsonl
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    wanted = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    if ids and wanted is not None:
        raise InputError("ids and --filter were given; give one of them", field="filter")
    with Collection.open(resolve(settings.data_dir, name)) as collection:
        if ids:
            found = list(zip(ids, collection.get(ids), strict=True))
            for _, document in found:
                if document is not None:
                    _print(document)
            if missing := [one for one, document in found if document is None]:
                raise NotFoundError(f"{collection.name} has no document {missing[0]!r}", field="id")
            return
        cursor, left = None, limit
        while left is None or left > 0:
            page = collection.scroll(cursor, min(PAGE, left or PAGE), filter=wanted)
            for document in page.documents:
                _print(document)
            left = None if left is None else left - len(page.documents)
            cursor = page.cursor
            if cursor is None:
                return


def _print(document: Document) -> None:
    title = {"title": document.title} if document.title else {}
    out_json({**document.metadata, "id": document.id, **title, "text": document.text})


def count(name: Name, filter: Filter = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Count the documents of a collection, or those that pass a filter.

    Examples:
      embedserve collection count notes
      embedserve collection count notes --filter '{"field": "tags", "contains": "food"}'
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    wanted = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name)) as collection:
        found = collection.count(wanted)
        _say({"collection": collection.name, "count": found}, json, str(found))


def facet(
    name: Name,
    field: Annotated[str, typer.Argument(help="A path into the metadata, such as author.name.")],
    filter: Filter = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Values at most.")] = 20,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Count the values of a field of the metadata, most frequent first.

    Examples:
      embedserve collection facet python-docs package
      embedserve collection facet notes tags --limit 5 --json
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    wanted = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name)) as collection:
        found = collection.facet(field, limit=limit, filter=wanted)
    if json:
        out_json({"field": field, "values": [{"value": value, "count": number} for value, number in found]})
        return
    for value, number in found:
        out(f"{number:>9,}  {value}")


def drop(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; there is no way back but a snapshot.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Delete a collection with all its documents; its snapshots stay.

    Examples:
      embedserve collection drop notes --yes
    """
    from indexing.collections.removal import drop_collection

    if not yes:
        raise InputError(f"drop deletes {name!r} with all its documents; add --yes to do it", field="yes")
    settings = load_settings(data_dir=data_dir)
    drop_collection(settings.data_dir, name)
    _say({"deleted": name}, json, f"deleted {name}")


def _say(values: dict[str, Any], json: bool, text: str) -> None:
    if json:
        out_json(values)
    else:
        out(text)


ALL: tuple[Callable[..., None], ...] = (create, upsert, delete, get, count, facet, *COMMANDS, drop)
for command in ALL:
    collection_app.command(command.__name__, help=help_of(command))(command)
