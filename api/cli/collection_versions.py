"""Commands of ``embedserve collection`` for snapshots, aliases, compaction and re-embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.console import load_encoder, note, out, out_json
from api.cli.progress import Meter
from api.cli.shared_options import MODEL_HELP, CollectionName, DataDir, Device, Json, Strategy
from api.settings import load_settings
from embedserve.errors import InputError

if TYPE_CHECKING:
    from indexing.collections.collection_build import BuildProgress

STAGES = {"embed": "embedding", "index": "indexing ", "write": "writing  "}


def compact(
    name: CollectionName,
    full: Annotated[bool, typer.Option("--full", help="Merge all segments into one.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Merge small segments, and rewrite segments with many deleted documents.

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
    name: CollectionName,
    snapshot_name: Annotated[
        str | None,
        typer.Option("--name", metavar="SNAPSHOT", help="Name of the snapshot. Default: the time.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Take a snapshot of a collection; unchanged files are shared by hard links.

    Examples:
      embedserve collection snapshot notes --name before-friday
    """
    from indexing import Collection
    from indexing.collections.aliases import resolve
    from indexing.collections.snapshots import snapshot_path

    settings = load_settings(data_dir=data_dir)
    with Collection.open(resolve(settings.data_dir, name), writable=True) as collection:
        taken, key = collection.snapshot(snapshot_name), collection.name
    path = str(snapshot_path(settings.data_dir, key, taken))
    if json:
        out_json({"collection": key, "snapshot": taken, "path": path})
    else:
        out(f"saved snapshot {taken} of {key} in {path}")


def snapshots(name: CollectionName, data_dir: DataDir = None, json: Json = False) -> None:
    """List the snapshots of a collection, which may be a deleted one.

    Examples:
      embedserve collection snapshots notes
    """
    from indexing.collections.aliases import resolve
    from indexing.collections.snapshots import list_snapshots

    settings = load_settings(data_dir=data_dir)
    key = resolve(settings.data_dir, name).name
    names = list_snapshots(settings.data_dir, key)
    if json:
        out_json({"collection": key, "snapshots": names})
        return
    if not names:
        note(f"{key} has no snapshots; take one with: embedserve collection snapshot {key}")
    for snapshot_name in names:
        out(snapshot_name)


def restore(
    name: CollectionName,
    taken: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Name of the snapshot.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Collection to write. Default: the collection of the snapshot.", show_default=False
        ),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Replace a collection by a snapshot; later writes are lost. With --to, restore into another collection.

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
        out(f"restored {manifest.name} from {taken}: {manifest.count:,} documents")


def alias(
    name: Annotated[str | None, typer.Argument(metavar="ALIAS", help="The alias. Default: list all aliases.")] = None,
    collection: Annotated[str | None, typer.Argument(metavar="COLLECTION", help="The collection it refers to.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """List, set or remove aliases; setting an existing alias switches it atomically.

    Examples:
      embedserve collection alias
      embedserve collection alias current notes-2
      embedserve collection alias current --remove
    """
    from indexing.collections.aliases import list_aliases, remove_alias, set_alias

    settings = load_settings(data_dir=data_dir)
    if remove and (name is None or collection is not None):
        raise InputError("--remove takes only the alias", field="remove")
    if name is not None and collection is None and not remove:
        raise InputError(
            f"the collection of alias {name!r} is missing; name a collection, or add --remove", field="collection"
        )
    if name is not None and remove:
        remove_alias(settings.data_dir, name)
    elif name is not None and collection is not None:
        set_alias(settings.data_dir, name, collection)
    aliases = list_aliases(settings.data_dir)
    if json:
        out_json({"aliases": aliases})
        return
    for key, target in sorted(aliases.items()):
        out(f"{key:24} {target}")


def reembed(
    name: CollectionName,
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP)],
    strategy: Strategy = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the new collection. Default: NAME-2, NAME-3, …", show_default=False),
    ] = None,
    device: Device = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Embed the documents of a collection with another encoder, then switch its name to the new collection.

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
        out(f"{name} now refers to {manifest.name}: {manifest.count:,} documents, embedded by {manifest.encoder}")


COMMANDS: tuple[Callable[..., None], ...] = (compact, snapshot, restore, snapshots, alias, reembed)
