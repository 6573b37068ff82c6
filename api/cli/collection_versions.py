"""The commands of embedserve collection that keep, restore, rename and rebuild collections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.console import load_encoder, note, out, out_json
from api.cli.progress import Meter
from api.cli.shared_options import DataDir, Device, Json, Strategy
from api.settings import load_settings
from embedserve.errors import InputError

if TYPE_CHECKING:
    from indexing.collections.collection_build import BuildProgress

STAGES = {"embed": "embedding", "index": "indexing ", "write": "writing  "}
Name = Annotated[str, typer.Argument(help="Name of the collection, or an alias.")]


def compact(
    name: Name,
    full: Annotated[bool, typer.Option("--full", help="Make one segment of all.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Write segments anew that hold many deleted documents or are many and small.

    Examples:
      embedserve collection compact notes --full
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve

    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name), writable=True) as collection:
        collection.compact(full=full)
        segments, key = len(collection.manifest.segments), collection.name
    if json:
        out_json({"collection": key, "segments": segments})
    else:
        out(f"{key} has {segments} {'segment' if segments == 1 else 'segments'}")


def snapshot(
    name: Name,
    called: Annotated[str | None, typer.Option("--name", help="Name of the snapshot; made up unless given.")] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Keep a collection as it is now, in files it shares with it.

    Examples:
      embedserve collection snapshot notes --name before-friday
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve
    from indexing.collections.snapshots import snapshot_path

    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name), writable=True) as collection:
        taken, key = collection.snapshot(called), collection.name
    path = str(snapshot_path(settings.data_dir, key, taken))
    if json:
        out_json({"collection": key, "snapshot": taken, "path": path})
    else:
        out(f"kept {key} as {taken}, in {path}")


def snapshots(name: Name, data_dir: DataDir = None, json: Json = False) -> None:
    """List the snapshots of a collection, which may be deleted already.

    Examples:
      embedserve collection snapshots notes
    """
    from indexing.collections.aliases import resolve
    from indexing.collections.snapshots import list_snapshots

    settings = load_settings(data_dir=data_dir)
    key = resolve(settings.data_dir, name).name
    found = list_snapshots(settings.data_dir, key)
    if json:
        out_json({"collection": key, "snapshots": found})
        return
    if not found:
        note(f"there are no snapshots of {key}; make one with: embedserve collection snapshot {key}")
    for one in found:
        out(one)


def restore(
    name: Name,
    taken: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Name of the snapshot.")],
    to: Annotated[str | None, typer.Option(help="Another collection; in place of the same one unless given.")] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Put a snapshot in the place of its collection or of another one; what was written since is gone there.

    Examples:
      embedserve collection restore notes before-friday
      embedserve collection restore notes before-friday --to notes-as-they-were
    """
    from indexing.collections.aliases import resolve
    from indexing.collections.snapshots import restore

    settings = load_settings(data_dir=data_dir)
    key = resolve(settings.data_dir, name).name
    manifest = restore(settings.data_dir, key, taken, to=to)
    if json:
        out_json({"collection": manifest.name, "snapshot": taken, "count": manifest.count})
    else:
        out(f"{manifest.name} is {taken} again: {manifest.count:,} documents")


def alias(
    name: Annotated[str | None, typer.Argument(metavar="ALIAS", help="An alias; lists all unless given.")] = None,
    collection: Annotated[str | None, typer.Argument(help="The collection that it is to mean.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """List aliases, or let one mean a collection from now on, in one step.

    Examples:
      embedserve collection alias
      embedserve collection alias current notes-2
      embedserve collection alias current --remove
    """
    from indexing.collections.aliases import list_aliases, remove_alias, set_alias

    settings = load_settings(data_dir=data_dir)
    if remove and (name is None or collection is not None):
        raise InputError("--remove takes one alias and nothing else", field="remove")
    if name is not None and collection is None and not remove:
        raise InputError(f"what is {name!r} to mean? name a collection, or add --remove", field="collection")
    if name is not None and remove:
        remove_alias(settings.data_dir, name)
    elif name is not None and collection is not None:
        set_alias(settings.data_dir, name, collection)
    found = list_aliases(settings.data_dir)
    if json:
        out_json({"aliases": found})
        return
    for one, key in sorted(found.items()):
        out(f"{one:24} {key}")


def reembed(
    name: Name,
    model: Annotated[str, typer.Option("--model", "-m", help="nano, a saved encoder, or any decoder's folder or id.")],
    strategy: Strategy = None,
    to: Annotated[str | None, typer.Option(help="Name of the new collection; NAME-2, NAME-3, … unless given.")] = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Build a collection's documents with another encoder beside it, then let its name mean the new one.

    Examples:
      embedserve collection reembed notes --model my-encoder
    """
    from indexing.collections.reembed import reembed

    settings = load_settings(model=model, device=device, data_dir=data_dir)
    encoder = load_encoder(settings.model, settings.device, strategy)
    meter = Meter("embedding")

    def show(progress: BuildProgress) -> None:
        meter.update(STAGES[progress.stage], progress.done, progress.total)

    try:
        manifest = reembed(settings.data_dir, name, encoder, to=to, progress=show)
    finally:
        meter.close()
    if json:
        out_json({"name": name, "collection": manifest.name, "count": manifest.count, "encoder": manifest.encoder})
    else:
        out(f"{name} means {manifest.name} now: {manifest.count:,} documents, by {manifest.encoder}")


COMMANDS: tuple[Callable[..., None], ...] = (compact, snapshot, restore, snapshots, alias, reembed)
