"""A collection is taken away."""

from __future__ import annotations

import shutil
from pathlib import Path

from embedserve.errors import InputError
from indexing.collections.aliases import list_aliases
from indexing.collections.catalog import collection_path, unknown_collection
from indexing.collections.manifest import MANIFEST
from indexing.storage.files import sync, write_lock, writing


def drop_collection(data_dir: Path | str, name: str) -> None:
    """Delete a collection with all its files; its snapshots stay, and `restore` brings it back from one.

    Without its manifest it is no collection, so it is gone in one step, and a crash leaves files that the next
    collection of that name removes.

    Raises:
        NotFoundError: There is no such collection.
        InputError: An alias means it, or is what was named.
        BusyError: It is being written to.
        EmbedserveError: The disk cannot be written.
    """
    directory = collection_path(data_dir, name)
    aliases = list_aliases(data_dir)
    if not (directory / MANIFEST).exists():
        if name in aliases:
            message = f"{name!r} is an alias of collection {aliases[name]!r}; remove the alias, or name the collection"
            raise InputError(message, field="collection")
        raise unknown_collection(directory)
    if pointing := sorted(alias for alias, of in aliases.items() if of == name):
        message = f"alias {pointing[0]!r} means collection {name!r}; let it mean another one first, or remove it"
        raise InputError(message, field="collection")
    with write_lock(directory), writing(directory):
        (directory / MANIFEST).unlink(missing_ok=True)
        sync(directory)
        shutil.rmtree(directory)
        sync(directory.parent)
