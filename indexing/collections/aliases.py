"""Aliases of collections, stored in one file that is replaced atomically."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedserve.disk_records import read_record, record_text
from embedserve.errors import NotFoundError, did_you_mean
from indexing.collections.catalog import check_name, collection_path, unknown_collection
from indexing.collections.manifest import MANIFEST
from indexing.storage.files import make_directory, replace_file, wait_for_lock, writing

FORMAT = 1
ALIASES = "aliases.json"
ALIASES_REMEDY = "remove the file and set the aliases again"


def list_aliases(data_dir: Path | str) -> dict[str, str]:
    """Return the collection of each alias.

    Raises:
        CorruptFileError: The file of aliases is damaged or of another format.
    """
    try:
        return read_record(Path(data_dir) / ALIASES, _aliases_of, ALIASES_REMEDY, version=FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _aliases_of(values: Mapping[str, Any]) -> dict[str, str]:
    return {check_name(alias): check_name(name) for alias, name in values["aliases"].items()}


def set_alias(data_dir: Path | str, alias: str, name: str) -> None:
    """Point ``alias`` to the collection ``name``, atomically.

    An alias with the name of a collection hides that collection until it is removed.

    Raises:
        NotFoundError: No such collection.
        EmbedserveError: The disk cannot be written; the alias is unchanged.
    """
    directory = collection_path(data_dir, name)
    check_name(alias)
    if not (directory / MANIFEST).exists():
        raise unknown_collection(directory)
    with _changing(data_dir) as aliases:
        aliases[alias] = name


def remove_alias(data_dir: Path | str, alias: str) -> None:
    """Remove an alias; the collection is kept.

    Raises:
        NotFoundError: No such alias.
    """
    with _changing(data_dir) as aliases:
        if alias not in aliases:
            raise NotFoundError(
                f"alias {alias!r} does not exist; {did_you_mean(alias, aliases)}".rstrip("; "), field="alias"
            )
        del aliases[alias]


def resolve(data_dir: Path | str, name: str) -> Path:
    """Return the directory of the collection with that alias or name; it need not exist."""
    return collection_path(data_dir, list_aliases(data_dir).get(check_name(name), name))


@contextmanager
def _changing(data_dir: Path | str) -> Iterator[dict[str, str]]:
    """Yield the aliases for modification under a lock, then write them."""
    data_dir = Path(data_dir)
    with writing(data_dir):
        make_directory(data_dir)
        with wait_for_lock(data_dir / f".{ALIASES}.lock"):
            aliases = list_aliases(data_dir)
            yield aliases
            replace_file(data_dir / ALIASES, record_text({"format": FORMAT, "aliases": aliases}).encode())
