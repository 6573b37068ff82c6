"""Drop collections."""

from __future__ import annotations

import shutil
from pathlib import Path

from embedserve.errors import InputError
from indexing.collections.aliases import list_aliases
from indexing.collections.catalog import collection_path, unknown_collection
from indexing.collections.cleanup import mark_dropped
from indexing.collections.manifest import MANIFEST
from indexing.storage.files import sync, write_lock, writing


def drop_collection(data_dir: Path | str, name: str) -> None:
    """Delete a collection with all its files; its snapshots remain, and `restore` reads them.

    Atomic: renaming the manifest is the commit. After a crash, the next collection with that name removes the leftover
    files.

    Raises:
        NotFoundError: No such collection.
        InputError: An alias refers to the collection, or ``name`` is an alias.
        BusyError: The collection is open for writing.
        EmbedserveError: The disk cannot be written.
    """
    directory = collection_path(data_dir, name)
    aliases = list_aliases(data_dir)
    if not (directory / MANIFEST).exists():
        if name in aliases:
            message = f"{name!r} is an alias of collection {aliases[name]!r}; remove the alias, or name the collection"
            raise InputError(message, field="collection")
        raise unknown_collection(directory)
    if pointing := sorted(alias for alias, target in aliases.items() if target == name):
        message = f"alias {pointing[0]!r} refers to collection {name!r}; set it to another collection or remove it"
        raise InputError(message, field="collection")
    with write_lock(directory), writing(directory):
        if not (directory / MANIFEST).exists():  # dropped before the lock was taken
            raise unknown_collection(directory)
        mark_dropped(directory)
        shutil.rmtree(directory)
        sync(directory.parent)
