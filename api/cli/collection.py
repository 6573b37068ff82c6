"""``embedserve collection``: create collections, write, read, count and delete documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from api.cli.collection_create import create
from api.cli.collection_encoders import encoders_of
from api.cli.collection_versions import COMMANDS
from api.cli.console import note, out, out_json
from api.cli.progress import Meter
from api.cli.shared_options import (
    SOURCE_HELP,
    CollectionModel,
    CollectionName,
    DataDir,
    Device,
    Filter,
    Format,
    IdField,
    Json,
    TextField,
    TitleField,
    filter_of,
    help_of,
)
from api.settings import load_settings
from embedserve.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from indexing import Document

BATCH = 256
PAGE = 500

collection_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Manage collections: write, read, count and delete documents; snapshots, aliases, compaction.\n\n"
    "To load a whole source, embedserve index build is faster; it replaces the collection.",
)


def upsert(
    name: CollectionName,
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    fmt: Format = None,
    id_field: IdField = None,
    text_field: TextField = "text",
    title_field: TitleField = "title",
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="For an invalid record: stop, or skip it.")
    ] = "stop",
    model: CollectionModel = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Insert documents, replacing those with the same ids.

    Documents are embedded and written in batches. Each batch is searchable immediately, and stays if a later record
    stops the command.

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
    records = read_all(source, fmt=fmt, id_field=id_field, text_field=text_field, title_field=title_field)
    encoders = encoders_of(manifest, settings, chosen=model is not None, names=manifest.fields)
    errors: list[str] = []
    written, meter = 0, Meter("writing  ")
    with Collection.open(directory, encoders, writable=True) as collection:
        try:
            for batch in iter_batches(_valid(records, errors, stop=on_error == "stop"), BATCH):
                written += collection.upsert(list({document.id: document for document in batch}.values()))
                meter.update("writing  ", written, None)
        finally:
            meter.close()
        count = len(collection)
    for message in errors:
        note(f"skipped: {message}")
    values = {"collection": directory.name, "upserted": written, "failed": errors, "count": count}
    _print_result(values, json, f"wrote {written:,} documents to {directory.name}, which now has {count:,}")


def _valid(records: Iterator[Any], errors: list[str], *, stop: bool) -> Iterator[Document]:
    from embedserve.data.records import BadRecord

    for record in records:
        if not isinstance(record, BadRecord):
            yield record
        elif stop:
            raise record.error
        else:
            errors.append(record.error.message)


def delete(
    name: CollectionName,
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

    condition = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name), writable=True) as collection:
        deleted, key = collection.delete(ids or None, filter=condition), collection.name
    _print_result({"collection": key, "deleted": deleted}, json, f"deleted {deleted:,} documents of {key}")


def get(
    name: CollectionName,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids of documents. Default: all documents.")
    ] = None,
    filter: Filter = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum number of documents.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Print documents as JSONL, oldest first; the output is valid input of index build and collection upsert.

    Examples:
      embedserve collection get notes rain
      embedserve collection get notes --filter '{"field": "year", "gte": 2024}' > recent.jsonl
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    condition = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    if ids and condition is not None:
        raise InputError("ids and --filter are mutually exclusive; use one of them", field="filter")
    with Collection.open(resolve(settings.data_dir, name)) as collection:
        if ids:
            documents = list(zip(ids, collection.get(ids), strict=True))
            for _, document in documents:
                if document is not None:
                    _print(document)
            if missing := [name for name, document in documents if document is None]:
                raise NotFoundError(f"{collection.name} has no document {missing[0]!r}", field="id")
            return
        cursor, remaining = None, limit
        while remaining is None or remaining > 0:
            page = collection.scroll(cursor, min(PAGE, remaining or PAGE), filter=condition)
            for document in page.documents:
                _print(document)
            remaining = None if remaining is None else remaining - len(page.documents)
            cursor = page.cursor
            if cursor is None:
                return


def _print(document: Document) -> None:
    title = {"title": document.title} if document.title else {}
    out_json({**document.metadata, "id": document.id, **title, "text": document.text})


def count(name: CollectionName, filter: Filter = None, data_dir: DataDir = None, json: Json = False) -> None:
    """Count the documents of a collection, optionally those that match a filter.

    Examples:
      embedserve collection count notes
      embedserve collection count notes --filter '{"field": "tags", "contains": "food"}'
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    condition = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name)) as collection:
        number = collection.count(condition)
        _print_result({"collection": collection.name, "count": number}, json, str(number))


def facet(
    name: CollectionName,
    field: Annotated[str, typer.Argument(metavar="FIELD", help="Metadata field, such as author.name.")],
    filter: Filter = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Maximum number of values.")] = 20,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Count the values of a metadata field, most frequent first.

    Examples:
      embedserve collection facet python-docs package
      embedserve collection facet notes tags --limit 5 --json
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    condition = filter_of(filter)
    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name)) as collection:
        counts = collection.facet(field, limit=limit, filter=condition)
    if json:
        out_json({"field": field, "values": [{"value": value, "count": number} for value, number in counts]})
        return
    for value, number in counts:
        out(f"{number:>9,}  {value}")


def drop(
    name: CollectionName,
    yes: Annotated[bool, typer.Option("--yes", help="Confirm; only a snapshot can restore the collection.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Delete a collection with all its documents; its snapshots are kept.

    Examples:
      embedserve collection drop notes --yes
    """
    from indexing.collections.removal import drop_collection

    if not yes:
        raise InputError(f"drop deletes {name!r} with all its documents; add --yes to confirm", field="yes")
    settings = load_settings(data_dir=data_dir)
    drop_collection(settings.data_dir, name)
    _print_result({"deleted": name}, json, f"deleted {name}")


def _print_result(values: dict[str, Any], json: bool, text: str) -> None:
    if json:
        out_json(values)
    else:
        out(text)


ALL: tuple[Callable[..., None], ...] = (create, upsert, delete, get, count, facet, *COMMANDS, drop)
for command in ALL:
    collection_app.command(command.__name__, help=help_of(command))(command)
