"""Aliases: other names for collections, in one file that is replaced as a whole."""

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
    """Return the collection behind each alias.

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
    """Let ``alias`` stand for the collection ``name`` from now on; whatever it stood for before, in one step.

    An alias with the name of a collection hides that collection until it is removed.

    Raises:
        NotFoundError: There is no such collection.
        EmbedserveError: The disk cannot be written; the alias is as it was.
    """
    directory = collection_path(data_dir, name)
    check_name(alias)
    if not (directory / MANIFEST).exists():
        raise unknown_collection(directory)
    with _changing(data_dir) as aliases:
        aliases[alias] = name


def remove_alias(data_dir: Path | str, alias: str) -> None:
    """Take an alias away; the collection stays.

    Raises:
        NotFoundError: There is no such alias.
    """
    with _changing(data_dir) as aliases:
        if alias not in aliases:
            raise NotFoundError(
                f"there is no alias {alias!r}; {did_you_mean(alias, aliases)}".rstrip("; "), field="alias"
            )
        del aliases[alias]


def resolve(data_dir: Path | str, name: str) -> Path:
    """Return the directory of the collection that is called ``name`` or has that alias; it need not exist."""
    return collection_path(data_dir, list_aliases(data_dir).get(check_name(name), name))


@contextmanager
def _changing(data_dir: Path | str) -> Iterator[dict[str, str]]:
    """Give the aliases to be changed, which nobody else changes meanwhile, and write them."""
    data_dir = Path(data_dir)
    with writing(data_dir):
        make_directory(data_dir)
        with wait_for_lock(data_dir / f".{ALIASES}.lock"):
            aliases = list_aliases(data_dir)
            yield aliases
            replace_file(data_dir / ALIASES, record_text({"format": FORMAT, "aliases": aliases}).encode())
